"""Net: pycaffe's interface to a net, arrays in and out, and its weights from files and into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import context
from .blob import Blob, Parameter
from .errors import CaffeError
from .files import StrPath, replace_bytes
from .graph import AUTOMATIC
from .io import array_to_blobproto, read_net_parameter
from .memory import keep_freed_memory
from .passes import RunnableGraph
from .phases import filter_net
from .proto.caffe_pb2 import TEST, TRAIN, NetParameter, Phase
from .upgrade import upgrade_net
from .weights import read_caffemodel, read_hdf5, share, write_hdf5


class Net(RunnableGraph):
    """A network. Its layers, blobs and parameters are `LayerGraph`'s attributes; `RunnableGraph` computes.

    Parameters
    ----------
    network_file: path of a prototxt, or a NetParameter.
    args: pycaffe's forms: `Net(network_file, phase, level, stages, weights)`, of which all behind the phase may be
        left out, and `Net(network_file, weights, phase)`.
    phase: caffe.TRAIN or caffe.TEST.
    level, stages: the rest of the state that `include` and `exclude` rules look at: an int and a list of str.
    weights: path of a .caffemodel or .caffemodel.h5.
    precision: `fp32` (default), `bf16`, `fp16` or `auto`: in what convolutions and inner products are computed.
    seed: of the fillers and random layers; default: `caffe.set_random_seed`'s, else from the system.

    Raises
    ------
    CaffeError: naming file and line for a prototxt that does not parse, or the layer or blob that does not fit.
    """

    def __init__(
        self,
        network_file: StrPath | NetParameter,
        *args: Any,
        phase: int | None = None,
        weights: StrPath | None = None,
        level: int = 0,
        stages: Sequence[str] | None = None,
        precision: str = "fp32",
        seed: int | None = None,
    ) -> None:
        if len(args) == 2 and not isinstance(args[0], int):
            weights, phase = args
        elif len(args) > 4:
            raise CaffeError(
                f"Net: {len(args) + 1} positional arguments; expected (network_file, phase, level, stages, weights) "
                "or (network_file, weights, phase)"
            )
        else:
            given = dict(zip(("phase", "level", "stages", "weights"), args, strict=False))
            phase, level = given.get("phase", phase), given.get("level", level)
            stages, weights = given.get("stages", stages), given.get("weights", weights)
        if phase not in (TRAIN, TEST):
            raise CaffeError(f"Net: phase is {phase!r}; expected caffe.TRAIN or caffe.TEST")
        if isinstance(network_file, NetParameter):
            param = NetParameter()
            param.CopyFrom(network_file)
            upgrade_net(param, f"net {network_file.name!r}")
        else:
            param = read_net_parameter(network_file)
        param.state.phase = Phase.ValueType(phase)
        param.state.level = level
        param.state.stage.extend(stages or [])
        self.source = "" if isinstance(network_file, NetParameter) else str(network_file)
        device = context.current_device()
        if device.type == "cpu":
            keep_freed_memory()
        super().__init__(filter_net(param), device, precision, seed)
        if weights is not None:
            self.copy_from(weights)

    def forward(
        self,
        blobs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Forward pass; pycaffe's.

        Parameters
        ----------
        blobs: names of blobs to return beside the outputs.
        start, end: names of the layers to begin with and to stop behind; default: all.
        inputs: arrays for the input blobs, whose shapes are those of the blobs.

        Returns
        -------
        The output blobs (with `end`: that layer's tops) and `blobs`, by name.
        """
        if inputs:
            if set(inputs) != set(self.inputs):
                raise CaffeError(f"forward: inputs are {sorted(inputs)}; expected {sorted(self.inputs)}")
            for name, array in inputs.items():
                self.blobs[name].data[...] = self._fitting("forward", name, array)
        first = self._number(start, 0, "forward: start")
        last = self._number(end, len(self.layers) - 1, "forward: end")
        self.compute(first, last, fuse=False)
        names = self.outputs if end is None else list(self.layers[last].param.top)
        return {name: self.blobs[name].data for name in [*names, *(blobs or [])]}

    def backward(
        self,
        diffs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **top_diffs: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Backward pass; pycaffe's. A net without a loss needs `force_backward: true` in its prototxt.

        Parameters
        ----------
        diffs: names of blobs whose diffs to return beside the inputs'.
        start, end: names of the layers to begin with (nearest the loss) and to stop behind; default: all.
        top_diffs: diffs to put into the output blobs first (default: what stands there: in a loss at first its weight).

        Returns
        -------
        The diffs of the input blobs (with `end`: of that layer's bottoms) and of `diffs`, by name.
        """
        first = self._number(start, len(self.layers) - 1, "backward: start")
        last = self._number(end, 0, "backward: end")
        allowed = self.outputs if start is None else list(self.layers[first].param.top)
        for name, array in top_diffs.items():
            if name not in allowed:
                raise CaffeError(f"backward: {name!r} is given a diff; expected one of {sorted(allowed)}")
            self.blobs[name].diff[...] = self._fitting("backward", name, array)
        self.propagate(first, last)
        names = self.inputs if end is None else list(self.layers[last].param.bottom)
        return {name: self.blobs[name].diff for name in [*names, *(diffs or [])]}

    def forward_all(self, blobs: Iterable[str] | None = None, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Forward passes over inputs of any number of rows, in batches of the net's size; pycaffe's.

        Parameters and result are `forward`'s, but with all rows; the last batch is filled up with zeros.
        """
        names = [*self.outputs, *(blobs or [])]
        parts = [
            {name: out[name][:count].copy() for name in names}
            for batch, count in self._batches(inputs)
            for out in [self.forward(blobs, None, None, **batch)]
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def forward_backward_all(
        self, blobs: Iterable[str] | None = None, diffs: Iterable[str] | None = None, **arrays: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Forward and backward passes over any number of rows, in batches of the net's size; pycaffe's.

        Parameters
        ----------
        blobs, diffs: names of blobs whose values and whose diffs to return beside the outputs' and the inputs'.
        arrays: for the input blobs their values, for the output blobs their diffs.

        Returns
        -------
        The values and the diffs, by name, with all rows.
        """
        names, diff_names = [*self.outputs, *(blobs or [])], [*self.inputs, *(diffs or [])]
        values: list[dict[str, np.ndarray]] = []
        gradients: list[dict[str, np.ndarray]] = []
        for batch, count in self._batches(arrays):
            out = self.forward(blobs, None, None, **{name: batch[name] for name in batch if name in self.inputs})
            values.append({name: out[name][:count].copy() for name in names})
            back = self.backward(diffs, None, None, **{name: batch[name] for name in batch if name not in self.inputs})
            gradients.append({name: back[name][:count].copy() for name in diff_names})
        return (
            {name: np.concatenate([part[name] for part in values]) for name in names},
            {name: np.concatenate([part[name] for part in gradients]) for name in diff_names},
        )

    def _batches(self, arrays: dict[str, np.ndarray]) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """The arrays in pieces of the net's batch size, and how many rows of each piece are real."""
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) != 1 or sizes == {0}:
            raise CaffeError(f"arrays of {sorted(sizes) or 'no'} rows; expected one number of rows, 1 or more, for all")
        total, size = sizes.pop(), self.blobs[next(iter(arrays))].shape[0]
        for first in range(0, total, size):
            count = min(size, total - first)
            batch = {name: np.asarray(array[first : first + count], np.float32) for name, array in arrays.items()}
            if count < size:
                batch = {
                    name: np.concatenate([array, np.zeros((size - count, *array.shape[1:]), np.float32)])
                    for name, array in batch.items()
                }
            yield batch, count

    def _fitting(self, what: str, name: str, array: np.ndarray) -> np.ndarray:
        """An array for a blob in the blob's shape; axes of size 1 may be missing, but for the first.

        One that has as many rows is spread over axes of which it has one value alone, as numpy does on assignment.
        """
        array, shape = np.asarray(array), self.blobs[name].shape
        if array.shape[:1] == shape[:1]:
            if [n for n in array.shape if n != 1] == [n for n in shape if n != 1]:
                return array.reshape(shape)
            if array.ndim == len(shape) and all(n in (1, size) for n, size in zip(array.shape, shape, strict=True)):
                return np.broadcast_to(array, shape)
        raise CaffeError(f"{what}: {name!r} has shape {array.shape}; expected {shape}")

    def _number(self, layer: str | None, default: int, what: str) -> int:
        if layer is None:
            return default
        if layer not in self.layer_dict:
            raise CaffeError(f"{what}: no layer {layer!r}; expected one of {', '.join(self.layer_dict)}")
        return self._layer_names.index(layer)

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Let the net's first layer, a MemoryData layer, read these rows; pycaffe's.

        Parameters
        ----------
        data: N×C×H×W, float32; N is a multiple of the layer's batch size.
        labels: N values.
        """
        layer: Any = self.layers[0]
        if layer.type != "MemoryData":
            layer.error("set_input_arrays needs a MemoryData layer as the net's first")
        layer.set_input_arrays(data, labels)

    # Looking at a pass layer by layer

    def before_forward(self, hook: Callable[[int], Any]) -> None:
        """Call `hook` with each layer's number before its forward pass; pycaffe's, like the next three.

        While there is a hook the layers run one by one, and what it writes into blobs counts.
        """
        self._hooks["before_forward"].append(hook)

    def after_forward(self, hook: Callable[[int], Any]) -> None:
        """Call `hook` with each layer's number after its forward pass."""
        self._hooks["after_forward"].append(hook)

    def before_backward(self, hook: Callable[[int], Any]) -> None:
        """Call `hook` with each layer's number before its backward pass."""
        self._hooks["before_backward"].append(hook)

    def after_backward(self, hook: Callable[[int], Any]) -> None:
        """Call `hook` with each layer's number after its backward pass."""
        self._hooks["after_backward"].append(hook)

    # The numbers that pycaffe scripts of all years look at

    @property
    def _layer_names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    @property
    def _blob_names(self) -> list[str]:
        return list(self.blobs)

    @property
    def _blobs(self) -> list[Blob]:
        return list(self.blobs.values())

    @property
    def _blob_loss_weights(self) -> list[float]:
        return list(self.blob_loss_weights.values())

    @property
    def _inputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.inputs]

    @property
    def _outputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.outputs]

    def _top_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self.layers[layer].param.top]

    def _bottom_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self.layers[layer].param.bottom]

    def _forward(self, start: int, end: int) -> float:
        return float(self.compute(start, end, fuse=False))

    def _backward(self, start: int, end: int) -> None:
        self.propagate(start, end)

    # Weights

    def copy_from(self, weights: StrPath) -> None:
        """Copy parameters from a .caffemodel(.h5), by layer name; layers that this net lacks are passed over.

        Raises CaffeError where a layer's parameters differ in number or shape, naming both; nothing is copied then.
        """
        if str(weights).endswith(".h5"):
            read_hdf5(weights, self.layer_dict)
        else:
            read_caffemodel(weights, self.layer_dict)

    def share_with(self, other: Net) -> None:
        """Have the values of `other`'s parameters, by layer name: what changes there changes here, and the reverse.

        Diffs, and lr_mult and decay_mult, stay each net's own, as in Caffe: solvers of both may take turns.

        Raises CaffeError as `share_params` does.
        """
        self.share_params(other.params)

    def share_params(self, params: Mapping[str, Sequence[Parameter]]) -> None:
        """`share_with` for parameters by layer, such as another net's `params`.

        Raises CaffeError for a layer whose parameters there have other shapes, or are shared otherwise among layers.
        """
        share(self.layer_dict, params)
        self._inference_plans = {}

    def to_proto(self, diff: bool = False) -> NetParameter:
        """The net as a message with its parameters (and with `diff` their gradients), as a .caffemodel holds it."""
        proto = NetParameter(name=self.param.name)
        for layer in self.layers:
            out = proto.layer.add()
            out.CopyFrom(layer.param)
            out.top[:] = [top for top in layer.param.top if not top.startswith(AUTOMATIC)]
            for blob in layer.blobs:
                out.blobs.append(array_to_blobproto(blob.data, blob.diff if diff else None))
        return proto

    def save(self, path: StrPath, write_diff: bool = False) -> None:
        """Write a .caffemodel, all or nothing, and if asked for with the gradients."""
        replace_bytes(path, self.to_proto(write_diff).SerializeToString())

    def save_hdf5(self, path: StrPath, write_diff: bool = False) -> None:
        """Write a .caffemodel.h5, all or nothing, and if asked for with the gradients; pycaffe's."""
        write_hdf5(path, self.layer_dict, write_diff)

    def load_hdf5(self, path: StrPath) -> None:
        """Copy parameters from a .caffemodel.h5 by layer name, as `copy_from` does from a .caffemodel; pycaffe's."""
        read_hdf5(path, self.layer_dict)
