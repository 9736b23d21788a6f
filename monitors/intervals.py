"""A number with its 95 % interval, or the reason why there is none.

Fixed-sample intervals for quality over windows; what is watched and acted upon has its own,
always-valid ones (sequential.py).
"""

from collections.abc import Sequence
from math import isfinite, sqrt
from typing import Any

Measure = dict[str, Any]

Z = 1.959963984540054


def unknown(reason: str, n: int = 0) -> Measure:
    """No number, and why."""
    return {"value": None, "low": None, "high": None, "n": n, "reason": reason}


def around(value: float, se: float, n: float, least: float | None, most: float | None) -> Measure:
    """value -+ 1.96 standard errors, inside the limits a metric has."""
    low, high = value - Z * se, value + Z * se
    return {
        "value": value,
        "low": low if least is None else max(least, low),
        "high": high if most is None else min(most, high),
        "n": round(n),
    }


def share(part: float, whole: float, reason: str) -> Measure:
    """part / whole with Wilson's interval."""
    if whole <= 0:
        return unknown(reason)
    p, z2 = part / whole, Z * Z / whole
    middle = (p + z2 / 2) / (1 + z2)
    half = Z * sqrt(p * (1 - p) / whole + z2 / (4 * whole)) / (1 + z2)
    return {
        "value": p,
        "low": max(0.0, min(p, middle - half)),
        "high": min(1.0, max(p, middle + half)),
        "n": round(whole),
    }


def mean(n: float, total: float, squares: float, reason: str) -> Measure:
    """The mean of n values >= 0 from their sum and sum of squares."""
    if n <= 0:
        return unknown(reason)
    value = total / n
    if not isfinite(value):
        return unknown("the values are beyond the range of a double", round(n))
    if n < 2 or not isfinite(squares):
        return {"value": value, "low": None, "high": None, "n": round(n)}
    se = sqrt(max(0.0, squares - n * value * value) / (n - 1) / n)
    return around(value, se, n, 0.0, None)


def ratio(part: float, whole: float, se_of_part: float, n: float, reason: str) -> Measure:
    """part / whole, where part is an expectation with a standard error; within 0..1."""
    if whole <= 0:
        return unknown(reason, round(n))
    return around(part / whole, se_of_part / whole, n, 0.0, 1.0)


def macro(each: Sequence[Measure], n: int) -> Measure:
    """The mean over classes; an undefined class counts as 0, as scikit-learn has it."""
    if not each:
        return unknown("no labels", n)
    values = [one["value"] or 0.0 for one in each]
    halves = [(one["high"] - one["low"]) / 2 for one in each if one["value"] is not None]
    se = sqrt(sum(half * half for half in halves)) / len(each) / Z
    return around(sum(values) / len(each), se, n, 0.0, 1.0)


def hanley(auc: float | None, positives: float, negatives: float) -> Measure:
    """An expected AUC with the standard error of Hanley and McNeil (1982)."""
    n = positives + negatives
    if auc is None:
        return unknown("scores of both classes are expected nowhere", round(n))
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    square = auc * auc
    spread = auc * (1 - auc) + (positives - 1) * (q1 - square) + (negatives - 1) * (q2 - square)
    return around(auc, sqrt(max(0.0, spread) / (positives * negatives)), n, 0.0, 1.0)
