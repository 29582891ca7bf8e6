"""Calibration: how well a net's probabilities say how often it is right, and the temperature that makes them do so.

Temperature scaling and the expected calibration error are those of Guo et al., "On Calibration of Modern Neural
Networks", 2017. `train.evaluate --calibrate-on NAME` uses this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from preprocessing.network_input import log_probabilities, soften

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # temperatures; beyond them nothing is learned about a classifier
BLUE, RED, GREY = "#0072B2", "#D55E00", "#666666"


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log(probability of the true class), in nats; probabilities N×classes, labels N."""
    return float(-log_probabilities(probabilities)[np.arange(len(labels)), labels].mean())


def find_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature by which the logits are divided so that the negative log-likelihood of the labels is lowest.

    Parameters
    ----------
    probabilities: N×classes, N at least 1, rows of sum 1.
    labels: N, the true classes, 0..classes - 1.

    Returns
    -------
    0.05..20, the same for the same arguments. The likelihood is convex in b = 1 / temperature, with the slope
    mean(sum_k p_k(b) z_k - z_label) for logits z, so halving the interval of b finds where the slope is 0. Where all
    answers are right there is no such place, and it is 1: the surer the likelier, which a few images, or easy ones, do
    not say of others.
    """
    if (probabilities.argmax(axis=1) == labels).all():
        return 1.0
    logits = log_probabilities(probabilities)
    true = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((soften(probabilities, 1 / inverse) * logits).sum(axis=1) - true).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    if slope(low) >= 0:
        return HIGHEST
    if slope(high) <= 0:
        return LOWEST
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


@dataclass
class Reliability:
    """Predictions by how sure they are: bin m of M has those whose highest probability is in ((m - 1) / M, m / M].

    count: images of each bin (int64). confidence, accuracy: the mean highest probability and the share of right
    answers of each bin, 0..1, 0 where it is empty.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error, 0..1: the bins' |accuracy - confidence|, weighed by their counts."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / max(self.count.sum(), 1))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Sort predictions (N×classes, rows of sum 1) into bins of equal width by their highest probability."""
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, values, minlength=bins) for values in (sure, right)]
    means = [np.divide(total, count, out=np.zeros(bins), where=count != 0) for total in sums]
    return Reliability(count, *means)


@dataclass
class Calibration:
    """One database's probabilities before and after their logits are divided by a temperature."""

    temperature: float
    before: Reliability
    after: Reliability
    likelihood_before: float  # negative log-likelihoods, nats an image
    likelihood_after: float

    def to_dict(self) -> dict[str, float]:
        """What evaluation.json says of it."""
        return {
            "ece": self.before.error,
            "ece_calibrated": self.after.error,
            "nll": self.likelihood_before,
            "nll_calibrated": self.likelihood_after,
        }


def calibrate(probabilities: np.ndarray, labels: np.ndarray, temperature: float) -> Calibration:
    """Compare the probabilities (N×classes) as they are with those at the temperature."""
    softened = soften(probabilities, temperature)
    return Calibration(
        temperature,
        reliability(probabilities, labels),
        reliability(softened, labels),
        negative_log_likelihood(probabilities, labels),
        negative_log_likelihood(softened, labels),
    )


def draw_reliability(calibrations: Sequence[tuple[str, Calibration]]) -> Figure:
    """Reliability diagrams, a row a database: accuracy by confidence before and after; calibrated is the diagonal."""
    figure = Figure(figsize=(9, 4.4 * len(calibrations)), dpi=120, layout="constrained")
    panels = figure.subplots(len(calibrations), 2, squeeze=False)
    for (name, calibration), (left, right) in zip(calibrations, panels, strict=True):
        _draw_bins(left, calibration.before, f"{name}: as trained")
        _draw_bins(right, calibration.after, f"{name}: temperature {calibration.temperature:.3f}")
    return figure


def _draw_bins(axes: Axes, bins: Reliability, title: str) -> None:
    number = len(bins.count)
    edges = np.arange(number) / number
    filled = bins.count > 0
    axes.bar(edges[filled], bins.accuracy[filled], 1 / number, align="edge", color=BLUE, edgecolor="white", zorder=2)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), zorder=3)
    axes.plot(bins.confidence[filled], bins.accuracy[filled], color=RED, marker="o", markersize=4, zorder=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.set_title(f"{title}, ECE {100 * bins.error:.2f}%", fontsize=11)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
