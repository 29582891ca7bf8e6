"""Train a network of prototxt/ on the LMDBs of a data set, choosing the epoch that validates best.

python -m train prototxt/face_emotion_net --train data/fer2013/lmdb/train_lmdb --val data/fer2013/lmdb/val_lmdb \\
    --mean data/fer2013/mean.binaryproto --output data/fer2013/runs/face_emotion_net [--epochs 150 | --minutes 60] \\
    [--solver modern] [--init WEIGHTS.caffemodel [--freeze conv]] [--lr 0.001] [--teachers FOLDER …]

The net gets as many outputs as the classes.txt beside the training LMDB has names. The run's folder is a Caffe project
of its own: solver.prototxt and train_val.prototxt with every setting filled in, snapshots, train.log in Caffe's format.
Stopped by Ctrl-C or a kill, the same command goes on from the last snapshot and ends with the same weights as if it had
never stopped; by --minutes, after what is left of its time.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import random
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import Any, TextIO

import torch
from google.protobuf import text_format
from tqdm import tqdm

import caffe
from caffe import glog as log
from caffe.database import write_lmdb
from caffe.files import replace_bytes
from caffe.io import DatumReader, load_mean, open_lmdb, read_net_parameter, read_solver_parameter
from caffe.phases import filter_net
from caffe.proto.caffe_pb2 import TEST, TRAIN, LayerParameter, NetParameter, NetState, SolverParameter
from caffe.schedules import learning_rate, needs_monitor
from preprocessing.classes import CLASSES_FILE, default_classes, read_classes, write_classes
from preprocessing.network_input import CALIBRATION
from preprocessing.stage import Stage, StageError, replace_file, run_main, sha256
from train import finetune
from train.distill import Teachers
from train.ensemble import is_chosen
from train.minutes import LARGEST_COUNT, TimeLimit, move
from train.options import check_options, make_parser

LARGEST_TEST_BATCH = 512
KEPT_SNAPSHOTS = 2
SNAPSHOT_SHARE = 0.05  # of a training's time: where an epoch takes a second, one in many ends in a snapshot
INIT = "init.caffemodel"  # in a run's folder: of the weights to start from, the layers that are taken
BEST, BEST_WEIGHTS = "best.json", "best.caffemodel"  # there: the best validation so far, and its weights
SETTINGS = "settings.json"  # there: what makes a run the same
PREVIOUS = "previous"  # there: the finished run of other settings that was there before
STOPPED = "stopped"  # there: the training of other settings that was stopped before it was finished
LOCK = ".lock"  # there: held by the process that trains
MERGED = "trainval_lmdb"  # there: what train+val trains on
TIME = "time.json"  # there, where a training has a time: how much of it is used
# there: what training and the stages behind it write, beside snapshots, settings and the trained net
WRITTEN = (
    *("manifest.json", "best.*", "train.log", "*.prototxt", "mean.binaryproto", INIT, TIME, CALIBRATION, CLASSES_FILE),
    *("evaluation", "loss.png", "accuracy.png", "metrics.csv", "report.html", "predictions", ".train", ".report"),
)


def data_layer(net: NetParameter, state: NetState) -> LayerParameter:
    """The Data layer that a net has in a state: a phase, and the stages by which a solver chooses among recipes.

    Raises StageError where the net has none, or several, whose records would not be known.
    """
    chosen = NetParameter()
    chosen.CopyFrom(net)
    chosen.state.CopyFrom(state)
    kept = filter_net(chosen).layer
    found = [
        layer
        for layer in net.layer
        if layer.type == "Data" and any(rule.phase == state.phase for rule in layer.include) and layer in kept
    ]
    if len(found) != 1:
        name = "TRAIN" if state.phase == TRAIN else "TEST"
        stages = f" and the stages {', '.join(state.stage)}" if state.stage else ""
        raise StageError(
            f"net {net.name!r}: {len(found)} Data layers with include {{ phase: {name} }}{stages}; expected one"
        )
    return found[0]


def validation_batches(records: int, largest: int = LARGEST_TEST_BATCH) -> tuple[int, int]:
    """Batch size and number of batches that read every record once, or as few as possible twice.

    The largest divisor of `records` up to `largest` where it is at least 16, else the batch with the least excess.
    """
    divisors = [size for size in range(1, min(records, largest) + 1) if records % size == 0]
    if divisors[-1] >= min(16, records):
        return divisors[-1], records // divisors[-1]
    size = min(range(64, largest + 1), key=lambda size: (-records % size, -size))
    return size, -(-records // size)


def epochs_of(solver: SolverParameter) -> int:
    """How many epochs a solver prototxt asks for: max_iter / test_interval, since it tests once an epoch.

    Nothing else in it tells what an epoch is: with the data set and the batch that it was written for (those that ship:
    FER2013 in batches of 64, 449 iterations) max_iter alone says nothing on another one.
    """
    return max(round(solver.max_iter / solver.test_interval), 1)


def rescale(solver: SolverParameter, epoch: int, epochs: int | None) -> None:
    """Set what a solver counts in iterations for `epochs` epochs of `epoch` iterations.

    max_iter, stepvalue, stepsize and swa_start keep their proportions. warmup_iter and swa_interval stay as many epochs
    as they are of the prototxt's, whose epoch is its test_interval; patience and early_stop count tests, so epochs.
    The loss is displayed four times an epoch at least, as the mean since the display before.
    Without `epochs`: as many as the prototxt has, `epochs_of`.

    Raises StageError for more epochs than max_iter can count.
    """
    before, epoch_before = solver.max_iter, solver.test_interval
    said = f"--epochs is {epochs}"
    if epochs is None:
        epochs = epochs_of(solver)
        said = f"max_iter {before} / test_interval {epoch_before} is {epochs} epochs"
    if epoch * epochs > LARGEST_COUNT:
        raise StageError(
            f"{said}; expected at most {LARGEST_COUNT // epoch}, since an epoch is {epoch} iterations here and "
            f"max_iter at most {LARGEST_COUNT}"
        )

    def scaled(count: int, new: int, old: int) -> int:
        """At most what the field holds: that is behind the end, as is what it stands for."""
        return min(max(round(count * new / old), 1), LARGEST_COUNT)

    solver.max_iter = epoch * epochs
    solver.stepvalue[:] = [scaled(step, solver.max_iter, before) for step in solver.stepvalue]
    if solver.stepsize:
        solver.stepsize = scaled(solver.stepsize, solver.max_iter, before)
    if solver.warmup_iter:
        solver.warmup_iter = min(scaled(solver.warmup_iter, epoch, epoch_before), solver.max_iter)
    if solver.swa_start > 0:
        solver.swa_start = scaled(solver.swa_start, solver.max_iter, before)
    if solver.swa_interval > 1:
        solver.swa_interval = scaled(solver.swa_interval, epoch, epoch_before)
    solver.test_interval = solver.snapshot = epoch
    solver.display = max(min(solver.display or epoch, epoch // 4), 1)
    solver.average_loss = solver.display


def solver_file(network: Path, recipe: str | None) -> Path:
    """The solver prototxt of a network's folder: solver.prototxt, or solver_RECIPE.prototxt.

    Raises StageError for a recipe that the folder has no file for, naming those that it has.
    """
    if not recipe:
        return network / "solver.prototxt"
    path = network / f"solver_{recipe}.prototxt"
    if not path.is_file():
        known = sorted(file.stem.removeprefix("solver_") for file in network.glob("solver_*.prototxt"))
        raise StageError(
            f"--solver is {recipe}, but there is no {path}; expected one of {', '.join(known)}, or no --solver for "
            f"solver.prototxt"
            if known
            else f"--solver is {recipe}, but there is no {path}; {network} has solver.prototxt alone"
        )
    return path


def merge(sources: list[Path], target: Path, seed: int) -> None:
    """Write one LMDB of all records of several, shuffled by `seed`, numbered anew."""

    def records() -> Iterator[tuple[bytes, bytes]]:
        transactions = [open_lmdb(source).begin() for source in sources]
        entries = [(i, key) for i, source in enumerate(sources) for key, _ in DatumReader(source).items()]
        random.Random(seed).shuffle(entries)
        for number, (i, key) in enumerate(entries):
            name = key.split(b"_", 1)[-1]
            yield b"%08d_%s" % (number, name), bytes(transactions[i].get(key) or b"")

    write_lmdb(target, records())


def snapshot_iteration(path: Path) -> int:
    """The iteration that a snapshot is of, by its name PREFIX_iter_N.solverstate or .solverstate.h5."""
    return int(path.name.rsplit(".solverstate", 1)[0].rsplit("_", 1)[1])


class Run:
    """One training run in its folder.

    Parameters
    ----------
    arguments: the command line's.

    Raises StageError or CaffeError for a prototxt, LMDB or mean that is missing or does not fit.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder = Path(arguments.output)
        self.source = Path(arguments.network)
        self.name = self.source.absolute().name
        if not is_chosen(Path(f"{self.name}.caffemodel")):
            raise StageError(
                f"{self.source}: the network is called {self.name!r}; expected another name than best, init and "
                "*_iter_*, which other weights in a run's folder have"
            )
        self.mean = Path(arguments.mean)
        self.train_on = arguments.train_on
        self.recipe = solver_file(self.source, arguments.solver)
        self.solver_param = read_solver_parameter(self.recipe)
        for setting in ("max_iter", "test_interval", "iter_size"):
            value = getattr(self.solver_param, setting)
            if value < 1:
                raise StageError(f"{self.recipe}: {setting} is {value}; expected at least 1")
        if self.train_on == "train+val" and needs_monitor(self.solver_param):
            early = self.solver_param.early_stop
            what = f"early_stop {early}" if early else f'lr_policy "{self.solver_param.lr_policy}"'
            raise StageError(
                f"{self.recipe}: {what} goes by validation images, which --train-on train+val trains on; expected a "
                "recipe whose length and rate are fixed, or --train-on train"
            )
        # the net that the recipe names lies beside it, wherever the folder is
        self.net_file = self.source / Path(self.solver_param.net or "train_val.prototxt").name
        self.net_param = read_net_parameter(self.net_file)
        self._name_classes(Path(arguments.train).parent, Path(arguments.val).parent)
        if arguments.seed is not None:
            self.solver_param.random_seed = arguments.seed
        if self.solver_param.random_seed < 0:
            self.solver_param.random_seed = 1
        if arguments.precision:
            self.solver_param.precision = SolverParameter.Precision.Value(arguments.precision.upper())
        if arguments.lr is not None:
            self.solver_param.base_lr = arguments.lr
        self.init, self.freeze = Path(arguments.init) if arguments.init else None, arguments.freeze
        self.start: finetune.Start | None = None
        self.weights = [Path(name.strip()) for names in self.solver_param.weights for name in names.split(",")]
        if self.init is not None:
            self.weights = [self.init]
        for path in self.weights:
            finetune.read_weights(path, self.net_param.name, [layer.name for layer in self.net_param.layer])
        self.teachers: Teachers | None = None
        if arguments.teachers:
            folders = [Path(folder) for folder in arguments.teachers]
            given = {"temperature": arguments.temperature, "share": arguments.teacher_share}
            self.teachers = Teachers(folders, **{name: value for name, value in given.items() if value is not None})
            self.teachers.check(self.mean, self.classes, self._own_folders())
        self.val, self.sources = Path(arguments.val), [Path(arguments.train)]
        if self.train_on == "train+val":
            self.sources.append(self.val)
        self.epochs, self.minutes, self.batch = arguments.epochs, arguments.minutes, arguments.batch
        self._lock: TextIO | None = None
        self._check_channels()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _own_folders(self) -> list[Path]:
        """The folders that a run with other settings clears, in which nothing may lie that it needs."""
        return [folder.resolve() for folder in (self.folder, self.folder / PREVIOUS, self.folder / STOPPED)]

    def _check_channels(self) -> None:
        """A training net takes the data's channels as they come; the deploy net has to take as many."""
        shapes = [shape for layer in self.deploy_param.layer for shape in layer.input_param.shape]
        if not shapes or len(shapes[0].dim) != 4:
            return
        wanted, found = shapes[0].dim[1], len(load_mean(self.mean))
        if wanted != found:
            hint = {
                1: ": it sees a face once (ALIGN=mtcnn or none)",
                2: ": it sees a face aligned and as it is (ALIGN=both)",
            }
            raise StageError(
                f"{self.source / 'deploy.prototxt'}: its input has {wanted} channel{'s' * (wanted != 1)}, {self.mean} "
                f"{found}; expected as many{hint.get(wanted, '')}"
            )

    def _name_classes(self, train: Path, val: Path) -> None:
        """Take the classes' names from beside the training LMDB, and give the nets as many outputs."""
        path = self.source / "deploy.prototxt"
        self.deploy_param = read_net_parameter(path)
        self.last = finetune.last_layer(self.deploy_param, path)
        count = finetune.count_classes(self.net_param, self.last, self.net_file)
        self.classes = read_classes(train) or default_classes(count)
        others = read_classes(val)
        if others is not None and others != self.classes:
            raise StageError(
                f"{val / CLASSES_FILE}: {', '.join(others)}; expected {', '.join(self.classes)}, the training set's"
            )
        self.changed = len(self.classes) != count
        if self.changed:
            for net in (self.net_param, self.deploy_param):
                finetune.set_classes(net, self.last, len(self.classes))

    def _start_from(self, init: Path, state: NetState, data: LayerParameter) -> finetune.Start:
        """Choose what is taken of the weights, and set the rates of what starts anew and of what is not to learn."""
        if "," in str(self.folder):  # Caffe takes commas to separate names
            raise StageError(f"--output is {self.folder}; expected a path without a comma, for {INIT}")
        if init.resolve().parent in self._own_folders():
            raise StageError(f"--init is {init}, in the run's own folder; expected weights elsewhere (copy them)")
        net = self.net_param
        light = finetune.light_net(net, state, data, load_mean(self.mean).shape)
        shapes = {name: [blob.shape for blob in blobs] for name, blobs in light.params.items()}
        start = finetune.choose_weights(init, shapes, self.last.name, self.classes, net.name)
        if self.freeze:
            frozen = finetune.layers_to_freeze(net, self.freeze, shapes, self.last.name)
            finetune.freeze_layers(net, start, frozen, shapes)
        if self.last.name in start.rebuilt:
            finetune.raise_rate(net, self.last.name, len(shapes[self.last.name]))
        self.solver_param.weights[:] = [str(self.folder / INIT)]
        return start

    def prepare(self) -> None:
        """Write the run's prototxts; keep what an earlier, stopped run of the same settings left, else begin anew."""
        self._set_up_data()
        settings = self._settings()
        # of now: at the training's end there may be others, for the next one
        self.mean_bytes, self.deploy_bytes = self.mean.read_bytes(), (self.source / "deploy.prototxt").read_bytes()
        if self.changed:
            self.deploy_bytes = text_format.MessageToString(self.deploy_param).encode()
        text = json.dumps(settings, indent=1)
        self._take_folder()
        if not self._goes_on(text):
            if len(self.sources) > 1:
                merge(self.sources, self.folder / MERGED, self.recipe_param.random_seed)
            replace_bytes(self.folder / "train_val.prototxt", settings["net"].encode())
            replace_bytes(self.folder / "solver.prototxt", settings["solver"].encode())
            if self.start is not None:
                replace_bytes(self.folder / INIT, self.start.weights.SerializeToString())
            replace_bytes(self.folder / SETTINGS, text.encode())
        write_classes(self.folder, self.classes)  # of a stopped one too, from whose weights another may start

    def _set_up_data(self) -> None:
        """Fill in what the nets read, from which weights and by which teachers they learn, and the solver's counts."""
        states = self._states()
        train, test = (data_layer(self.net_param, state) for state in states)
        records = sum(len(DatumReader(source)) for source in self.sources)
        train.data_param.source = str(self.sources[0] if len(self.sources) == 1 else self.folder / MERGED)
        test.data_param.source = str(self.val)
        for layer in (train, test):
            layer.transform_param.mean_file = str(self.mean)
        test.data_param.batch_size, test_iter = validation_batches(len(DatumReader(self.val)))
        if self.batch is not None:
            train.data_param.batch_size = self.batch
        if train.data_param.batch_size < 1:
            raise StageError(
                f"{self.net_file}: Data layer {train.name!r} of phase TRAIN: batch_size is 0; expected at least 1"
            )
        if self.init is not None:
            self.start = self._start_from(self.init, states[0], train)
        # an iteration reads as many batches as the solver's iter_size says
        self.epoch = math.ceil(records / (train.data_param.batch_size * self.solver_param.iter_size))
        if self.teachers is not None:
            self.teachers.join(self.net_param, states[0], train, self.net_file)
        self.recipe_param = self.solver_param
        self.recipe_param.test_iter[:] = [test_iter]
        self.recipe_param.net = str(self.folder / "train_val.prototxt")
        self.recipe_param.snapshot_prefix = str(self.folder / self.name)
        self.solver_param = self._settings_for(self.epochs)
        self._check(states)

    def _states(self) -> list[NetState]:
        """Those of the training net and of the first test net: the phase, and what its prototxt and the solver ask."""
        found = []
        wanted = [self.solver_param.train_state, *self.solver_param.test_state, NetState()]
        for phase, more in zip((TRAIN, TEST), wanted, strict=False):
            state = NetState()
            state.CopyFrom(self.net_param.state)
            state.MergeFrom(more)
            state.phase = phase
            found.append(state)
        return found

    def _check(self, states: Sequence[NetState]) -> None:
        """Raise CaffeError or StageError where the solver would, or the nets lack what is needed of them.

        Without the data, and before the folder is taken, whose run would be put away for a training that cannot begin.
        """
        solver = self.solver_param
        learning_rate(solver, 0)
        faces, precision = load_mean(self.mean).shape, SolverParameter.Precision.Name(solver.precision).lower()
        _, net = (
            finetune.light_net(self.net_param, state, data_layer(self.net_param, state), faces, precision)
            for state in states
        )
        needed = list(dict.fromkeys(["loss", "accuracy", solver.monitor]))
        if not all(name in net.outputs and net.blobs[name].count == 1 for name in needed):
            raise StageError(
                f"{self.net_file}: the outputs in phase TEST are {', '.join(net.outputs)}; expected "
                f"{', '.join(needed)} among them, each of one value"
            )

    def _settings(self) -> dict[str, Any]:
        """What makes a run the same: solver, net, and the hashes of the files that it learns from."""
        files = [*sorted(p / "data.mdb" for p in {*self.sources, self.val}), self.mean, *self.weights]
        files += self.teachers.paths if self.teachers is not None else []
        settings: dict[str, Any] = {
            "solver": text_format.MessageToString(self.solver_param),
            "net": text_format.MessageToString(self.net_param),
            "data": {str(path): sha256(path) for path in files if path.is_file()},
            "train_on": self.train_on,
        }
        if self.classes != default_classes(len(self.classes)):
            settings["classes"] = list(self.classes)
        if self.minutes is not None:
            settings["minutes"] = self.minutes
        return settings

    def _take_folder(self) -> None:
        """Keep other processes from the run's folder: two trainings there would take each other's files for their own.

        Raises StageError where another one has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / LOCK, "w")  # noqa: SIM115  until the training ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"{self.folder}: another process trains there; expected it to end first, or another folder"
            ) from None
        except OSError as error:  # a file system without locks
            print(f"train: {self.folder}: {error.strerror}: nothing keeps a second training from it", file=sys.stderr)

    def _goes_on(self, settings: str) -> bool:
        """Whether the folder holds a run of these settings to go on with, which may have stood in `stopped`.

        What it holds of other settings is put away.
        """
        file, stopped, moved, back = (
            self.folder / name for name in (SETTINGS, STOPPED, f".{STOPPED}", f".{STOPPED}.back")
        )
        if back.is_dir():  # from where a kill left it
            self._bring_back(back, moved, stopped)
        if file.is_file() and file.read_text() == settings:
            return True
        self._put_away()
        for place in (moved, stopped):  # in the former after a kill, in which it was about to be put away
            if (place / SETTINGS).is_file() and (place / SETTINGS).read_text() == settings:
                place.rename(back)
                self._bring_back(back, moved, stopped)
                print(f"train: goes on with the training of these settings that was in {stopped}")
                return True
        self._keep(moved, stopped)
        return False

    def _put_away(self) -> None:
        """Put away what a run with other settings left: it must not be taken for this run's.

        What a finished one wrote, its evaluation and plots too, is kept in the folder `previous`, in place of the one
        there, without its snapshots. One that was stopped is moved to `.stopped` as it is; without a snapshot, it is
        removed.
        """
        weights, previous, of_finished, of_stopped = (
            self.folder / name for name in (f"{self.name}.caffemodel", PREVIOUS, f".{PREVIOUS}", f".{STOPPED}")
        )
        finished = weights.is_file()
        moved = of_finished if finished else of_stopped
        kept = finished or moved.is_dir() or bool(self.snapshots())
        if kept:
            moved.mkdir(exist_ok=True)
        # the settings first and the weights last, so that after a kill in between it is gone on with
        for pattern in (SETTINGS, f"{escape(self.name)}_iter_*", MERGED, *WRITTEN, escape(weights.name)):
            for path in self.folder.glob(pattern):
                if kept and not (finished and ("_iter_" in path.name or path.name == MERGED)):
                    path.rename(moved / path.name)
                elif path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        if of_finished.is_dir():
            shutil.rmtree(previous, ignore_errors=True)
            of_finished.rename(previous)
            print(f"train: the run that {self.folder} held has other settings or data: it is in {previous} now")

    def _keep(self, moved: Path, stopped: Path) -> None:
        """Let what was put away of a stopped training take the place of the one before it."""
        if moved.is_dir():
            (stopped / SETTINGS).unlink(missing_ok=True)  # first, so that half of it is not gone on with after a kill
            shutil.rmtree(stopped, ignore_errors=True)
            moved.rename(stopped)
            print(
                f"train: the training that {self.folder} held was stopped, and has other settings or data: it is in "
                f"{stopped} now, and goes on when they are given again"
            )

    def _bring_back(self, back: Path, moved: Path, stopped: Path) -> None:
        """Let a stopped training have the folder again, and the one that had it since take its place in `stopped`."""
        self._keep(moved, stopped)
        for path in list(back.iterdir()):  # a kill in between leaves the rest to the next start, which begins here
            path.rename(self.folder / path.name)
        back.rmdir()

    def snapshots(self) -> list[Path]:
        """The run's .solverstate files, or .solverstate.h5 where the solver's snapshot_format is HDF5, oldest first."""
        states = re.compile(rf"{re.escape(self.name)}_iter_\d+\.solverstate(\.h5)?")
        return sorted((path for path in self.folder.iterdir() if states.fullmatch(path.name)), key=snapshot_iteration)

    def train(self) -> bool:
        """Train to the end, from the last snapshot if there is one; False where Ctrl-C stopped it."""
        states = self.snapshots()
        with open(self.folder / "train.log", "a" if states else "w") as stream:
            handler = log.log_to(stream, whole=True)
            try:
                solver = caffe.get_solver(self.solver_param)
                self.best = self._read_best(states)
                self.best_weights: list[torch.Tensor] | None = None
                solver.on_test.append(self._keep_best)
                if self.minutes is not None:
                    self._limit_time(solver, resumed=bool(states))
                with Display(self, solver):
                    solver.before_snapshot.append(self._write_best)
                    solver.on_snapshot.append(self._prune)
                    solver.snapshot_share = SNAPSHOT_SHARE
                    try:
                        solver.solve(states[-1] if states else None)
                    except (StageError, caffe.CaffeError):  # a training that diverges, say: the best stays
                        self._write_best(solver)
                        raise
                    self._write_best(solver)
                self.solver = solver
            finally:
                log.stop_logging(handler)
        return solver.requested != "stop"

    def _limit_time(self, solver: caffe.Solver, resumed: bool) -> None:
        assert self.minutes is not None
        limit = TimeLimit(solver, self.epoch, 60 * self.minutes, self._settings_for, self.folder / TIME)
        if resumed:
            limit.resume()

    def _settings_for(self, epochs: int | None) -> SolverParameter:
        """The solver's settings for a number of epochs; None: the prototxt's."""
        solver = SolverParameter()
        solver.CopyFrom(self.recipe_param)
        rescale(solver, self.epoch, epochs)
        return solver

    def describe_length(self) -> str:
        """How long the prototxt's own training is, and by which of its settings: a test_interval is easily changed."""
        epochs, recipe = epochs_of(self.recipe_param), self.recipe_param
        return (
            f"train: {epochs} epoch{'s' * (epochs != 1)} of {self.epoch} iterations "
            f"({self.recipe}: max_iter {recipe.max_iter} / test_interval {recipe.test_interval})"
        )

    def _keep_best(self, solver: caffe.Solver, number: int, outputs: dict[str, float]) -> None:
        """Keep the weights of the best validation so far. A resumed run repeats tests, with the same results."""
        # the test before the training is by BatchNorm without statistics, and overflows in deep nets
        if solver.iter and not math.isfinite(solver.smoothed_loss() + outputs["loss"]):
            raise StageError(
                f"training diverged: at iteration {solver.iter} the training loss is {solver.smoothed_loss():.4g} "
                f"and the validation loss {outputs['loss']:.4g}; expected finite numbers (try a lower base_lr)"
            )
        assert solver.monitor is not None  # `_check` has seen that it is among the outputs
        name = solver.monitor.name
        if solver.iter and solver.monitor.better(outputs[name], self.best.get(name)):
            self.best = {"iteration": solver.iter, "epoch": solver.iter / self.epoch, **outputs}
            self.best_weights = solver.weights()

    def best_value(self, solver: caffe.Solver) -> str:
        """The best validation so far, by the output that the epoch is chosen by, the solver's `monitor`."""
        assert solver.monitor is not None
        name = solver.monitor.name
        if name == "accuracy":
            return f"{self.best.get(name, 0.0):.2%}"
        return f"{name} {self.best[name]:.4g}" if name in self.best else "none"

    def _read_best(self, states: Sequence[Path]) -> dict[str, Any]:
        """What the training of these snapshots has written of its best validation; nothing where it has not yet.

        Raises StageError where that is lost, since a later epoch would stand for the best.
        """
        file, weights = self.folder / BEST, self.folder / BEST_WEIGHTS
        # the snapshot at the first epoch's end comes before its test
        if self.train_on == "train" and states and snapshot_iteration(states[-1]) > self.epoch:
            for path in (file, weights):
                if not path.is_file():
                    raise StageError(
                        f"{path}: no such file; expected that of the best epoch so far, beside {states[-1].name} "
                        f"(remove {SETTINGS} to train anew)"
                    )
        return json.loads(file.read_text()) if states and file.is_file() else {}

    def _write_best(self, solver: caffe.Solver) -> None:
        """Write the best weights so far, where they are not yet: a resumed run goes on from the last snapshot."""
        if self.best_weights is None:
            return
        solver.save_weights(self.folder / BEST_WEIGHTS, self.best_weights)
        replace_bytes(self.folder / BEST, json.dumps(self.best).encode())
        self.best_weights = None

    def _prune(self, *_: object) -> None:
        """Remove all snapshots but the last ones."""
        for old in self.snapshots()[:-KEPT_SNAPSHOTS]:
            name, kind = old.name.rsplit(".solverstate", 1)  # its weights are of the same kind, .h5 or not
            for ending in (".caffemodel", "_averaged.caffemodel", ".solverstate"):  # last what it is found by
                old.with_name(name + ending + kind).unlink(missing_ok=True)

    def finish(self, stage: Stage) -> None:
        """Put the chosen weights, the deploy net, the mean and the manifest in place: a complete model folder."""
        chosen = self.train_on == "train"
        if chosen and not self.best:
            raise StageError(
                f"{self.folder}: {self.solver.param.monitor} was no number in any test; no epoch is the best"
            )
        if self.minutes is not None:  # the epochs that it came to
            move(self.solver_param, self.solver.param)
            replace_bytes(self.folder / "solver.prototxt", text_format.MessageToString(self.solver_param).encode())
            stage.settings["max_iter"] = self.solver_param.max_iter
        replace_bytes(self.folder / "deploy.prototxt", self.deploy_bytes)
        replace_bytes(self.folder / "mean.binaryproto", self.mean_bytes)
        self._prune()  # what a kill has left
        stage.counts = {
            "iterations": self.solver.iter,
            "epochs": self.solver.iter / self.epoch,
            "iterations_per_epoch": self.epoch,
            "stopped_early": self.solver.iter < self.solver.param.max_iter,
            "chosen": self.best if chosen else {"iteration": self.solver.iter},
        }
        if self.start is not None:
            stage.counts["init"] = self.start.to_dict()
        with replace_file(self.folder / "manifest.json") as path:
            stage.write_manifest(path)
        weights = self.folder / f"{self.name}.caffemodel"
        if chosen:
            replace_bytes(weights, (self.folder / BEST_WEIGHTS).read_bytes())
        else:
            self.solver.save_weights(weights)


class Display:
    """One line while training: a bar on a terminal, a line an epoch elsewhere. Ctrl-C asks the solver to stop."""

    def __init__(self, run: Run, solver: caffe.Solver) -> None:
        self.run, self.solver = run, solver
        self.terminal = sys.stderr.isatty()
        solver.add_callback(self._advance, lambda: None)
        solver.on_test.append(self._tested)
        self.text = ""

    def __enter__(self) -> Display:
        total = self.solver.param.max_iter
        self.bar = tqdm(total=total, desc=self.run.name, unit="it", disable=not self.terminal, mininterval=0.5)
        self._before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._advance()
        self.bar.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self.solver.requested == "stop":  # asked twice: at once, without a snapshot
            raise KeyboardInterrupt
        self.solver.requested = "stop"

    def _advance(self) -> None:
        if self.terminal:
            self.bar.total = self.solver.param.max_iter
            self.bar.update(self.solver.iter - self.bar.n)

    def _tested(self, solver: caffe.Solver, number: int, outputs: dict[str, float]) -> None:
        if not solver.iter:  # of weights that have learnt nothing
            return
        self.text = (
            f"epoch {solver.iter / self.run.epoch:.0f}/{solver.param.max_iter // self.run.epoch}"
            f"  training loss {solver.smoothed_loss():.3f}"
        )
        if self.run.train_on == "train":
            self.text += f"  validation loss {outputs['loss']:.3f}  accuracy {outputs['accuracy']:.2%}"
            self.text += f"  best {self.run.best_value(solver)}"
        if self.terminal:
            self.bar.set_postfix_str(self.text)
        else:
            print(self.text, flush=True)


def start_stage(run: Run, options: argparse.Namespace) -> Stage:
    """The stage of a prepared run: its files, by the hashes that they have now, and its settings, for the manifest."""
    settings = {"network": run.name, "solver": options.solver, "train_on": run.train_on}
    settings |= {"device": str(caffe.current_device()), "threads": torch.get_num_threads()}
    settings |= {"seed": run.solver_param.random_seed, "max_iter": run.solver_param.max_iter}
    settings |= {"classes": list(run.classes), "base_lr": run.solver_param.base_lr}
    settings |= {"init": options.init, "freeze": options.freeze, "minutes": options.minutes}
    if run.teachers is not None:  # by their hashes before the training, since other runs may replace them
        settings |= {"teachers": {str(path): sha256(path) for path in run.teachers.paths}}
        settings |= {"temperature": run.teachers.temperature, "teacher_share": run.teachers.share}
    prototxts = [run.folder / "solver.prototxt", run.folder / "train_val.prototxt"]
    return Stage("train", [*prototxts, run.mean, *run.weights], settings)


def summary(run: Run, stage: Stage) -> str:
    """How a finished run ended, and which weights were taken."""
    iterations, counts = f"{run.solver.iter} iterations", stage.counts
    if counts["stopped_early"]:
        epochs = run.solver.param.max_iter // run.epoch
        iterations += f" (stopped early, after epoch {counts['epochs']:.0f} of {epochs})"
    if run.train_on == "train+val":  # nothing is validated on what it learns
        taken = "the last weights, trained on both splits"
    else:
        taken = f"best validation accuracy {run.best['accuracy']:.2%} in epoch {run.best['epoch']:.0f}"
        if run.solver.param.monitor != "accuracy":  # that of the chosen epoch need not be the best
            taken = f"best validation {run.best_value(run.solver)} in epoch {run.best['epoch']:.0f}"
            taken += f", accuracy {run.best['accuracy']:.2%}"
    return f"{iterations}, {taken} -> {run.folder / run.name}.caffemodel"


def main() -> int:
    """The command line; returns the exit code."""
    options = make_parser(__doc__.split("\n")[0]).parse_args()
    check_options(options)
    try:
        caffe.use_device(options.device)
        with Run(options) as run:
            run.prepare()
            if run.epochs is None and run.minutes is None:
                print(run.describe_length(), flush=True)
            if run.start is not None:
                print(run.start.describe(), flush=True)
            stage = start_stage(run, options)
            if not run.train():
                print(f"train: stopped at iteration {run.solver.iter}; run it again to go on", file=sys.stderr)
                return 130
            run.finish(stage)
    except caffe.CaffeError as error:
        raise StageError(str(error)) from error
    stage.summary(summary(run, stage))
    return 0


if __name__ == "__main__":
    run_main(main)
