"""The Python layer: a layer that a script writes as a class derived from `caffe.Layer`, and numpy arrays in its hands.

The prototxt names the class: `type: "Python" python_param { module: "my_layers" layer: "MyLayer" param_str: "…" }`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .. import context
from ..blob import Blob, Parameter
from ..proto.caffe_pb2 import LayerParameter
from .base import Layer, Shape, register


class Parameters(list[Parameter]):
    """A layer's parameters, to which a script adds one by its shape, filled with zeros: `blobs.add_blob(3, 4)`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def add_blob(self, *shape: int) -> None:
        """Make the next parameter."""
        self.append(Parameter(shape, self._device))


class PythonLayer:
    """What a script's layer derives from, as `caffe.Layer`; pycaffe's.

    It defines `reshape(bottom, top)`, which gives the tops their shapes (`top[0].reshape(2, 3)`) and is called before
    each forward pass; `forward(bottom, top)`, which fills `top[i].data[...]`; where a gradient is to pass,
    `backward(top, propagate_down, bottom)`, which fills `bottom[i].diff[...]` for the bottoms whose `propagate_down[i]`
    is true, from `top[i].diff`, and adds to `self.blobs[i].diff[...]`; and if it wants `setup(bottom, top)`, called
    once, where parameters are made by `self.blobs.add_blob(*shape)`.

    An exception that it raises reaches the caller as it is, with a note that names the layer (from Python 3.11 on).

    Attributes
    ----------
    blobs: the parameters; `blobs[i].data` and `.diff` are float32 arrays.
    param_str: `python_param`'s `param_str`.
    phase: caffe.TRAIN or caffe.TEST.
    """

    blobs: Parameters
    param_str: str
    param_str_: str
    phase: int
    type = "Python"

    def __init__(self, param: LayerParameter) -> None:
        """`param`: the layer's message."""

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Check the settings and make the parameters."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give the tops their shapes."""
        raise NotImplementedError("expected a method reshape(self, bottom, top)")

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Compute the tops' data."""
        raise NotImplementedError("expected a method forward(self, bottom, top)")

    def backward(self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]) -> None:
        """Compute the bottoms' diffs, and add to the parameters'."""
        raise NotImplementedError("expected a method backward(self, top, propagate_down, bottom)")


class _Bridge(torch.autograd.Function):
    """A script's forward and backward in the graph of the others. Inputs: the layer, its bottoms, its parameters."""

    @staticmethod
    def forward(ctx: Any, layer: Python, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.layer, ctx.dtypes, ctx.scale = layer, [x.dtype for x in tensors], _gradient_scale(layer.device)
        return tuple(layer.compute(tensors[: len(layer.param.bottom)]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed, scale = ctx.needs_input_grad[1:], ctx.scale
        computed = ctx.layer.propagate([gradient.float() / scale for gradient in gradients], needed)
        return None, *(
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(computed, ctx.dtypes, strict=True)
        )


def _gradient_scale(device: torch.device) -> float:
    """How much larger than they are the net computes its gradients. A script may not pass its tops' on, but make its
    own: so it is given them as they are."""
    if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) is torch.float16:
        return context.FLOAT16_LOSS_SCALE
    return 1.0


@register("Python")
class Python(Layer):
    """Tops and gradients as the class of a script computes them.

    The blobs that it is given are its own. A bottom's data are the values that came in, not a copy; a top in its
    bottom's place is the same blob; what the script puts into a top stays there until it puts something else. What is
    no attribute of the engine's layer is one of the script's object: `net.layers[0].set_roidb(…)` reaches it.

    Attributes
    ----------
    instance: the script's object.
    """

    bottoms = (0, None)
    tops = (0, None)
    recordable = False
    instance: PythonLayer

    def __init__(self, param: LayerParameter, device: torch.device, generator: torch.Generator) -> None:
        super().__init__(param, device, generator)
        self.blobs = self._parameters = Parameters(device)
        self._bottom = [Blob((), device) for _ in param.bottom]
        self._in_place = {i for i, name in enumerate(param.top) if list(param.bottom[i : i + 1]) == [name]}
        self._top = [self._bottom[i] if i in self._in_place else Blob((), device) for i in range(len(param.top))]
        instance = self._script_class()(param)
        instance.blobs, instance.phase = self._parameters, int(param.phase)
        # the second is its name in Caffe before 2015
        instance.param_str = instance.param_str_ = param.python_param.param_str
        self.instance = instance

    def _script_class(self) -> type[PythonLayer]:
        p = self.param.python_param
        if not p.module or not p.layer:
            self.error(f"python_param has module {p.module!r} and layer {p.layer!r}; expected a module and its class")
        with self._noted("the import of the module"):
            try:
                module = importlib.import_module(p.module)
            except ModuleNotFoundError as error:
                if not f"{p.module}.".startswith(f"{error.name}."):
                    raise  # what is missing is something that the module imports
                self.error(f"there is no module {p.module!r}; expected it in a folder of sys.path (PYTHONPATH)")
        cls = getattr(module, p.layer, None)
        if not isinstance(cls, type) or not issubclass(cls, PythonLayer):
            self.error(f"{p.layer!r} in module {p.module!r} is {cls!r}; expected a class derived from caffe.Layer")
        return cls

    def __getattr__(self, name: str) -> Any:
        if "instance" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.instance, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = "instance" not in self.__dict__ or name in self.__dict__ or hasattr(type(self), name)
        if own:
            super().__setattr__(name, value)
        else:
            setattr(self.instance, name, value)

    @contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        """Leave the script's exceptions as they are, but say where they come from."""
        try:
            yield
        except Exception as error:
            if hasattr(error, "add_note"):
                p = self.param.python_param
                error.add_note(f"in {what} of layer {self.param.name!r} (Python, {p.module}.{p.layer})")
            raise

    def setup(self, shapes: list[Shape]) -> None:
        for blob, shape in zip(self._bottom, shapes, strict=True):
            blob.set_shape(shape)
        with self._noted("setup"):
            self.instance.setup(self._bottom, self._top)

    def set_loss_weights(self, weights: Sequence[float]) -> None:
        for blob, weight in zip(self._top, weights, strict=True):
            blob.set_default_diff(weight)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        for blob, shape in zip(self._bottom, shapes, strict=True):
            blob.set_shape(shape)
        with self._noted("reshape"):
            self.instance.reshape(self._bottom, self._top)
        return [blob.shape for blob in self._top]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        parameters = [blob.tensor() for blob in self._parameters]
        if self._top and torch.is_grad_enabled() and any(x.requires_grad for x in (*bottoms, *parameters)):
            return list(_Bridge.apply(self, *bottoms, *parameters))
        return self.compute(bottoms)

    def compute(self, bottoms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tops, without a graph: copies, since the script's blobs keep their memory."""
        for i, (blob, tensor) in enumerate(zip(self._bottom, bottoms, strict=True)):
            blob.set_tensor(tensor.detach().clone() if i in self._in_place else tensor.detach())
        with self._noted("reshape"):
            self.instance.reshape(self._bottom, self._top)
        with self._noted("forward"):
            self.instance.forward(self._bottom, self._top)
        return [blob.tensor().clone() for blob in self._top]

    def propagate(self, gradients: Sequence[torch.Tensor], needed: Sequence[bool]) -> list[torch.Tensor | None]:
        """The script's gradients of the bottoms and then of the parameters, where needed, given those of the tops."""
        for blob, gradient in zip(self._top, gradients, strict=True):
            blob.set_diff(gradient.clone())
        # The parameters' diffs hold what earlier passes added up. A script may add to them or, as in Caffe, overwrite
        # them: the difference that it makes is the gradient of this pass, and the net adds that.
        count = len(self._bottom)
        learned = [blob for blob, need in zip(self._parameters, needed[count:], strict=True) if need]
        before = [blob.diff_tensor() for blob in learned]
        for blob, diff in zip(learned, before, strict=True):
            blob.set_diff(diff.clone())
        try:
            with self._noted("backward"):
                self.instance.backward(self._top, list(needed[:count]), self._bottom)
            made = {id(blob): blob.diff_tensor() - diff for blob, diff in zip(learned, before, strict=True)}
        finally:
            for blob, diff in zip(learned, before, strict=True):
                blob.set_diff(diff)
        return [
            *(blob.diff_tensor().clone() if need else None for blob, need in zip(self._bottom, needed, strict=False)),
            *(made.get(id(blob)) for blob in self._parameters),
        ]
