"""How sure an accuracy is, and how well scores rank: Wilson's interval, the ROC curve and the area under it."""

from __future__ import annotations

import math

import numpy as np

NORMAL_95 = 1.959963984540054  # 97.5% of a normal distribution lies below: two-sided 95%


def wilson_interval(correct: int, count: int, z: float = NORMAL_95) -> tuple[float, float]:
    """The score interval of Wilson (1927) for a share: of `count` independent trials `correct` succeeded.

    Parameters
    ----------
    correct: 0..count. count: at least 1.
    z: quantile of the normal distribution; the default makes it a 95% interval.

    Returns the lower and the upper end, 0..1. Raises ValueError for other counts.
    """
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"correct is {correct} of {count}; expected 0..count, and count at least 1")
    share = correct / count
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The receiver operating characteristic (Fawcett 2006): what share of positives and of negatives score at least t.

    Parameters
    ----------
    scores: N numbers, the higher the more positive.
    positive: N booleans, at least one of each.

    Returns
    -------
    The false and the true positive rates, float64, 0..1, from (0, 0) to (1, 1), a point for each distinct score: equal
    scores are passed together, so that the curve goes straight through a tie.

    Raises ValueError where there are only positives or only negatives.
    """
    positive = np.asarray(positive, bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        raise ValueError(f"{positives} positives and {negatives} negatives; expected at least one of each")
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked, right = np.asarray(scores)[order], positive[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # the last of each group of equal scores
    true, false = np.cumsum(right)[ends], np.cumsum(~right)[ends]
    return np.append(0.0, false / negatives), np.append(0.0, true / positives)


def area_under(false: np.ndarray, true: np.ndarray) -> float:
    """The area under a ROC curve, 0..1, by trapezoids.

    It is the Mann–Whitney statistic: the share of the pairs of a positive and a negative in which the positive scores
    higher, a tie as half.
    """
    return float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())


def corners(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same curve of straight lines without the points inside of a line; at least its two ends."""
    if len(x) < 3:
        return x, y
    turn = np.abs(np.diff(x)[:-1] * np.diff(y)[1:] - np.diff(x)[1:] * np.diff(y)[:-1]) > 1e-15
    kept = np.concatenate([[True], turn, [True]])
    return x[kept], y[kept]
