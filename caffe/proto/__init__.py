"""Caffe's protocol buffers: `caffe.proto` is the schema, `caffe_pb2` the module generated from it."""
