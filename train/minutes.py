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
from pathlib import Path

import caffe
from caffe.averaging import StochasticAverage
from caffe.io import replace_bytes
from caffe.proto.caffe_pb2 import SolverParameter

# shares of the time: how often it is looked at, by how much of it the speed is measured, and the least that tells it
LOOK, WINDOW, LEAST = 1 / 500, 1 / 8, 1 / 100


class TimeLimit:
    """Fits a solver's max_iter, and what is counted in shares of it, to a time.

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
        solver.on_snapshot.append(lambda _, __: self._write())

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

    def _write(self) -> None:
        state = {"seconds": self.used, "epochs": self.solver.param.max_iter // self.epoch}
        replace_bytes(self.file, json.dumps(state).encode())

    def _look(self) -> None:
        """Before an iteration: how many epochs the rest of the time is good for."""
        used, done = self.used, self.solver.iter
        if used < self._next:
            return
        self._next = used + LOOK * self.seconds
        self._seen.append((used, done))
        while len(self._seen) > 2 and self._seen[1][0] < used - WINDOW * self.seconds:
            self._seen.popleft()
        (since, first) = self._seen[0]
        if used - since < LEAST * self.seconds or done <= first:
            return
        to_come = (self.seconds - used) * (done - first) / (used - since)
        if to_come >= self.epoch or done + self.epoch < self.solver.param.max_iter:  # the last epoch stays the last
            self._plan(max(int((done + to_come) // self.epoch), math.ceil((done + 1) / self.epoch)))

    def _plan(self, epochs: int) -> None:
        """Set the solver to end after so many epochs."""
        param, average = self.solver.param, self.solver.average
        if epochs * self.epoch == param.max_iter:
            return
        planned = self.schedule(epochs)
        for name in ("max_iter", "warmup_iter", "stepsize", "swa_start"):
            setattr(param, name, getattr(planned, name))
        param.stepvalue[:] = planned.stepvalue
        if isinstance(average, StochasticAverage) and not average.count:
            average.start = planned.swa_start
