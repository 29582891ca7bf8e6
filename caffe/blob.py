"""Blob: Caffe's n-dimensional array with its gradient, a torch tensor on the net's device seen as numpy arrays."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch

from .errors import CaffeError

MOST_VALUES = 2**31 - 1  # of a blob, and
MOST_AXES = 32  # its axes: Caffe's limits


def check_shape(shape: Sequence[int]) -> None:
    """Raise CaffeError for a shape that no blob can have, in Caffe as here."""
    if len(shape) > MOST_AXES:
        raise CaffeError(f"a shape of {len(shape)} axes; a blob has at most {MOST_AXES}")
    if any(size < 0 for size in shape):
        raise CaffeError(f"a size is negative in {tuple(shape)}")
    if math.prod(size for size in shape if size) > MOST_VALUES:
        raise CaffeError(f"the shape {tuple(shape)}; a blob has at most {MOST_VALUES} values")


class _Synced:
    """One of a blob's two arrays. The tensor may have any dtype and memory format and live on any device.

    `array()` is float32 in C order. Where the tensor is that already, on the CPU, the array is a view of it; else it
    is a host copy, and what is written into it goes back to the device when a layer reads it, as in Caffe.

    Parameters
    ----------
    keeps: whether it goes back into the same tensor, as what was recorded of the device's work needs, or a new one.

    Attributes
    ----------
    default: what all values are while nothing has set them.
    taken: how many arrays have been given out.
    """

    def __init__(self, keeps: bool = False) -> None:
        self._keeps = keeps
        self.default = 0.0
        self.taken = 0
        self._arrays: list[weakref.ref[np.ndarray]] = []
        self._tensor: torch.Tensor | None = None
        self._host: np.ndarray | None = None

    def clear(self) -> None:
        self._tensor = self._host = None

    def set(self, tensor: torch.Tensor) -> None:
        self._tensor, self._host = tensor, None

    def array(self, shape: tuple[int, ...], device: torch.device) -> np.ndarray:
        if self._host is not None:
            return self._host
        if self._tensor is None:
            self._tensor = torch.full(shape, self.default, device=device)
        # .contiguous() and .float() return the tensor itself where it has that form already: then a view
        host = self._tensor.detach().to("cpu", torch.float32).contiguous()
        if host.device == self._tensor.device and host.data_ptr() == self._tensor.data_ptr():
            return host.numpy()
        self._host = host.numpy()
        return self._host

    def tensor(self, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        if self._tensor is None:
            self._tensor = torch.full(shape, self.default, device=device)
        elif self._host is not None:
            # the host copy may have been written to: it is the newer one
            host, self._host = torch.from_numpy(self._host), None
            if self._keeps:
                self._tensor.data.copy_(host)  # a graph that has read it may still be gone back through
            else:
                self._tensor = host.to(device)
        return self._tensor

    def take(self, shape: tuple[int, ...], device: torch.device) -> np.ndarray:
        """`array`, of which it is noted that somebody has it."""
        array = self.array(shape, device)
        self.taken += 1
        # views of an array keep the array itself alive
        self._arrays = [other for other in self._arrays if other() is not None] + [weakref.ref(array)]
        return array

    @property
    def held(self) -> bool:
        """Whether somebody still has an array, into which he may write at any time."""
        return any(array() is not None for array in self._arrays)

    @property
    def empty(self) -> bool:
        return self._tensor is None


class Blob:
    """Data and diff of one shape, float32 as numpy sees them.

    Parameters
    ----------
    shape: sizes of the axes; a batch of images is N×C×H×W; `()` is a scalar.
    device: where the tensors live.

    Notes
    -----
    An array taken from `data` or `diff` is up to date when it is taken. After another forward or backward pass take
    it again (as with Caffe in GPU mode).
    """

    def __init__(self, shape: Sequence[int] = (), device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self._shape = tuple(int(n) for n in shape)
        check_shape(self._shape)
        self._data, self._diff = _Synced(), _Synced()

    @property
    def data(self) -> np.ndarray:
        """The values, float32; write into it with `blob.data[...] = x`."""
        return self._data.array(self._shape, self.device)

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self.data[...] = value

    @property
    def diff(self) -> np.ndarray:
        """The gradient of the loss with respect to the values, float32; writable like `data`."""
        return self._diff.take(self._shape, self.device)

    @diff.setter
    def diff(self, value: np.ndarray) -> None:
        self.diff[...] = value

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self._shape

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self._shape)

    def _legacy(self, axis: int) -> int:
        if len(self._shape) > 4:
            raise CaffeError(f"num, channels, height and width need at most 4 axes; the blob's shape is {self._shape}")
        return self._shape[axis] if axis < len(self._shape) else 1

    num = property(lambda self: self._legacy(0), doc="Size of axis 0, or 1.")
    channels = property(lambda self: self._legacy(1), doc="Size of axis 1, or 1.")
    height = property(lambda self: self._legacy(2), doc="Size of axis 2, or 1.")
    width = property(lambda self: self._legacy(3), doc="Size of axis 3, or 1.")

    def reshape(self, *shape: int) -> None:
        """Give the blob another shape. Values are kept where the count stays the same, else they become 0.

        Raises CaffeError for a size below 0, and beyond Caffe's limits of 32 axes and 2^31 − 1 values.
        """
        self.set_shape(tuple(int(n) for n in shape))

    # What follows is for the engine: tensors rather than arrays.

    def set_shape(self, shape: tuple[int, ...]) -> None:
        """`reshape`, with the sizes in one tuple."""
        if shape == self._shape:
            return
        check_shape(shape)
        same_count = math.prod(shape) == self.count
        for side in (self._data, self._diff):
            if same_count and not side.empty:
                side.set(side.tensor(self._shape, self.device).detach().reshape(shape).clone())
            else:
                side.clear()
        self._shape = shape

    def tensor(self) -> torch.Tensor:
        """The values on the blob's device."""
        return self._data.tensor(self._shape, self.device)

    def set_tensor(self, tensor: torch.Tensor) -> None:
        """Take `tensor`, of any dtype and memory format, as the values; its shape becomes the blob's."""
        if tensor.shape != self._shape:
            self._shape = tuple(tensor.shape)
            self._diff.clear()
        self._data.set(tensor)

    @property
    def has_diff(self) -> bool:
        """False while the diff is all zeros, or a loss's weight, because nothing has set it."""
        return not self._diff.empty

    def diff_tensor(self) -> torch.Tensor:
        """The gradient on the blob's device."""
        return self._diff.tensor(self._shape, self.device)

    def set_diff(self, tensor: torch.Tensor) -> None:
        """Take `tensor`, of the blob's shape, as the gradient."""
        self._diff.set(tensor)

    def clear_diff(self) -> None:
        """Make the gradient 0, or the loss's weight."""
        self._diff.clear()

    def set_default_diff(self, value: float) -> None:
        """What the gradient is while nothing has set it: of a loss its weight, else 0."""
        self._diff.default = value


class Parameter(Blob):
    """A learned blob: float32, contiguous, a leaf of the graph where its gradient is wanted.

    Its diff accumulates over backward passes until `clear_diff`, as in Caffe.

    Attributes
    ----------
    lr_mult, decay_mult: what the solver's learning rate and weight decay are multiplied with.
    forced: whether its gradient is wanted even where lr_mult is 0 (`force_backward`).
    """

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        super().__init__(shape, device)
        self.name = ""
        self.lr_mult = 1.0
        self.decay_mult = 1.0
        self.forced = False
        self._data = _Synced(keeps=True)
        self._alias: tuple[torch.Tensor, torch.Tensor] | None = None  # of shared values: theirs, and this one's leaf
        self._shares = self._shared = False
        with torch.inference_mode(False):  # a tensor that counts its changes, wherever the net is made
            self._data.set(torch.zeros(self._shape, device=device))

    @property
    def data(self) -> np.ndarray:
        """The values, float32; write into it with `blob.data[...] = x`."""
        return self._data.take(self._shape, self.device).reshape(self._shape)

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self.data[...] = value

    @property
    def owner(self) -> Parameter:
        """The parameter that holds values and diff: itself, but for a `Reshaped` one."""
        return self

    @property
    def taken(self) -> int:
        """How many arrays of the values have been given out, by this parameter and those that share them."""
        return self._data.taken

    @property
    def held(self) -> bool:
        """Whether somebody has an array of the values, into which he may write at any time."""
        return self._data.held

    @property
    def needs_diff(self) -> bool:
        """Whether a backward pass computes its gradient."""
        return self.lr_mult != 0 or self.forced

    def share(self, other: Parameter) -> None:
        """Have another's values, of as many, from now on: what changes there changes here, and the other way round.

        The diff, lr_mult and decay_mult stay its own. (Caffe's Blob::ShareData.)
        """
        owner = other.owner
        if self._data is not owner._data:
            self._data, self._alias, self._shares = owner._data, None, True
            self._shared = owner._shared = True

    def shares_with(self, other: Parameter) -> bool:
        """Whether the values are the same ones."""
        return self.owner._data is other.owner._data

    def tensor(self) -> torch.Tensor:
        leaf = super().tensor()
        if self._shares:
            if self._alias is None or self._alias[0] is not leaf:
                with torch.inference_mode(False):  # counts its changes together with the other
                    self._alias = leaf, leaf.detach().view(self._shape)
            leaf = self._alias[1]
        if leaf.requires_grad != self.needs_diff:
            leaf.requires_grad_(self.needs_diff)
        return leaf

    def set_shape(self, shape: tuple[int, ...]) -> None:
        if shape != self._shape and self._shared:  # the others' values stay as they are
            own = _Synced(keeps=True)
            own.set(self.tensor().detach().clone())
            self._data, self._alias, self._shares, self._shared = own, None, False, False
        super().set_shape(shape)

    def accumulate(self, gradient: torch.Tensor) -> None:
        """Add to the diff, which is contiguous as the parameter is: the optimiser walks both in memory order."""
        if self.has_diff:
            self.diff_tensor().add_(gradient)
        else:
            self.set_diff(gradient.contiguous())

    def clear_diff(self) -> None:
        """Make the gradient 0, in arrays of it that somebody has too, where they are no copies."""
        if self.device.type == "cpu" and self._diff.held:
            self.diff_tensor().zero_()
        else:
            self._diff.clear()


class Reshaped(Parameter):
    """A parameter that shares its values and its diff with an earlier layer's, in another shape of as many values."""

    def __init__(self, owner: Parameter, shape: Sequence[int]) -> None:
        super().__init__(shape, owner.device)
        self._owner = owner.owner
        self._data.clear()

    @property
    def owner(self) -> Parameter:
        return self._owner

    @property
    def data(self) -> np.ndarray:
        """The values, float32; write into it with `blob.data[...] = x`."""
        return self._owner.data.reshape(self._shape)

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self.data[...] = value

    @property
    def diff(self) -> np.ndarray:
        """The gradient of the loss with respect to the values, float32; writable like `data`."""
        return self._owner.diff.reshape(self._shape)

    @diff.setter
    def diff(self, value: np.ndarray) -> None:
        self.diff[...] = value

    def tensor(self) -> torch.Tensor:
        return self._owner.tensor().view(self._shape)

    def diff_tensor(self) -> torch.Tensor:
        return self._owner.diff_tensor().view(self._shape)

    @property
    def has_diff(self) -> bool:
        """False while the diff is all zeros because nothing has set it."""
        return self._owner.has_diff

    def clear_diff(self) -> None:
        """Make the gradient 0."""
        self._owner.clear_diff()
