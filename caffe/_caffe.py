"""The names that scripts import from `caffe._caffe`, the compiled module of pycaffe: those of `caffe`, and more."""

from . import *  # noqa: F403
from .blob import Blob  # noqa: F401
from .proto.caffe_pb2 import LayerParameter, SolverParameter  # noqa: F401

# of which a net's blobs, layers, parameters and numbers are, there C++ vectors
BlobVec = RawBlobVec = LayerVec = NetVec = StringVec = IntVec = DtypeVec = BoolVec = list
