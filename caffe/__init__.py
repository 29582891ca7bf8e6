"""Caffe's networks, solvers and files: pycaffe's interface and Caffe's semantics, computed by PyTorch."""
