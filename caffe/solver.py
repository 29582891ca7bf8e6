"""Solvers: training as a solver prototxt asks for, with tests, Caffe's log, snapshots and resuming."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import torch

from . import context, hdf5, solver_state
from . import glog as log
from .averaging import make_average, other_weights
from .blob import Parameter
from .errors import CaffeError
from .files import StrPath
from .io import read_net_parameter, read_solver_parameter
from .net import Net
from .proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState, SolverParameter
from .replay import Replay, can_replay
from .schedules import Progress, find_monitor, learning_rate, needs_monitor
from .sharpness import SharpnessAware
from .upgrade import upgrade_solver

QUICK_SNAPSHOT = 0.05  # seconds that a snapshot may always take
CHECK_INTERVAL = 100  # iterations after which a GPU is asked for what nothing waits for, at the latest


def solver_settings(param: StrPath | SolverParameter) -> SolverParameter:
    """A copy of a solver's settings, in the current form: of a message, or of a prototxt's path."""
    if not isinstance(param, SolverParameter):
        return read_solver_parameter(param)
    settings = SolverParameter()
    settings.CopyFrom(param)
    upgrade_solver(settings, "solver")
    return settings


class Solver:
    """What all solvers share; a subclass says how a gradient becomes an update.

    Parameters
    ----------
    param: path of a solver prototxt, or a SolverParameter. Paths in it are relative to the working directory.

    Attributes
    ----------
    net, test_nets: the training net and those that test it; they share parameters from the first test on, but where
        weights are averaged, the test nets share the average's.
    iter: iterations done.
    average: the average of the weights (`ema_decay`, `swa_start`); None where there is none.
    monitor: the first test net's output by which weights are judged (`monitor`); None where it has no such output.
    progress: what the tests have said, where the rate or early stopping depends on it, else None.
    stopped_early: True where the last `step` or `solve` ended because of `early_stop`.
    on_test: called after each test with (solver, test net's number, its mean outputs by name).
    before_snapshot: called with (solver) before each snapshot is written.
    on_snapshot: called after each snapshot with (solver, path of the .solverstate).
    snapshot_share: share of a training's time that the snapshots on every `snapshot`-th iteration may take, above 0
        to 1: one that would come too early after a slow one is left out; 1, the default: none is.
    requested: set to `stop` or `snapshot` (by a signal's handler, say) to be obeyed after the running iteration.

    Raises
    ------
    CaffeError: naming file and line, or the setting that does not fit.
    """

    type: ClassVar[str] = ""
    # how many histories a parameter has in the .solverstate
    histories: ClassVar[int] = 1

    def __init__(self, param: StrPath | SolverParameter) -> None:
        self.param = solver_settings(param)
        log.info("solver.cpp:45", f"Initializing solver from parameters: \n{self.param}")
        self.iter = 0
        self.requested: str | None = None
        self.snapshot_share = 1.0
        self._snapshot_seconds, self._snapshot_end, self._left_out = 0.0, 0.0, -1
        self.on_test: list[Callable[[Solver, int, dict[str, float]], None]] = []
        self.before_snapshot: list[Callable[[Solver], None]] = []
        self.on_snapshot: list[Callable[[Solver, str], None]] = []
        self._callbacks: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._losses: deque[torch.Tensor] = deque(maxlen=max(self.param.average_loss, 1))
        self._norms: list[torch.Tensor] = []  # of gradients, not yet in the log
        learning_rate(self.param, 0)
        if self.param.random_seed >= 0:
            context.set_random_seed(self.param.random_seed)
        self.net = self._make_train_net()
        self.test_nets = self._make_test_nets()
        for weights in (name.strip() for names in self.param.weights for name in names.split(",")):
            for net in (self.net, *self.test_nets):
                net.copy_from(weights)
        self._check_settings()
        self.monitor = find_monitor(self.param, self.test_nets[0] if self.test_nets else None)
        self.progress = Progress() if needs_monitor(self.param) else None
        self.stopped_early = False
        self.average = make_average(self.param, self.net)
        self._sharpness = SharpnessAware(self.net, self.param.sam_rho) if self.param.sam_rho else None
        self._replay = Replay(self.net) if self.param.cuda_graph and can_replay(self.net) else None
        self.history: list[torch.Tensor] = []
        for _ in range(self.histories):
            self.history += [torch.zeros_like(p.tensor(), requires_grad=False) for p in self.net.learnable_params]
        self._reported = (0, time.perf_counter())
        log.info("solver.cpp:57", "Solver scaffolding done.")

    # Nets

    @property
    def precision(self) -> str:
        """`fp32`, `bf16`, `fp16` or `auto`, as the solver prototxt says."""
        return SolverParameter.Precision.Name(self.param.precision).lower()

    def _make_net(self, source: str | NetParameter, phase: int, wanted: NetState | None) -> Net:
        """A net of a phase; its level and stages are its own prototxt's, and what the solver wants beside."""
        param = NetParameter()
        param.CopyFrom(read_net_parameter(source) if isinstance(source, str) else source)
        state = NetState()
        state.CopyFrom(param.state)
        if wanted is not None:
            state.MergeFrom(wanted)
        param.ClearField("state")
        return Net(param, phase=phase, level=state.level, stages=list(state.stage), precision=self.precision)

    def _make_train_net(self) -> Net:
        p = self.param
        given = [name for name in ("net", "net_param", "train_net", "train_net_param") if p.HasField(name)]
        if len(given) != 1:
            raise CaffeError(
                f"solver: has {', '.join(given) or 'none'} of net, net_param, train_net, train_net_param; expected one"
            )
        source = getattr(p, given[0])
        if isinstance(source, str):
            log.info("solver.cpp:102", f"Creating training net from {given[0]} file: {source}")
        return self._make_net(source, TRAIN, p.train_state)

    def _make_test_nets(self) -> list[Net]:
        p = self.param
        sources: list[str | NetParameter] = [*p.test_net_param, *p.test_net]
        shared = p.net_param if p.HasField("net_param") else p.net if p.HasField("net") else None
        if shared is not None:
            sources += [shared] * (len(p.test_iter) - len(sources))  # none where there are more
        if len(sources) != len(p.test_iter):
            raise CaffeError(f"solver: {len(p.test_iter)} test_iter for {len(sources)} test nets; expected one each")
        if len(p.test_state) not in (0, len(sources)):
            raise CaffeError(
                f"solver: {len(p.test_state)} test_state for {len(sources)} test nets; expected none or one each"
            )
        if p.test_interval and not sources:
            log.warning("solver.cpp:184", f"test_interval is {p.test_interval}, but there is no test_iter: no test net")
        if sources and p.test_interval < 1:
            raise CaffeError(
                f"solver: test_interval is {p.test_interval} with {len(sources)} test nets; expected at least 1"
            )
        nets = []
        for i, source in enumerate(sources):
            what = f"net file: {source}" if isinstance(source, str) else "net_param"
            log.info("solver.cpp:190", f"Creating test net (#{i}) specified by {what}")
            nets.append(self._make_net(source, TEST, p.test_state[i] if p.test_state else None))
        return nets

    def _check_settings(self) -> None:
        p = self.param
        if p.regularization_type not in ("L1", "L2"):
            raise CaffeError(f"solver: regularization_type is {p.regularization_type!r}; expected L1 or L2")
        if p.iter_size < 1:
            raise CaffeError(f"solver: iter_size is {p.iter_size}; expected at least 1")
        if p.snapshot and not p.snapshot_prefix:
            raise CaffeError("solver: snapshot is set without a snapshot_prefix")
        if p.early_stop < 0:
            raise CaffeError(f"solver: early_stop is {p.early_stop}; expected at least 0")
        if not 0 <= p.sam_rho < math.inf:
            raise CaffeError(f"solver: sam_rho is {log.number(p.sam_rho)}; expected at least 0")

    def _refuse_momentum(self) -> None:
        if self.param.momentum:
            raise CaffeError(f"solver: momentum is {log.number(self.param.momentum)}; {self.type} has none, expected 0")

    # Training

    def step(self, iterations: int) -> None:
        """Train for a number of iterations, with the tests, log lines and snapshots that fall into them.

        With `early_stop` it may end before, and is then `stopped_early`: from there on it only ends again.
        """
        stop = self.iter + iterations
        self._train(lambda: stop)

    def _train(self, end: Callable[[], int]) -> None:
        """Train up to an iteration, which is asked for before each, since what runs beside may move it."""
        p = self.param
        self.stopped_early = False
        self._reported = (self.iter, time.perf_counter())
        while self.iter < end():
            self.net.clear_param_diffs()
            due = p.test_interval and self.iter % p.test_interval == 0
            if due and (self.iter > 0 or p.test_initialization):
                self._test_and_judge()
                if self.stopped_early:
                    break
            for on_start, _ in self._callbacks:
                on_start()
            display = bool(p.display) and self.iter % p.display == 0
            self.net.debug_info = self.net.param.debug_info or (display and p.debug_info)
            loss = torch.zeros((), device=self.net.device)
            for _ in range(p.iter_size):
                loss = loss + self._add_gradient()
            self._losses.append(loss / p.iter_size)
            if display:
                self._ask_device()
                self._log_iteration()
            for _, on_gradients in self._callbacks:
                on_gradients()
            self.apply_update(display)
            self.iter += 1
            if self.iter % CHECK_INTERVAL == 0:
                self._ask_device()
            if self.average is not None:
                self.average.update(self.iter)
            request, self.requested = self.requested, None
            periodic = bool(p.snapshot) and self.iter % p.snapshot == 0
            if request == "snapshot" or (periodic and self._time_for_snapshot()):
                self.snapshot()
            elif periodic:
                self._left_out = self.iter
            if request == "stop":
                self.requested = "stop"
                break
        self._log_clipping()

    def _add_gradient(self) -> torch.Tensor:
        """Read a batch and add its gradient to the parameters' diffs; returns its loss."""
        if self._sharpness is not None:
            return self._sharpness.compute()
        if self._replay is not None and not self.net.observed:
            return self._replay.compute(several=self.param.iter_size > 1)
        loss = self.net.compute(gradient=True).detach()
        self.net.propagate(keep=False)
        return loss

    def _ask_device(self) -> None:
        """Ask a GPU, which is waited for, what the iterations since the last time have left there to be said.

        Raises the CaffeError of a layer that replayed passes gave wrong numbers, such as a label out of range.
        """
        self._log_clipping()
        if self._replay is not None:
            self._replay.check()

    def share_weights(self, net: Net) -> None:
        """Let `net` use the training net's parameters, by layer name; pycaffe's."""
        net.share_with(self.net)

    def add_callback(self, on_start: Callable[[], None], on_gradients: Callable[[], None] | None = None) -> None:
        """Call `on_start` before each iteration's forward pass and `on_gradients` before its update; pycaffe's.

        One alone, a `caffe.NCCL`, is called before the update.
        """
        if on_gradients is None:
            on_start, on_gradients = (lambda: None), on_start
        self._callbacks.append((on_start, on_gradients))

    def smoothed_loss(self) -> float:
        """The mean of the last `average_loss` iterations' losses."""
        return float(torch.stack([loss.cpu() for loss in self._losses]).mean()) if self._losses else 0.0

    def _log_iteration(self) -> None:
        last, before = self._reported
        now, count = time.perf_counter(), self.iter - last
        seconds = now - before
        rate = log.number(count / seconds if seconds else 0.0)
        self._reported = (self.iter, now)
        log.info(
            "solver.cpp:239",
            f"Iteration {self.iter} ({rate} iter/s, {log.number(seconds)}s/{count} iters), "
            f"loss = {log.number(self.smoothed_loss())}",
        )
        number = 0
        for name in self.net.outputs:
            weight = self.net.blob_loss_weights[name]
            for value in self.net.blobs[name].data.ravel():
                log.info("solver.cpp:258", f"    Train net output #{number}: {output_text(name, float(value), weight)}")
                number += 1

    def apply_update(self, display: bool = False) -> None:
        """Turn the parameters' diffs into an update of the parameters by this solver's rule."""
        reductions = 0 if self.progress is None else self.progress.rate_reductions
        rate = learning_rate(self.param, self.iter, reductions)
        if display:
            log.info("sgd_solver.cpp:112", f"Iteration {self.iter}, lr = {log.number(rate)}")
        with torch.no_grad():
            self._clip_gradients()
            learned = [(i, p) for i, p in enumerate(self.net.learnable_params) if p.lr_mult]
            self._update_all(learned, rate)

    def _clip_gradients(self) -> None:
        """Scale all gradients down to a norm of `clip_gradients`, together, where theirs is larger."""
        limit = self.param.clip_gradients
        if limit < 0:
            return
        diffs = [p.diff_tensor() for p in self.net.learnable_params if p.has_diff]
        if not diffs:
            return
        norm = torch.nn.utils.get_total_norm(diffs)
        torch._foreach_mul_(diffs, torch.where(norm > limit, limit / norm, 1.0))
        self._norms.append(norm)
        if norm.device.type == "cpu":
            self._log_clipping()

    def _log_clipping(self) -> None:
        """Log the norms of gradients that were scaled down since the last time; waits for a GPU."""
        limit, norms = self.param.clip_gradients, self._norms
        self._norms = []
        for norm in torch.stack(norms).tolist() if norms else []:
            if norm > limit:
                log.info(
                    "sgd_solver.cpp:93",
                    f"Gradient clipping: scaling down gradients (L2 norm {log.number(norm)} > {log.number(limit)}) "
                    f"by scale factor {log.number(limit / norm)}",
                )

    def _normalize(self, parameter: Parameter) -> None:
        """Divide the diff, a sum over iter_size batches, by their number."""
        if self.param.iter_size > 1:
            parameter.diff_tensor().mul_(1 / self.param.iter_size)

    def _regularize(self, parameter: Parameter) -> None:
        """Add the weight decay's part to the diff."""
        p, diff = self.param, parameter.diff_tensor()
        decay = p.weight_decay * parameter.decay_mult
        if decay:
            data = parameter.tensor().detach()
            diff.add_(data if p.regularization_type == "L2" else data.sign(), alpha=decay)

    def _update_all(self, learned: list[tuple[int, Parameter]], rate: float) -> None:
        """Update parameters, given with their numbers; `rate` is the iteration's, without their lr_mult."""
        for i, parameter in learned:
            self._update(i, parameter, rate * parameter.lr_mult)

    def _update(self, i: int, parameter: Parameter, rate: float) -> None:
        """Turn the diff of parameter number `i` into the update, in place, and subtract it from the values."""
        self._normalize(parameter)
        self._regularize(parameter)
        diff = parameter.diff_tensor()
        self.compute_update(diff, self.history[i :: len(self.net.learnable_params)], rate)
        parameter.tensor().detach().sub_(diff)

    def compute_update(self, diff: torch.Tensor, history: list[torch.Tensor], rate: float) -> None:
        """The update rule: turn a parameter's gradient into what is subtracted from the parameter, in place.

        Parameters
        ----------
        diff: the gradient; becomes the update.
        history: the rule's memory of this parameter, `histories` tensors of its shape.
        rate: the learning rate times the parameter's lr_mult.
        """
        raise CaffeError(f"solver type {self.type!r} has no update rule; expected a solver that caffe.get_solver makes")

    def solve(self, resume_file: StrPath | None = None) -> None:
        """Train until max_iter, a `stop` request or early stopping, from a .solverstate if given.

        With a snapshot at the end, unless `snapshot_after_train` is false. A callback may move `param.max_iter`.
        """
        p = self.param
        log.info("solver.cpp:289", f"Solving {self.net.name}")
        log.info("solver.cpp:290", f"Learning Rate Policy: {p.lr_policy}")
        self.requested = None
        if resume_file is not None:
            log.info("solver.cpp:295", f"Restoring previous solver status from {resume_file}")
            self.restore(resume_file)
        self._train(lambda: p.max_iter)
        if p.snapshot_after_train and (not p.snapshot or self.iter % p.snapshot or self._left_out == self.iter):
            self.snapshot()
        if self.requested == "stop":
            log.info("solver.cpp:315", "Optimization stopped early.")
            return
        if self.stopped_early:  # after a test of the final parameters
            log.info("solver.cpp:332", "Optimization Done.")
            return
        if p.display and self.iter % p.display == 0:
            # one more forward pass, so that the log ends with the loss of the final parameters
            self._losses.append(self.net.compute(gradient=False))
            log.info("solver.cpp:327", f"Iteration {self.iter}, loss = {log.number(self.smoothed_loss())}")
        if p.test_interval and self.iter % p.test_interval == 0:
            self._test_and_judge()
        log.info("solver.cpp:332", "Optimization Done.")

    # Testing

    def test_all(self) -> list[dict[str, list[float]]]:
        """Test every test net on its `test_iter` batches, log the means of its outputs, and return them (`test`)."""
        return [self.test(i) for i in range(len(self.test_nets))]

    def _test_and_judge(self) -> None:
        """The tests that are due, and what follows from them: a lower rate, or the end."""
        p, means = self.param, self.test_all()
        if self.progress is None or self.monitor is None:
            return
        self.progress.add(self.monitor, means[0][self.monitor.name][0], self.iter)
        best = "none" if self.progress.best is None else log.number(self.progress.best)
        if p.lr_policy == "plateau" and self.progress.reduce_rate(p.patience):
            rate = log.number(learning_rate(p, self.iter, self.progress.rate_reductions))
            log.info("solver.py", f"{p.patience} tests without a better {p.monitor} than {best}: lr falls to {rate}")
        self.stopped_early = 0 < p.early_stop <= self.progress.tests_since_best
        if self.stopped_early:
            tests = self.progress.tests_since_best
            log.info("solver.py", f"Early stopping: {tests} tests without a better {p.monitor} than {best}")

    def test(self, number: int = 0) -> dict[str, list[float]]:
        """Mean outputs of a test net over its `test_iter` batches, by name, with the training net's parameters.

        Where they are averaged, with the average.
        """
        self._ask_device()
        log.info("solver.cpp:347", f"Iteration {self.iter}, Testing net (#{number})")
        net = self.test_nets[number]
        if self.average is None:
            net.share_with(self.net)
        else:
            self.average.share_with(net)
        batches = self.param.test_iter[number]
        sums: dict[str, torch.Tensor] = {}
        loss = torch.zeros((), device=net.device)
        for _ in range(batches):
            loss = loss + net.compute(gradient=False)
            for name in net.outputs:
                value = net.blobs[name].tensor().double().reshape(-1)
                sums[name] = sums[name] + value if name in sums else value
        if self.param.test_compute_loss:
            log.info("solver.cpp:402", f"Test loss: {log.number(float(loss / batches))}")
        means = {name: (total / batches).tolist() for name, total in sums.items()}
        output = 0
        for name, values in means.items():
            for value in values:
                line = output_text(name, value, net.blob_loss_weights[name])
                log.info("solver.cpp:414", f"    Test net output #{output}: {line}")
                output += 1
        for callback in self.on_test:
            callback(self, number, {name: values[0] for name, values in means.items() if len(values) == 1})
        return means

    # Snapshots

    def weights(self) -> list[torch.Tensor]:
        """A copy of the weights that tests use: the average where there is one, else the net's own.

        On the net's device, in the order of `net.learnable_params`.
        """
        own = [parameter.tensor().detach() for parameter in self.net.learnable_params]
        return [tensor.clone() for tensor in (own if self.average is None else self.average.weights())]

    def save_weights(self, path: StrPath, weights: list[torch.Tensor] | None = None) -> None:
        """Write weights, all or nothing: those that `weights` gave earlier, or gives now.

        A path that ends in `.h5` becomes a .caffemodel.h5, any other a .caffemodel.
        """
        if weights is None and self.average is not None:
            weights = self.average.weights()
        with nullcontext() if weights is None else other_weights(self.net, weights):
            (self.net.save_hdf5 if str(path).endswith(".h5") else self.net.save)(path)

    def _time_for_snapshot(self) -> bool:
        """Whether a snapshot takes no more than its share of the time since the last one."""
        if self._snapshot_seconds < QUICK_SNAPSHOT:
            return True
        return time.perf_counter() - self._snapshot_end >= self._snapshot_seconds * (1 / self.snapshot_share - 1)

    def snapshot(self) -> str:
        """Write PREFIX_iter_N.caffemodel and then PREFIX_iter_N.solverstate; returns the latter's path.

        With `snapshot_format: HDF5` they are HDF5 files, and their names end in `.h5`. Where weights are averaged,
        PREFIX_iter_N_averaged.caffemodel stands beside them; training goes on from the weights in the first.
        """
        self._ask_device()
        start = time.perf_counter()
        for before in self.before_snapshot:
            before(self)
        prefix = f"{self.param.snapshot_prefix}_iter_{self.iter}"
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        hdf5_format = self.param.snapshot_format == SolverParameter.HDF5
        ending, kind = (".h5", "HDF5 file") if hdf5_format else ("", "binary proto file")
        model, state_file = f"{prefix}.caffemodel{ending}", f"{prefix}.solverstate{ending}"
        log.info("solver.cpp:464", f"Snapshotting to {kind} {model}")
        (self.net.save_hdf5 if hdf5_format else self.net.save)(model, self.param.snapshot_diff)
        if self.average is not None and self.average.count:
            averaged = f"{prefix}_averaged.caffemodel{ending}"
            log.info("solver.cpp:464", f"Snapshotting to {kind} {averaged}")
            self.save_weights(averaged)
        layer_states = {
            prefix_name + layer: values
            for net, prefix_name in self._stateful_nets()
            for layer, values in net.states().items()
        }
        state = hdf5.State(
            iteration=self.iter,
            learned_net=model,
            current_step=self._current_step(),
            history=[history.detach().cpu().numpy() for history in self.history],
            layer_states=layer_states,
            loss_window=[float(loss) for loss in self._losses],
            average=[] if self.average is None else [value.cpu().numpy() for value in self.average.values],
            averaged=0 if self.average is None else self.average.count,
            progress=self.progress,
        )
        log.info("sgd_solver.cpp:284", f"Snapshotting solver state to {kind} {state_file}")
        (hdf5.write_state if hdf5_format else solver_state.write_state)(state_file, state)
        for callback in self.on_snapshot:
            callback(self, state_file)
        self._snapshot_end = time.perf_counter()
        self._snapshot_seconds = self._snapshot_end - start
        return state_file

    def _current_step(self) -> int:
        p = self.param
        if p.lr_policy == "step":
            return self.iter // p.stepsize
        return sum(self.iter >= value for value in p.stepvalue) if p.lr_policy == "multistep" else 0

    def _stateful_nets(self) -> list[tuple[Net, str]]:
        return [(self.net, ""), *((net, f"test{i}/") for i, net in enumerate(self.test_nets))]

    def restore(self, state_file: StrPath) -> None:
        """Go on from a .solverstate(.h5): ours continues as if never stopped; Caffe's own has no data position.

        Raises CaffeError where the file, or the weights that it names, are missing or do not fit the net.
        """
        shapes = [tuple(history.shape) for history in self.history]
        average = [] if self.average is None else [parameter.shape for parameter in self.net.learnable_params]
        if str(state_file).endswith(".solverstate"):
            state = solver_state.read_state(state_file, shapes, average)
        elif str(state_file).endswith(".solverstate.h5"):
            state = hdf5.read_state(state_file, shapes, average)
        else:
            raise CaffeError(f"{state_file}: expected a .solverstate or a .solverstate.h5")
        solver_state.check_counts(state_file, state)
        found = [
            (layer, values)
            for net, prefix in self._stateful_nets()
            for layer in net.layers
            if (values := state.layer_states.get(prefix + layer.name)) is not None and layer.state()
        ]
        before = [(layer, layer.state()) for layer, _ in found]
        try:
            for layer, values in found:
                layer.set_state(dict(values))
            if state.learned_net:
                self.net.copy_from(self._find_model(state.learned_net, state_file))
        except CaffeError:  # all or nothing
            for layer, old in before:
                layer.set_state(old)
            raise
        for array, history in zip(state.history, self.history, strict=True):
            history.copy_(torch.from_numpy(array))
        self.iter = state.iteration
        if self.average is not None:
            weights = [torch.tensor(array, device=self.net.device) for array in state.average]
            self.average.set_state(weights, state.averaged)
        if self.progress is not None:
            self.progress = state.progress or Progress()
        self._losses.clear()
        self._losses.extend(torch.tensor(loss) for loss in state.loss_window)

    @staticmethod
    def _find_model(learned_net: str, state_file: StrPath) -> Path:
        """The .caffemodel by the path it was written to, else beside the .solverstate (the folder may have moved)."""
        for path in (Path(learned_net), Path(state_file).parent / Path(learned_net).name):
            if path.is_file():
                return path
        raise CaffeError(f"{state_file}: its weights {learned_net} are neither there nor beside it")


def output_text(name: str, value: float, weight: float) -> str:
    """An output as Caffe's logs have it: `loss = 1.5 (* 1 = 1.5 loss)`, or without a loss weight `accuracy = 0.5`."""
    line = f"{name} = {log.number(value)}"
    return f"{line} (* {log.number(weight)} = {log.number(weight * value)} loss)" if weight else line
