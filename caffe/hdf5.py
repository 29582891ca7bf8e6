"""Caffe's HDF5 files: weights (`.caffemodel.h5`), solver states (`.solverstate.h5`) and rows of data, as numpy arrays.

A weights file holds parameter I of a layer as the data set `/data/LAYER/I`, and its gradient, where asked for, as
`/diff/LAYER/I`. A state holds `/iter`, `/learned_net`, `/current_step` and the update rule's memory `/history/I`; and
of ours, which Caffe passes over, `/layer_state`, `/loss_window`, `/average/I`, `/averaged` and what `Progress` has.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from .errors import CaffeError
from .files import StrPath, replacing
from .schedules import Progress

Shape = tuple[int, ...]


# Weights


def write_weights(
    path: StrPath,
    layers: Mapping[str, Sequence[np.ndarray | None]],
    diffs: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> None:
    """Write a net's parameters, all or nothing.

    Parameters
    ----------
    path: of the file; Caffe's name ends in `.caffemodel.h5`.
    layers: each layer's parameters by its name; None for one that an earlier layer owns, which is not written again.
        A layer without parameters has an empty list, and an empty group in the file, as Caffe writes it.
    diffs: the gradients likewise, but those of shared parameters too, as in Caffe; default: none are written.

    Raises
    ------
    CaffeError: the file cannot be written, or a layer's name cannot be a path in it. A slash within a name makes
        nested groups (with which Caffe's own writer stops).
    """
    with _replacing(path) as file:
        for top, arrays_of in (("data", layers), ("diff", diffs)):
            if arrays_of is None:
                continue
            group = file.create_group(top)
            for name, arrays in arrays_of.items():
                if not _is_path(name) or group.get(name, getclass=True) is h5py.Dataset:
                    raise CaffeError(f"{path}: the layer name {name!r} cannot be the path of a group; expected another")
                layer = group.require_group(name)
                for i, array in enumerate(arrays):
                    if array is not None:
                        layer.create_dataset(str(i), data=array, dtype=np.float32)


def read_weights(
    path: StrPath, layers: Mapping[str, Sequence[Shape]], shared: Collection[tuple[str, int]] = ()
) -> dict[str, dict[int, np.ndarray]]:
    """Read the parameters of those of `layers` that a weights file holds.

    Parameters
    ----------
    path: of the file.
    layers: the shapes of each layer's parameters by its name. Layers of the file that are not among them are passed
        over, and layers that the file lacks are not in the result.
    shared: (layer, I) of parameters that an earlier layer owns: the file need not have them.

    Returns
    -------
    By layer and then by I, float32 arrays of those shapes.

    Raises
    ------
    CaffeError: naming the file and the data set: not an HDF5 file, no `/data`, a parameter that is missing, of
        another shape or not of numbers, or one more than the layer has.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    with _reading(path) as file:
        data = _group(path, file, "data")
        for name, shapes in layers.items():
            if not _is_path(name) or name not in data:
                continue
            layer = _group(path, data, name)
            # a group in it belongs to another layer, whose name goes on behind a slash
            for key in layer:
                if layer.get(key, getclass=True) is not h5py.Group and key not in map(str, range(len(shapes))):
                    _fail(path, layer, key, f"is no parameter of layer {name!r}, which has {len(shapes)}")
            found[name] = {
                i: _array(path, layer, str(i), shape)
                for i, shape in enumerate(shapes)
                if str(i) in layer or (name, i) not in shared
            }
    return found


# Solver states


@dataclass(frozen=True)
class State:
    """What a solver needs, beside the weights, to go on.

    Attributes
    ----------
    iteration: iterations done.
    learned_net: path of the weights of the same moment; empty where the file names none.
    current_step: steps that the learning rate has made.
    history: the update rule's memory, float32, in the order of a `.solverstate`.
    layer_states: what `Layer.state` gave, by layer: `position` (int) and `random_state` (bytes). With this and what
        follows, which are additions of this project that Caffe passes over, a resumed run equals one never stopped.
    loss_window: the last losses, over which the logged loss is averaged.
    average: the average of the weights, a float32 array for each parameter of the net; empty where there is none.
    averaged: how many sets of weights it is made of.
    progress: what the tests have said; None where nothing depends on it.
    """

    iteration: int
    learned_net: str
    current_step: int
    history: Sequence[np.ndarray]
    layer_states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loss_window: Sequence[float] = ()
    average: Sequence[np.ndarray] = ()
    averaged: int = 0
    progress: Progress | None = None


def write_state(path: StrPath, state: State) -> None:
    """Write a solver's state, all or nothing; Caffe's name for the file ends in `.solverstate.h5`.

    Raises CaffeError where the file cannot be written.
    """
    with _replacing(path) as file:
        file.create_dataset("iter", data=[state.iteration], dtype=np.int32)
        if state.learned_net:
            _write_string(file, "learned_net", state.learned_net)
        file.create_dataset("current_step", data=[state.current_step], dtype=np.int32)
        history = file.create_group("history")
        for i, array in enumerate(state.history):
            history.create_dataset(str(i), data=array, dtype=np.float32)
        layer_states = file.create_group("layer_state")
        for i, (layer, values) in enumerate(state.layer_states.items()):
            group = layer_states.create_group(str(i))
            _write_string(group, "layer", layer)
            if "position" in values:
                group.create_dataset("position", data=[values["position"]], dtype=np.uint64)
            if "random_state" in values:
                group.create_dataset("random_state", data=np.frombuffer(values["random_state"], np.uint8))
        file.create_dataset("loss_window", data=state.loss_window, dtype=np.float32)
        if state.average:
            file.create_dataset("averaged", data=[state.averaged], dtype=np.int32)
            average = file.create_group("average")
            for i, array in enumerate(state.average):
                average.create_dataset(str(i), data=array, dtype=np.float32)
        if state.progress is not None:
            for name, value in asdict(state.progress).items():
                if value is not None:
                    file.create_dataset(name, data=[value], dtype=np.float32 if name == "best" else np.int32)


def read_state(path: StrPath, history: Sequence[Shape], average: Sequence[Shape] = ()) -> State:
    """Read a solver's state, ours or Caffe's own (with what is behind `history` in `State` left out).

    Parameters
    ----------
    path: of the file.
    history: the shapes of the update rule's memory that the solver and its net need.
    average: the shapes of the net's parameters; an average in the file has them. Empty: it is not read.

    Raises
    ------
    CaffeError: naming the file and the data set: not an HDF5 file, or one that is missing, of another shape or type.
    """
    with _reading(path) as file:
        averaged = bool(average) and "average" in file
        return State(
            iteration=_integer(path, file, "iter"),
            learned_net=_read_string(path, file, "learned_net") if "learned_net" in file else "",
            current_step=_integer(path, file, "current_step"),
            history=_arrays(path, file, "history", history),
            layer_states=dict(_layer_states(path, file)),
            loss_window=_loss_window(path, file),
            average=_arrays(path, file, "average", average) if averaged else (),
            averaged=_integer(path, file, "averaged") if averaged else 0,
            progress=_progress(path, file),
        )


def _arrays(path: StrPath, file: h5py.File, name: str, shapes: Sequence[Shape]) -> list[np.ndarray]:
    group = _group(path, file, name)
    if len(group) != len(shapes):
        _fail(path, file, name, f"holds {len(group)} arrays; this solver and net need {len(shapes)}")
    return [_array(path, group, str(i), shape) for i, shape in enumerate(shapes)]


MOST_STATE_BYTES = 1 << 20  # of a generator's state, a string or the loss window: a sane file is far below it


def _layer_states(path: StrPath, file: h5py.File) -> Iterator[tuple[str, dict[str, Any]]]:
    if "layer_state" not in file:
        return
    states = _group(path, file, "layer_state")
    for i in range(len(states)):
        group = _group(path, states, str(i))
        values: dict[str, Any] = {}
        if "position" in group:
            values["position"] = _integer(path, group, "position")
        if "random_state" in group:
            values["random_state"] = _vector(path, group, "random_state", "u").astype(np.uint8).tobytes()
        yield _read_string(path, group, "layer"), values


def _loss_window(path: StrPath, file: h5py.File) -> list[float]:
    return _vector(path, file, "loss_window", "f").tolist() if "loss_window" in file else []


def _progress(path: StrPath, file: h5py.File) -> Progress | None:
    if "tested_iter" not in file:
        return None
    progress = Progress(best=float(_array(path, file, "best", (1,))[0]) if "best" in file else None)
    for name in ("tests_since_best", "tests_waited", "rate_reductions", "tested_iter"):
        setattr(progress, name, _integer(path, file, name))
    return progress


# Rows of data


def look_at_rows(path: StrPath, names: Sequence[str]) -> tuple[int, list[Shape]]:
    """How many rows the data sets of these names have, and each one's shape of a row.

    Raises CaffeError naming the file and the data set: not an HDF5 file, a data set that is missing, not of numbers,
    without rows, or with another number of rows than the first, or one that claims far more than the file can hold.
    """
    with _reading(path) as file:
        datasets = [_dataset(path, file, name, "fiu", "numbers") for name in names]
        most = MOST_COMPRESSION * os.path.getsize(path) + MOST_STATE_BYTES
        for name, dataset in zip(names, datasets, strict=True):
            if not dataset.shape or not len(dataset):
                _fail(path, file, name, f"has shape {dataset.shape}; expected rows")
            if len(dataset) != len(datasets[0]):
                _fail(path, file, name, f"has {len(dataset)} rows; /{names[0]} has {len(datasets[0])}")
            if dataset.size * 4 > most:
                _fail(path, file, name, f"has shape {dataset.shape}, far more than is in the file")
        return len(datasets[0]), [dataset.shape[1:] for dataset in datasets]


def read_rows(path: StrPath, names: Sequence[str]) -> list[np.ndarray]:
    """The whole data sets of these names as float32, with the checks of `look_at_rows`."""
    rows, shapes = look_at_rows(path, names)
    with _reading(path) as file:
        return [_array(path, file, name, (rows, *shape)) for name, shape in zip(names, shapes, strict=True)]


def clear_rows(path: StrPath) -> None:
    """Make an HDF5 file without any rows, in place of what is there."""
    with _replacing(path):
        pass


def append_rows(path: StrPath, arrays: Mapping[str, np.ndarray]) -> None:
    """Add rows, float32, to the data sets of these names; those that the file lacks are made.

    Raises CaffeError where the file cannot be written, or has rows of another shape.
    """
    with _writing(path, path, "a") as file:
        for name, array in arrays.items():
            if name not in file:
                file.create_dataset(name, data=array, dtype=np.float32, maxshape=(None, *array.shape[1:]))
                continue
            dataset = file[name]
            if dataset.shape[1:] != array.shape[1:]:
                _fail(path, file, name, f"has rows of shape {dataset.shape[1:]}; these have {array.shape[1:]}")
            dataset.resize(len(dataset) + len(array), axis=0)
            dataset[-len(array) :] = array


# What the files are made of

MOST_COMPRESSION = 1100  # deflate makes a thousandth of zeros; what claims more is no honest file


def _is_path(name: str) -> bool:
    """Whether HDF5 keeps a layer's name as it is."""
    return "\0" not in name and all(part not in ("", ".") for part in name.split("/"))


def _fail(path: StrPath, parent: h5py.Group, name: str, message: str) -> NoReturn:
    raise CaffeError(f"{path}: {parent.name.rstrip('/')}/{name} {message}")


@contextmanager
def _writing(path: StrPath, target: StrPath, mode: str) -> Iterator[h5py.File]:
    """The HDF5 file `path`; errors name `target`."""
    try:
        with h5py.File(path, mode) as file:
            yield file
    except CaffeError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # what h5py raises where HDF5 fails
        raise CaffeError(f"{target}: cannot be written ({error})") from error


@contextmanager
def _replacing(path: StrPath) -> Iterator[h5py.File]:
    """A new HDF5 file that takes the place of `path` when all is written."""
    if "\0" in str(path):
        raise CaffeError(f"{path}: cannot be written (a 0 in its name)")
    try:
        with replacing(path) as partial, _writing(partial, path, "w") as file:
            yield file
    except OSError as error:  # of the renaming
        raise CaffeError(f"{path}: cannot be written ({error})") from error


@contextmanager
def _reading(path: StrPath) -> Iterator[h5py.File]:
    try:
        if not Path(path).is_file():
            raise CaffeError(f"{path}: No such file")
        with h5py.File(path, "r") as file:
            yield file
    except CaffeError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # h5py's, by what HDF5 meets
        raise CaffeError(f"{path}: not an HDF5 file that can be read ({error})") from error


def _group(path: StrPath, parent: h5py.Group, name: str) -> h5py.Group:
    if name not in parent:
        _fail(path, parent, name, "is missing; expected a group")
    group = parent[name]
    if not isinstance(group, h5py.Group):
        _fail(path, parent, name, "is a data set; expected a group")
    return group


def _dataset(path: StrPath, parent: h5py.Group, name: str, kinds: str, expected: str) -> h5py.Dataset:
    """The data set, of a type among numpy's `kinds`."""
    if name not in parent:
        _fail(path, parent, name, f"is missing; expected {expected}")
    dataset = parent[name]
    if not isinstance(dataset, h5py.Dataset):
        _fail(path, parent, name, f"is a group; expected {expected}")
    if dataset.dtype.kind not in kinds or dataset.shape is None:
        _fail(path, parent, name, f"is of type {dataset.dtype} and shape {dataset.shape}; expected {expected}")
    return dataset


def _array(path: StrPath, parent: h5py.Group, name: str, shape: Shape) -> np.ndarray:
    """A data set of numbers as float32. Its shape is looked at before it is read: a few bytes may claim any."""
    dataset = _dataset(path, parent, name, "fiu", f"numbers of shape {tuple(shape)}")
    if dataset.shape != tuple(shape):
        _fail(path, parent, name, f"has shape {dataset.shape}; expected {tuple(shape)}")
    with np.errstate(over="ignore"):  # what a double holds and a float does not becomes infinite, as in Caffe
        return np.asarray(dataset[()], np.float32)


def _integer(path: StrPath, parent: h5py.Group, name: str) -> int:
    dataset = _dataset(path, parent, name, "iu", "an integer")
    if dataset.size != 1:
        _fail(path, parent, name, f"has shape {dataset.shape}; expected one integer")
    return int(dataset[()].item())


def _vector(path: StrPath, parent: h5py.Group, name: str, kind: str) -> np.ndarray:
    dataset = _dataset(path, parent, name, kind, "a list of numbers")
    if dataset.ndim != 1 or dataset.nbytes > MOST_STATE_BYTES:
        _fail(path, parent, name, f"has shape {dataset.shape}; expected one axis of at most {MOST_STATE_BYTES} bytes")
    return dataset[()]


def _write_string(parent: h5py.Group, name: str, value: str) -> None:
    """A string as C programs read it, with a 0 behind it."""
    raw = os.fsencode(value) + b"\0"
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(raw))
    kind.set_strpad(h5py.h5t.STR_NULLTERM)
    dataset = h5py.h5d.create(parent.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(raw, f"S{len(raw)}"), kind)


def _read_string(path: StrPath, parent: h5py.Group, name: str) -> str:
    dataset = _dataset(path, parent, name, "SO", "a string")
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.size != 1 or dataset.nbytes > MOST_STATE_BYTES:
        _fail(path, parent, name, f"is of type {dataset.dtype} and shape {dataset.shape}; expected a string")
    return os.fsdecode(dataset[()] if dataset.shape == () else dataset[0])
