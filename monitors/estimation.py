"""Quality without labels, from what the scores promise (confidence-based, CBPE).

The score is calibrated on labelled rows (isotonic on the histogram); then the expected confusion
counts and AUC follow from the histograms of the current scores, without a scan. Source:
monitors.md, "Quality"; oracle: NannyML, tests/monitors/test_quality.py.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from monitors import bins, intervals

Floats = NDArray[np.float64]
Measure = dict[str, Any]

NAMES = ("accuracy", "precision", "recall", "f1", "roc_auc")


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Score -> probability of the positive class: ascending scores and values between which to
    interpolate."""

    scores: Floats
    probabilities: Floats

    def of(self, histogram: bins.Histogram) -> Floats:
        """The probability in each bin."""
        return np.interp(bins.middles(histogram), self.scores, self.probabilities)


def nothing(reason: str) -> dict[str, Measure]:
    """No estimate, and why."""
    return {name: intervals.unknown(reason) for name in NAMES}


def calibrate(positives: bins.Histogram, negatives: bins.Histogram) -> Calibration | None:
    """From the scores of either class; None where one is missing."""
    if positives.total == 0 or negatives.total == 0:
        return None
    every = bins.added(positives, negatives)
    share = bins.spread(positives, every.keys) / every.counts
    fitted = optimize.isotonic_regression(share, weights=every.counts.astype(float))
    return Calibration(bins.middles(every), fitted.x)


def expect(
    positive: bins.Histogram, negative: bins.Histogram, calibration: Calibration
) -> dict[str, Measure]:
    """Metrics to expect of rows predicted positive and negative, given by their scores. The
    intervals are those of the labels' own chance."""
    n = positive.total + negative.total
    if n == 0:
        return nothing("no scores")
    hits, hit_variance = _expected_ones(positive, calibration)
    missed, missed_variance = _expected_ones(negative, calibration)
    ones, either = hits + missed, positive.total + hits + missed
    # Delta method: recall = h / (h + m) and f1 = 2 h / (predicted + h + m) in hits h and missed m.
    recall_se = sqrt(missed**2 * hit_variance + hits**2 * missed_variance) / max(ones, 1e-300)
    f1_se = 2 * sqrt((either - hits) ** 2 * hit_variance + hits**2 * missed_variance)
    auc = _expected_auc(bins.added(positive, negative), calibration)
    right = hits + negative.total - missed
    return {
        "accuracy": intervals.ratio(right, n, sqrt(hit_variance + missed_variance), n, "no scores"),
        "precision": intervals.ratio(
            hits, positive.total, sqrt(hit_variance), n, "no row was predicted positive"
        ),
        "recall": intervals.ratio(hits, ones, recall_se, n, "no positive row is expected"),
        "f1": intervals.ratio(
            2 * hits, either, f1_se / max(either, 1e-300), n, "no positive row is expected"
        ),
        "roc_auc": intervals.hanley(auc, ones, n - ones),
    }


def _expected_ones(side: bins.Histogram, calibration: Calibration) -> tuple[float, float]:
    """How many rows are positive: expectation and variance."""
    p = calibration.of(side)
    return float(np.dot(side.counts, p)), float(np.dot(side.counts, p * (1 - p)))


def _expected_auc(every: bins.Histogram, calibration: Calibration) -> float | None:
    """AUC if each row were positive with its probability; equal probabilities tie."""
    p = calibration.of(every)
    values, at = np.unique(p, return_inverse=True)
    ones = np.bincount(at, every.counts * p, minlength=len(values))
    zeros = np.bincount(at, every.counts * (1 - p), minlength=len(values))
    if ones.sum() == 0 or zeros.sum() == 0:
        return None
    below = np.cumsum(zeros) - zeros / 2
    return float(np.dot(ones, below) / (ones.sum() * zeros.sum()))
