"""Averages of the weights over the iterations of a training, which test better than the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .blob import Parameter, Reshaped
from .errors import CaffeError
from .layers.normalization import BatchNorm, running_sums
from .net import Net
from .proto.caffe_pb2 import SolverParameter


@contextmanager
def other_weights(net: Net, values: list[torch.Tensor]) -> Iterator[None]:
    """Give a net other weights for a while, in the order of `learnable_params`; then its own again, bit for bit."""

    def own() -> list[torch.Tensor]:
        return [parameter.tensor().detach() for parameter in net.learnable_params]

    kept = [tensor.clone() for tensor in own()]
    torch._foreach_copy_(own(), values)
    try:
        yield
    finally:
        # asked for anew: on a GPU, saving makes host copies, and from these other tensors
        torch._foreach_copy_(own(), kept)


class WeightAverage:
    """An average of all parameters of a net, BatchNorm's running sums among them; a subclass says of which.

    Parameters
    ----------
    net: the training net. Its weights are read, and never changed.

    Attributes
    ----------
    values: the average, in the order of `net.learnable_params`; empty before the first set of weights.
    count: how many sets of weights it is made of.
    params: parameters by layer, as `Net.params`, for test nets: they hold what `publish` put there.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.values: list[torch.Tensor] = []
        self.count = 0
        copies = {id(own): Parameter(own.shape, own.device) for own in net.learnable_params}

        def copy_of(blob: Parameter) -> Parameter:
            copy = copies[id(blob.owner)]
            return copy if copy.shape == blob.shape else Reshaped(copy, blob.shape)

        self.params = {name: [copy_of(blob) for blob in blobs] for name, blobs in net.params.items()}
        self._copies = list(copies.values())

    def share(self, iteration: int) -> float:
        """What the weights of now count in the average; 0 where they are not taken.

        Parameters
        ----------
        iteration: iterations done.
        """
        raise NotImplementedError

    def update(self, iteration: int) -> None:
        """Take the net's weights into the average, if they are to be, after an iteration."""
        share = self.share(iteration)
        if not share:
            return
        weights = [parameter.tensor().detach() for parameter in self.net.learnable_params]
        if self.count == 0:
            self.values = [tensor.clone() for tensor in weights]
        else:
            torch._foreach_lerp_(self.values, weights, share)
        self.count += 1

    def weights(self) -> list[torch.Tensor]:
        """What to test and to save, in the order of `net.learnable_params`; before the first set the net's own."""
        return self.values or [parameter.tensor().detach() for parameter in self.net.learnable_params]

    def share_with(self, net: Net) -> None:
        """Let a test net use a copy of the average of now, by layer name."""
        torch._foreach_copy_([parameter.tensor().detach() for parameter in self._copies], self.weights())
        net.share_params(self.params)

    def set_state(self, values: list[torch.Tensor], count: int) -> None:
        """Go on from an average of `count` sets of weights, or with none from the beginning."""
        self.values, self.count = values, count if values else 0


class ExponentialAverage(WeightAverage):
    """Exponential moving average (Polyak and Juditsky 1992 in the form usual today): a ← d · a + (1 − d) · w.

    After every iteration, d = min(decay, (1 + n) / (10 + n)) with n sets of weights taken before: so the first
    weights, which are far from good, are soon forgotten. The first a is the first w.
    """

    def __init__(self, net: Net, decay: float) -> None:
        super().__init__(net)
        self.decay = decay

    def share(self, iteration: int) -> float:
        return 1 - min(self.decay, (1 + self.count) / (10 + self.count))


class StochasticAverage(WeightAverage):
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights on every `interval`-th iteration.

    The running sums of BatchNorm are those of the mean's own activations: `weights` makes them anew, by `batches`
    batches of training data, and then puts the data's position and all random states back.

    Parameters
    ----------
    net: the training net.
    start: iterations done before the first set of weights.
    interval: iterations from one set to the next.
    batches: of training data, from where the training stands, for BatchNorm's statistics.
    """

    def __init__(self, net: Net, start: int, interval: int, batches: int) -> None:
        super().__init__(net)
        self.start, self.interval, self.batches = start, interval, batches
        # layers that normalise by fixed sums have no statistics to make
        self._norms = [
            number for number, layer in enumerate(net.layers) if isinstance(layer, BatchNorm) and not layer.global_stats
        ]
        self._complete: list[torch.Tensor] | None = None

    def share(self, iteration: int) -> float:
        due = iteration >= self.start and (iteration - self.start) % self.interval == 0
        return 1 / (self.count + 1) if due else 0.0

    def update(self, iteration: int) -> None:
        super().update(iteration)
        self._complete = None  # not the average alone: the batches are those of each iteration, in a resumed run too

    def set_state(self, values: list[torch.Tensor], count: int) -> None:
        super().set_state(values, count)
        self._complete = None

    def weights(self) -> list[torch.Tensor]:
        if not self.values or not self._norms:
            return super().weights()
        if self._complete is None:
            self._complete = self._with_statistics()
        return self._complete

    def _with_statistics(self) -> list[torch.Tensor]:
        net = self.net
        sums = [blob.owner for number in self._norms for blob in net.layers[number].blobs]
        states = [(layer, state) for layer in net.layers if (state := layer.state())]
        debug_info, net.debug_info = net.debug_info, False  # these passes are no part of the training
        try:
            with other_weights(net, self.values), running_sums(net.layers, 1.0):
                for blob in sums:
                    blob.tensor().zero_()
                for _ in range(self.batches):
                    net.compute(end=self._norms[-1], gradient=False)
                made = {id(blob): blob.tensor().clone() for blob in sums}
        finally:
            net.debug_info = debug_info
            for layer, state in states:
                layer.set_state(state)
        pairs = zip(net.learnable_params, self.values, strict=True)
        return [made.get(id(parameter), value) for parameter, value in pairs]


def make_average(param: SolverParameter, net: Net) -> WeightAverage | None:
    """The average that a solver's settings ask for; None where they ask for none.

    Raises CaffeError for a setting out of range, and for both kinds at once.
    """
    p = param
    if not 0 <= p.ema_decay < 1:
        raise CaffeError(f"solver: ema_decay is {p.ema_decay:.6g}; expected at least 0 and less than 1")
    if p.swa_start < 0:
        return ExponentialAverage(net, p.ema_decay) if p.ema_decay else None
    if p.ema_decay:
        raise CaffeError(f"solver: ema_decay is {p.ema_decay:.6g} and swa_start {p.swa_start}; expected one of the two")
    for name, value in (("swa_interval", p.swa_interval), ("swa_bn_iter", p.swa_bn_iter)):
        if value < 1:
            raise CaffeError(f"solver: {name} is {value}; expected at least 1")
    if p.HasField("max_iter") and p.swa_start > p.max_iter:
        raise CaffeError(f"solver: swa_start is {p.swa_start}; expected at most max_iter, {p.max_iter}")
    return StochasticAverage(net, p.swa_start, p.swa_interval, p.swa_bn_iter)
