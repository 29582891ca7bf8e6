"""The .solverstate, a binary proto: what a solver needs, beside the weights, to go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from .errors import CaffeError
from .files import StrPath, replace_bytes
from .hdf5 import Shape, State
from .io import array_to_blobproto, blobproto_to_array, read_binary
from .proto.caffe_pb2 import BlobProto, SolverState
from .schedules import Progress


def check_counts(path: StrPath, state: State) -> None:
    """Raise CaffeError for numbers that no training can have come to."""
    fewest = [("iter", state.iteration, 0), ("averaged", state.averaged, 1 if state.average else 0)]
    if state.progress is not None:
        counts = ("tests_since_best", "tests_waited", "rate_reductions")
        fewest += [(name, getattr(state.progress, name), 0) for name in counts]
    for name, value, least in fewest:
        if value < least:
            raise CaffeError(f"{path}: {name} is {value}; expected at least {least}")


def write_state(path: StrPath, state: State) -> None:
    """Write a .solverstate, all or nothing."""
    proto = SolverState(iter=state.iteration, learned_net=state.learned_net, current_step=state.current_step)
    proto.history.extend(map(array_to_blobproto, state.history))
    for layer, values in state.layer_states.items():
        proto.layer_state.add(layer=layer, **values)
    proto.loss_window.extend(state.loss_window)
    if state.average:
        proto.average.extend(map(array_to_blobproto, state.average))
        proto.averaged = state.averaged
    if state.progress is not None:
        proto.MergeFrom(SolverState(**asdict(state.progress)))
    replace_bytes(path, proto.SerializeToString())


def read_state(path: StrPath, history: Sequence[Shape], average: Sequence[Shape]) -> State:
    """Read a .solverstate, ours or Caffe's own.

    Parameters
    ----------
    path: of the file.
    history: the shapes of the update rule's memory that the solver and its net need.
    average: the shapes of the net's parameters; an average in the file has them. Empty: it is not read.

    Raises
    ------
    CaffeError: the file is missing or none, or an array of it is missing or does not fit.
    """
    proto = read_binary(path, SolverState())
    states = {
        entry.layer: {"position": entry.position, "random_state": entry.random_state} for entry in proto.layer_state
    }
    averaged = bool(average and proto.average)
    return State(
        iteration=proto.iter,
        learned_net=proto.learned_net,
        current_step=proto.current_step,
        history=_read_arrays(path, "history", proto.history, history),
        layer_states=states,
        loss_window=list(proto.loss_window),
        average=_read_arrays(path, "average", proto.average, average) if averaged else (),
        averaged=proto.averaged if averaged else 0,
        progress=_read_progress(proto),
    )


def _read_progress(proto: SolverState) -> Progress | None:
    if not proto.HasField("tested_iter"):
        return None
    return Progress(
        best=proto.best if proto.HasField("best") else None,
        tests_since_best=proto.tests_since_best,
        tests_waited=proto.tests_waited,
        rate_reductions=proto.rate_reductions,
        tested_iter=proto.tested_iter,
    )


def _read_arrays(path: StrPath, name: str, blobs: Sequence[BlobProto], shapes: Sequence[Shape]) -> list[np.ndarray]:
    """The blobs of a .solverstate's field as arrays of these shapes."""
    if len(blobs) != len(shapes):
        plural = {"history": "histories", "average": "averages"}[name]
        raise CaffeError(f"{path}: has {len(blobs)} {plural}; this solver and net need {len(shapes)}")
    arrays = []
    for i, (blob, shape) in enumerate(zip(blobs, shapes, strict=True)):
        try:
            array = blobproto_to_array(blob)
        except CaffeError as error:
            raise CaffeError(f"{path}: {name} {i}: {error}") from None
        if array.size != math.prod(shape):
            raise CaffeError(f"{path}: {name} {i} has shape {array.shape}; expected {shape}")
        arrays.append(array.reshape(shape))
    return arrays
