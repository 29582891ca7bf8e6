"""The values of a net's parameters: from weights files and into them, by the layers' names, and shared between nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import glog as log
from . import hdf5
from .blob import Parameter
from .errors import CaffeError
from .files import StrPath
from .io import blobproto_to_array, read_net_binary
from .layers import Layer
from .proto.caffe_pb2 import BlobProto


def copy_blobs(layer: Layer, protos: Sequence[BlobProto], source: str) -> None:
    """Give a layer the values of its parameters that the file `source` has.

    Raises CaffeError where they differ in number or shape.
    """
    if len(protos) != len(layer.blobs):
        layer.error(f"{source} has {len(protos)} parameters for it; expected {len(layer.blobs)}")
    for i, (proto, blob) in enumerate(zip(protos, layer.blobs, strict=True)):
        try:
            array = blobproto_to_array(proto)
        except CaffeError as error:
            layer.error(f"{source}: parameter {i}: {error}")
        # old files give every blob four axes, the missing ones 1 in front
        legacy = not proto.HasField("shape")
        if legacy and array.size == blob.count and array.shape[4 - len(blob.shape) :] == blob.shape:
            array = array.reshape(blob.shape)
        if array.shape != blob.shape:
            layer.error(
                f"{source}: parameter {i} has shape {array.shape}; expected {blob.shape} (to learn this "
                "layer from scratch instead, give it another name)"
            )
        blob.data[...] = array


def read_caffemodel(path: StrPath, layers: Mapping[str, Layer]) -> None:
    """What `Net.copy_from` does for a .caffemodel."""
    source = read_net_binary(path)
    if not source.layer:
        raise CaffeError(f"{path}: holds no layer; expected a .caffemodel")
    before = [(blob, blob.data.copy()) for layer in layers.values() for blob in layer.blobs]
    try:
        for proto in source.layer:
            if proto.name not in layers:
                log.info("net.cpp:737", f"Ignoring source layer {proto.name}")
            elif proto.blobs or layers[proto.name].blobs:
                copy_blobs(layers[proto.name], proto.blobs, str(path))
    except CaffeError:
        for blob, array in before:
            blob.data[...] = array
        raise


def read_hdf5(path: StrPath, layers: Mapping[str, Layer]) -> None:
    """What `Net.load_hdf5` does."""
    shapes = {name: [blob.shape for blob in layer.blobs] for name, layer in layers.items()}
    for name, arrays in hdf5.read_weights(path, shapes, _owned_elsewhere(layers)).items():
        for i, array in arrays.items():
            layers[name].blobs[i].data[...] = array


def write_hdf5(path: StrPath, layers: Mapping[str, Layer], write_diff: bool) -> None:
    """What `Net.save_hdf5` does."""
    shared = _owned_elsewhere(layers)
    hdf5.write_weights(
        path,
        {
            name: [None if (name, i) in shared else blob.data for i, blob in enumerate(layer.blobs)]
            for name, layer in layers.items()
        },
        {name: [blob.diff for blob in layer.blobs] for name, layer in layers.items()} if write_diff else None,
    )


def _owned_elsewhere(layers: Mapping[str, Layer]) -> set[tuple[str, int]]:
    """(layer, i) of the parameters that an earlier layer owns."""
    seen: set[int] = set()
    shared = set()
    for name, layer in layers.items():
        shared |= {(name, i) for i, blob in enumerate(layer.blobs) if id(blob.owner) in seen}
        seen |= {id(blob.owner) for blob in layer.blobs}
    return shared


def share(layers: Mapping[str, Layer], params: Mapping[str, Sequence[Parameter]]) -> None:
    """Have the values of other parameters, by layer, from now on: what `Net.share_params` does."""
    pairs: dict[int, tuple[Parameter, Parameter]] = {}  # of each owner here, once
    for name, blobs in params.items():
        mine = layers[name].blobs if name in layers else []
        if mine:
            if [b.shape for b in mine] != [b.shape for b in blobs]:
                shapes, others = [b.shape for b in mine], [b.shape for b in blobs]
                layers[name].error(f"has parameters of shapes {shapes}; the other net's are {others}")
            for i, (own, source) in enumerate(zip(mine, blobs, strict=True)):
                _, first = pairs.setdefault(id(own.owner), (own.owner, source))
                if not first.shares_with(source):
                    layers[name].error(
                        f"parameter {i} is an earlier layer's here, and one of its own in the other net; expected "
                        "layers that share parameters in both, or in neither"
                    )
    for own, source in pairs.values():
        own.share(source)
