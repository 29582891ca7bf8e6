"""Batches that are read and decoded ahead of their use, on threads, so that a training does not wait for the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch

from ..context import to_device
from ..errors import CaffeError
from ..proto.caffe_pb2 import LayerParameter
from .base import RandomLayer

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
# a batch of images N×C×H×W, or where their sizes differ a list of C×H×W, and of labels N
Batch = tuple[np.ndarray | list[np.ndarray], np.ndarray]

DECODERS = min(os.cpu_count() or 1, 8)  # threads that decode a layer's images; more do not pay beside the training

MOST_AHEAD = 1000  # batches; each takes its memory


class Ahead(Generic[T]):
    """The items of an endless iterator in order, made on a thread of its own, up to `depth` ahead of their use."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items, self._depth = items, depth
        self._thread = ThreadPoolExecutor(1)
        self._made: deque[Future[T]] = deque()

    def __next__(self) -> T:
        while len(self._made) <= self._depth:
            self._made.append(self._thread.submit(next, self._items))
        return self._made.popleft().result()

    def close(self) -> None:
        """Stop, once what is being made is done."""
        self._thread.shutdown(cancel_futures=True)


def stack(images: Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array of images of one size and kind, else a list of them."""
    alike = all((image.shape, image.dtype) == (images[0].shape, images[0].dtype) for image in images)
    return np.stack(images) if alike else list(images)


def tensors(images: np.ndarray | list[np.ndarray], device: torch.device) -> torch.Tensor | list[torch.Tensor]:
    """The images of a batch on the device."""
    if isinstance(images, np.ndarray):
        return to_device(torch.from_numpy(images), device)
    return [torch.tensor(image, device=device) for image in images]


class PrefetchingLayer(RandomLayer, Generic[T]):
    """A data layer whose batches are made ahead by `batches`, on another thread.

    What is random in a batch depends on the layer's seed and the batch's place alone, or is drawn when it is used,
    from the layer's generator: so it does not matter how far ahead the thread is.

    Attributes
    ----------
    position: where the next batch begins: records read so far.
    """

    bottoms: ClassVar[tuple[int, int | None]] = (0, 0)
    differentiable = False
    draws_on_cpu = True  # a few numbers a batch

    def __init__(self, param: LayerParameter, device: torch.device, generator: torch.Generator) -> None:
        super().__init__(param, device, generator)
        if param.data_param.prefetch > MOST_AHEAD:
            self.error(f"prefetch is {param.data_param.prefetch}; expected at most {MOST_AHEAD}")
        self.position = 0
        self._ahead: Ahead[T] | None = None
        # The two pools end by themselves when nobody holds them any more. Nothing waits for that: it may be the
        # garbage collector that lets go of them, in one of their own threads.
        self._decoders: ThreadPoolExecutor | None = None

    @property
    def seed(self) -> int:
        """Of all that is drawn ahead; it is part of the generator's state, and so of a snapshot."""
        return self.random.initial_seed()

    def decode_all(self, decode: Callable[[R], S], records: Sequence[R]) -> list[S]:
        """`decode` of each record, in order, by several threads, each taking some at a time."""
        if self._decoders is None:
            self._decoders = ThreadPoolExecutor(DECODERS)
        size = max(len(records) // (4 * DECODERS), 1)
        parts = [records[i : i + size] for i in range(0, len(records), size)]
        decoded = self._decoders.map(lambda part: [decode(record) for record in part], parts)
        return [item for part in decoded for item in part]

    def batches(self, position: int) -> Iterator[T]:
        """The batches from `position` on, without end. Raises CaffeError without the layer's name."""
        raise NotImplementedError

    def next_batch(self) -> T:
        """The batch at `position`. After an error, and after `set_state`, all begins anew there."""
        if self._ahead is None:
            # Caffe reads the depth from data_param in layers of every type
            self._ahead = Ahead(self.batches(self.position), max(self.param.data_param.prefetch, 1))
        try:
            return next(self._ahead)
        except CaffeError as error:
            self.stop()
            self.error(str(error))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Let go of what was made ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def state(self) -> dict[str, Any]:
        return {"position": self.position, **super().state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.stop()
        if "position" not in state:
            self.error("the snapshot has no position for it")
        self.position = int(state["position"])
