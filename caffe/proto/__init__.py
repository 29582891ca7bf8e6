"""Protocol buffers: `caffe.proto` is Caffe's schema, `onnx.proto` what is written of ONNX's.

`caffe_pb2` and `onnx_pb2` are the modules generated from them.
"""
