"""Training for a time: as many epochs as fit into it, and the learning rate falls to its end within them.

`python -m train --minutes M` uses this. How many iterations a second there are is measured as the training goes on, so
the number of epochs, and with it the rate's schedule, follows a machine that has more to do or less.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import caffe
from caffe.averaging import StochasticAverage
from caffe.files import replace_bytes
from caffe.proto.caffe_pb2 import SolverParameter

# shares of the time: how often it is looked at, by how much of it the speed is measured, and the least that tells it
LOOK, WINDOW, LEAST = 1 / 500, 1 / 8, 1 / 100
LARGEST_COUNT = 2**31 - 1  # caffe.proto counts iterations, and a blob its values, in 32 bits
# the solver's settings that the number of epochs decides
MOVED = ("max_iter", "warmup_iter", "stepsize", "stepvalue", "swa_start")


def move(target: SolverParameter, source: SolverParameter) -> None:
    """Give a solver's settings what another's say of MOVED."""
    part = SolverParameter()
    part.CopyFrom(source)
    for field in SolverParameter.DESCRIPTOR.fields:
        (target if field.name in MOVED else part).ClearField(field.name)
    target.MergeFrom(part)


class TimeLimit:
    """Fits a solver's max_iter, and what is counted in shares of it, to a time.

    A rate that falls by steps rises again where a step that is over moves behind the present iteration; an average of
    weights begins anew where its beginning does.

    Parameters
    ----------
    solver: about to train, or to go on; its prototxt's max_iter is what it has until its speed is known.
    epoch: iterations of an epoch; there are whole epochs, at least one.
    seconds: the time, above 0, of which the training's tests and snapshots are a part.
    schedule: the solver's settings for a number of epochs.
    file: where it stands how much of the time is used, with each snapshot, so that a stopped training goes on with the
        rest of it.
    clock: seconds from any moment on.
    """

    def __init__(
        self,
        solver: caffe.Solver,
        epoch: int,
        seconds: float,
        schedule: Callable[[int], SolverParameter],
        file: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.solver, self.epoch, self.seconds, self.schedule = solver, epoch, seconds, schedule
        self.file, self.clock = file, clock
        self._begin = clock()
        self._seen: deque[tuple[float, int]] = deque()
        self._next = 0.0
        solver.add_callback(self._look, lambda: None)
        # before, so that what a kill in between leaves is not a plan that the snapshot is beyond
        solver.before_snapshot.append(lambda _: self._write())

    @property
    def used(self) -> float:
        """Seconds of the time that are over."""
        return self.clock() - self._begin

    def resume(self) -> None:
        """Go on as `file` says; without it from the beginning of the time."""
        if self.file.is_file():
            state = json.loads(self.file.read_text())
            self._begin = self.clock() - state["seconds"]
            self._plan(state["epochs"])
            self._average_from(state["swa_start"])

    def _write(self) -> None:
        param = self.solver.param
        state = {"seconds": self.used, "epochs": param.max_iter // self.epoch, "swa_start": param.swa_start}
        replace_bytes(self.file, json.dumps(state).encode())

    def _look(self) -> None:
        """Before an iteration: how many epochs the rest of the time is good for."""
        used, done = self.used, self.solver.iter
        ends = done + 1 >= self.solver.param.max_iter  # then in any case
        if used < self._next and not ends:
            return
        self._next = used + LOOK * self.seconds
        self._seen.append((used, done))
        while len(self._seen) > 4 and self._seen[1][0] < used - WINDOW * self.seconds:
            self._seen.popleft()
        parts = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self._seen)]
        if len(parts) > 2:  # a machine that stood still, or an iteration that had to warm up, says nothing of the speed
            parts.remove(max(parts))
        elif used < self.seconds and not ends:
            return
        seconds, iterations = (sum(numbers) for numbers in zip(*parts, strict=True)) if parts else (0, 0)
        if iterations < 1 or (seconds < LEAST * self.seconds and not ends):
            return
        to_come = int(max(self.seconds - used, 0) * iterations / max(seconds, 1e-9))
        if to_come >= self.epoch or done + self.epoch < self.solver.param.max_iter:  # the last epoch stays the last
            self._plan(max((done + to_come) // self.epoch, math.ceil((done + 1) / self.epoch)))

    def _plan(self, epochs: int) -> None:
        """Set the solver to end after so many epochs."""
        param, before = self.solver.param, self.solver.param.swa_start
        epochs = min(epochs, LARGEST_COUNT // self.epoch)  # weeks of a fast net may be good for more
        if epochs * self.epoch == param.max_iter:
            return
        planned = self.schedule(epochs)
        move(param, planned)
        average = self.solver.average
        if isinstance(average, StochasticAverage):
            begun = average.count > 0 and planned.swa_start <= self.solver.iter
            self._average_from(before if begun else planned.swa_start)

    def _average_from(self, start: int) -> None:
        """Set the iteration from which weights are averaged; what was averaged before it is forgotten."""
        average = self.solver.average
        if isinstance(average, StochasticAverage):
            if average.count and start > self.solver.iter:
                average.set_state([], 0)
            average.start = self.solver.param.swa_start = start
