"""Nets and solvers in the forms of older Caffes, brought to the current one as Caffe does on reading.

V0 (2013): `layers { layer { name type … } }`. V1 (2014): `layers` with a type of a list. Both become `layer`, `input`
an Input layer, and the settings of images that stood in a data layer's own message its `transform_param`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from . import glog as log
from .errors import CaffeError
from .proto.caffe_pb2 import LayerParameter, NetParameter, SolverParameter, V0LayerParameter, V1LayerParameter

_V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}
# a V0 field: its name in the message of its type, and the types that have it
_V0_FIELDS = {
    "num_output": ("num_output", "conv innerproduct"),
    "biasterm": ("bias_term", "conv innerproduct"),
    "weight_filler": ("weight_filler", "conv innerproduct"),
    "bias_filler": ("bias_filler", "conv innerproduct"),
    "pad": ("pad", "conv pool"),
    "kernelsize": ("kernel_size", "conv pool"),
    "group": ("group", "conv"),
    "stride": ("stride", "conv pool"),
    "pool": ("pool", "pool"),
    "dropout_ratio": ("dropout_ratio", "dropout"),
    "local_size": ("local_size", "lrn"),
    "alpha": ("alpha", "lrn"),
    "beta": ("beta", "lrn"),
    "k": ("k", "lrn"),
    "source": ("source", "data hdf5_data images window_data infogain_loss"),
    "batchsize": ("batch_size", "data hdf5_data images window_data"),
    "rand_skip": ("rand_skip", "data images"),
    "shuffle_images": ("shuffle", "images"),
    "new_height": ("new_height", "images"),
    "new_width": ("new_width", "images"),
    "concat_dim": ("concat_dim", "concat"),
    "det_fg_threshold": ("fg_threshold", "window_data"),
    "det_bg_threshold": ("bg_threshold", "window_data"),
    "det_fg_fraction": ("fg_fraction", "window_data"),
    "det_context_pad": ("context_pad", "window_data"),
    "det_crop_mode": ("crop_mode", "window_data"),
}
# and those that any type may have, in transform_param
_V0_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
_V0_ANY_TYPE = ("name", "type", "blobs", "blobs_lr", "weight_decay")

_V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
}
# V1's lists of numbers and names, one value a parameter: now fields of ParamSpec
_V1_PARAM = {
    "param": "name",
    "blob_share_mode": "share_mode",
    "blobs_lr": "lr_mult",
    "weight_decay": "decay_mult",
}
_V1_DATA = {
    V1LayerParameter.DATA: "data_param",
    V1LayerParameter.IMAGE_DATA: "image_data_param",
    V1LayerParameter.WINDOW_DATA: "window_data_param",
}

_SOLVER_TYPES = {
    SolverParameter.SGD: "SGD",
    SolverParameter.NESTEROV: "Nesterov",
    SolverParameter.ADAGRAD: "AdaGrad",
    SolverParameter.RMSPROP: "RMSProp",
    SolverParameter.ADADELTA: "AdaDelta",
    SolverParameter.ADAM: "Adam",
}


def _info(line: int, message: str) -> None:
    log.info(f"upgrade_proto.cpp:{line}", message)


def _warning(line: int, message: str) -> None:
    log.warning(f"upgrade_proto.cpp:{line}", message)


def _problem(message: str) -> None:
    log.error("upgrade_proto.cpp:33", message)


def net_needs_upgrade(net: NetParameter) -> bool:
    """Whether any part of a net is in an older form."""
    return bool(net.layers or net.input or any(_old_batch_norms(net)))


def upgrade_net(net: NetParameter, source: str) -> bool:
    """Bring a net to the current form, in place, with Caffe's lines in the log.

    Parameters
    ----------
    net: as it was parsed from a prototxt or a .caffemodel; parameters (`blobs`) go along.
    source: the file, for the log and for errors.

    Returns
    -------
    False where a V0 layer has a setting that its type does not have: it is logged and left out, as in Caffe.

    Raises
    ------
    CaffeError: naming file and layer, where `layer` stands beside `layers` or V0 layers beside V1's, for a V0 type
        that does not exist, a padding layer that is not one blob's or is read by anything but a convolution or
        pooling, and inputs whose number of sizes is not what they need.
    """
    complete = True
    if net.layers and net.layer:
        raise CaffeError(
            f"{source}: layer {net.layer[0].name!r} is a `layer`, {_name(net.layers[0])} one of `layers`; "
            "expected one of the two forms"
        )
    if any(layer.HasField("layer") for layer in net.layers):
        _info(28, f"Attempting to upgrade input file specified using deprecated V0LayerParameter: {source}")
        complete = _upgrade_v0(net, source)
        if complete:
            _info(36, "Successfully upgraded file specified using deprecated V0LayerParameter")
        else:
            _problem(
                "Warning: had one or more problems upgrading V0NetParameter to NetParameter (see above); "
                "continuing anyway."
            )
        _warning(
            41,
            "Note that future Caffe releases will not support V0NetParameter; use upgrade_net_proto_text for "
            "prototxt and upgrade_net_proto_binary for model weights to upgrade this and any other net protos to "
            "the new format.",
        )
    if any(_old_transforms(net)):
        _info(46, f"Attempting to upgrade input file specified using deprecated transformation parameters: {source}")
        for layer, settings, field in _old_transforms(net):
            setattr(layer.transform_param, field, getattr(settings, field))
            settings.ClearField(field)
        _info(49, "Successfully upgraded file specified using deprecated data transformation parameters.")
        _warning(
            51, "Note that future Caffe releases will only support transform_param messages for transformation fields."
        )
    if net.layers:
        _info(55, f"Attempting to upgrade input file specified using deprecated V1LayerParameter: {source}")
        for layer in net.layers:
            _from_v1(layer, net.layer.add())
        net.ClearField("layers")
        _info(63, "Successfully upgraded file specified using deprecated V1LayerParameter")
    if net.input:
        _info(69, f"Attempting to upgrade input file specified using deprecated input fields: {source}")
        _upgrade_inputs(net, source)
        _info(72, "Successfully upgraded file specified using deprecated input fields.")
        _warning(74, "Note that future Caffe releases will only support input layers and not input fields.")
    if any(_old_batch_norms(net)):
        _info(79, f"Attempting to upgrade batch norm layers using deprecated params: {source}")
        for layer in _old_batch_norms(net):
            for spec in layer.param:
                spec.lr_mult = spec.decay_mult = 0.0
        _info(82, "Successfully upgraded batch norm layers using deprecated params.")
    return complete


def _name(layer: V1LayerParameter) -> str:
    """A layer's name for an error, quoted."""
    return repr(layer.layer.name if layer.HasField("layer") else layer.name)


# V0 to V1


def _upgrade_v0(net: NetParameter, source: str) -> bool:
    for layer in net.layers:
        if not layer.HasField("layer"):
            raise CaffeError(
                f"{source}: layer {_name(layer)} is a V1 layer among V0 ones; expected one of the two forms"
            )
    _fold_padding(net, source)
    complete = True
    layers = list(net.layers)
    for layer in layers:
        if layer.layer.type != "padding":
            new = net.layers.add(bottom=layer.bottom, top=layer.top)
            complete = _from_v0(layer.layer, new, source) and complete
    del net.layers[: len(layers)]
    return complete


def _fold_padding(net: NetParameter, source: str) -> None:
    """Give the `pad` of each padding layer to the layers that read it, and them its bottom."""
    written_by: dict[str, V1LayerParameter | None] = dict.fromkeys(net.input)
    for layer in net.layers:
        for i, bottom in enumerate(layer.bottom):
            if bottom not in written_by:
                raise CaffeError(f"{source}: layer {_name(layer)}: bottom {bottom!r} is no top of an earlier layer")
            padding = written_by[bottom]
            if padding is None or padding.layer.type != "padding":
                continue
            if layer.layer.type not in ("conv", "pool"):
                raise CaffeError(
                    f"{source}: layer {_name(layer)} is of type {layer.layer.type!r} and reads the padding layer "
                    f"{_name(padding)}; expected conv or pool"
                )
            for what, names in (
                (f"layer {_name(layer)}: bottoms", layer.bottom),
                (f"padding layer {_name(padding)}: bottoms", padding.bottom),
                (f"padding layer {_name(padding)}: tops", padding.top),
            ):
                if len(names) != 1:
                    raise CaffeError(f"{source}: {what} are {', '.join(names) or 'none'}; expected one")
            layer.layer.pad = padding.layer.pad
            layer.bottom[i] = padding.bottom[0]
        written_by.update(dict.fromkeys(layer.top, layer))


def _from_v0(old: V0LayerParameter, new: V1LayerParameter, source: str) -> bool:
    """Fill a V1 layer from the settings of a V0 layer; False where some of them have no place in it."""
    if old.HasField("type"):
        if old.type not in _V0_TYPES:
            known = ", ".join(sorted([*_V0_TYPES, "padding"]))
            raise CaffeError(
                f"{source}: layer {old.name!r}: type {old.type!r} is no type of a V0 layer; expected one of {known}"
            )
        new.type = V1LayerParameter.LayerType.Value(_V0_TYPES[old.type])
    complete = True
    for field, value in old.ListFields():
        name, types = _V0_FIELDS.get(field.name, (field.name, ""))
        if field.name in _V0_ANY_TYPE:
            if field.name != "type":
                _set(new, name, value)
        elif field.name in _V0_TRANSFORM:
            _set(new.transform_param, _V0_TRANSFORM[field.name], value)
        elif field.name == "hdf5_output_param" and old.type == "hdf5_output":
            new.hdf5_output_param.CopyFrom(value)
        elif old.type in types.split():
            _set(getattr(new, f"{_V0_TYPES[old.type].lower()}_param"), name, value)
        else:
            _problem(f"{source}: layer {old.name!r}: Unknown parameter {field.name} for layer type {old.type}")
            complete = False
    return complete


def _set(message: Message, name: str, value: Any) -> None:
    """Set a field; a single value becomes a list of one where the field is a list."""
    target = getattr(message, name)
    if hasattr(target, "extend"):
        target.extend(value if hasattr(value, "extend") else [value])
    elif isinstance(target, Message):
        target.CopyFrom(value)
    else:
        setattr(message, name, value)


# Data layers


def _old_transforms(net: NetParameter) -> Iterator[tuple[V1LayerParameter, Message, str]]:
    """Layer, message and field of each setting that belongs into transform_param."""
    for layer in net.layers:
        if layer.type in _V1_DATA:
            settings = getattr(layer, _V1_DATA[layer.type])
            for field in ("scale", "mean_file", "crop_size", "mirror"):
                if settings.HasField(field):
                    yield layer, settings, field


# V1 to the current form


def _from_v1(old: V1LayerParameter, new: LayerParameter) -> None:
    """Fill a layer of today from a V1 layer."""
    for field, value in old.ListFields():
        if field.name == "type":
            new.type = _V1_TYPES[V1LayerParameter.LayerType.Name(value)]
        elif field.name in _V1_PARAM:
            for i, one in enumerate(value):
                if len(new.param) <= i:
                    new.param.add()
                setattr(new.param[i], _V1_PARAM[field.name], one)
        else:
            _set(new, field.name, value)


# Inputs and BatchNorm


def _upgrade_inputs(net: NetParameter, source: str) -> None:
    """An Input layer in front for `input` with `input_shape` or `input_dim`; without sizes (weights) there is none."""
    count = len(net.input)
    if net.input_shape and net.input_dim:
        raise CaffeError(f"{source}: input_shape and input_dim are both given; expected one")
    if len(net.input_shape) not in (0, count) or len(net.input_dim) not in (0, 4 * count):
        raise CaffeError(
            f"{source}: {count} input need as many input_shape or {4 * count} input_dim, "
            f"not {len(net.input_shape)} and {len(net.input_dim)}"
        )
    if net.input_shape or net.input_dim:
        layer = LayerParameter(name="input", type="Input", top=net.input)
        for i in range(count):
            dims = net.input_shape[i].dim if net.input_shape else net.input_dim[4 * i : 4 * i + 4]
            layer.input_param.shape.add(dim=dims)
        net.layer.insert(0, layer)
    for field in ("input", "input_shape", "input_dim"):
        net.ClearField(field)


def _old_batch_norms(net: NetParameter) -> Iterator[LayerParameter]:
    """BatchNorm layers that state how their three parameters learn, which they do not."""
    return (layer for layer in net.layer if layer.type == "BatchNorm" and len(layer.param) == 3)


# The solver


def upgrade_solver(solver: SolverParameter, source: str) -> bool:
    """Turn a solver's `solver_type` into `type`, in place; returns whether it had one.

    Raises CaffeError where both are given.
    """
    if not solver.HasField("solver_type"):
        return False
    if solver.HasField("type"):
        raise CaffeError(f"{source}: solver_type and type are both given; expected type alone")
    _info(1086, f"Attempting to upgrade input file specified using deprecated 'solver_type' field (enum)': {source}")
    solver.type = _SOLVER_TYPES[solver.solver_type]
    solver.ClearField("solver_type")
    _info(
        1093,
        "Successfully upgraded file specified using deprecated 'solver_type' field (enum) to 'type' field (string).",
    )
    _warning(1095, "Note that future Caffe releases will only support 'type' field (string) for a solver's type.")
    return True
