"""Quality with labels, as counts that add up; and estimated without labels.

Counts per window, version and slice merge like profiles; metrics and their 95 % intervals follow
from them: Wilson for shares, DeLong from the score histograms, the delta method for the rest. A row
is labelled if its prediction and its label are there. Source: monitors.md, "Quality".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import bins, cells, estimation, heavy, intervals

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Problem = Literal["classification", "regression"]
Measure = dict[str, Any]

PROBLEMS = ("classification", "regression")
MOST_SCORED_LABELS = 50
CLIP = 1e-15

# Losses of a score, as if its label were the positive class and as if it were not.
_LOSSES = (
    *("rows", "log_if", "log_if_squared", "log_if_not", "log_if_not_squared"),
    *("brier_if", "brier_if_squared", "brier_if_not", "brier_if_not_squared"),
)
# Sums over rows of label y, error e = label - prediction, relative error a = abs(e / y) if y != 0.
_MOMENTS = ("rows", "y", "y2", "y3", "y4", "e_abs", "e2", "e4", "e2y", "e2y2", "a", "a2", "a_rows")


@dataclass(frozen=True, slots=True, eq=False)
class QualityCounts:
    """Additive counts. rows: all; labelled: with prediction and label; delays: seconds from request
    to label. confusion: (prediction, label) -> rows, what has no place in right and wrong_rest.

    losses: label -> sums as named in _LOSSES; scores: histograms by label, predicted: by prediction
    of all rows with a score. moments: as named in _MOMENTS, for regression."""

    problem: str
    rows: int = 0
    labelled: int = 0
    delays: bins.Histogram = field(default_factory=bins.Histogram)
    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict)
    right_rest: int = 0
    wrong_rest: int = 0
    losses: Mapping[str, Floats] = field(default_factory=dict)
    scores: Mapping[str, bins.Histogram] = field(default_factory=dict)
    predicted: Mapping[str, bins.Histogram] = field(default_factory=dict)
    moments: Floats = field(default_factory=lambda: np.zeros(len(_MOMENTS)))


def summarise(frame: pl.DataFrame, problem: str) -> QualityCounts:
    """The counts of some rows: columns prediction, score, label, request_time, label_time, of which
    any may be absent. Raises ValueError on an unknown problem."""
    empty(problem)
    columns = {name: cells.column(frame, name) for name in ("prediction", "label", "score")}
    labelled = cells.present(columns["prediction"]) & cells.present(columns["label"])
    shared: dict[str, Any] = {
        "problem": problem,
        "rows": len(frame),
        "labelled": int(labelled.sum()),
        "delays": _delays(frame, labelled),
    }
    with np.errstate(over="ignore", invalid="ignore"):
        if problem == "classification":
            return QualityCounts(**shared, **_classified(columns, labelled))
        return QualityCounts(**shared, moments=_moments(columns, labelled))


def empty(problem: str) -> QualityCounts:
    """The counts of no rows."""
    if problem not in PROBLEMS:
        raise ValueError(f"problem: expected {' | '.join(PROBLEMS)}, found {problem!r}.")
    return QualityCounts(problem)


def merge(a: QualityCounts, b: QualityCounts) -> QualityCounts:
    """The counts of the rows of both. Raises ValueError where the problems differ."""
    if a.problem != b.problem:
        raise ValueError(f"Counts of different problems: {a.problem} and {b.problem}.")
    return QualityCounts(
        problem=a.problem,
        rows=a.rows + b.rows,
        labelled=a.labelled + b.labelled,
        delays=bins.added(a.delays, b.delays),
        confusion=_union(a.confusion, b.confusion, lambda n, m: n + m),
        right_rest=a.right_rest + b.right_rest,
        wrong_rest=a.wrong_rest + b.wrong_rest,
        losses=_union(a.losses, b.losses, lambda n, m: n + m),
        scores=_union(a.scores, b.scores, bins.added),
        predicted=_union(a.predicted, b.predicted, bins.added),
        moments=a.moments + b.moments,
    )


def metrics(counts: QualityCounts) -> dict[str, Measure]:
    """Each metric as {"value", "low", "high", "n"}, with "reason" where the value is None.

    Two classes: of the positive one, the greater value; several: the macro mean."""
    coverage = intervals.share(counts.labelled, counts.rows, "no rows")
    delay = {
        f"label_delay_p{round(100 * q)}_seconds": _delay(counts.delays, q) for q in (0.5, 0.95)
    }
    if counts.problem == "regression":
        return {**_regression(counts), "label_coverage": coverage, **delay}
    return {**_classification(counts), "label_coverage": coverage, **delay}


def by_class(counts: QualityCounts) -> dict[str, dict[str, Any]]:
    """precision, recall, f1 -> {"one_vs_all": {class: value or None}, "macro", "weighted"}.

    As scikit-learn averages: an undefined value of a class counts as 0, weights are labels."""
    names = classes(counts)
    support = np.array([_cells(counts, name).labels for name in names], dtype=float)
    result = {}
    for metric in ("precision", "recall", "f1"):
        values = {name: getattr(_cells(counts, name), metric)()["value"] for name in names}
        filled = np.array([value or 0.0 for value in values.values()])
        known = support.sum() > 0
        result[metric] = {
            "one_vs_all": values,
            "macro": float(filled.mean()) if known else None,
            "weighted": float(np.average(filled, weights=support)) if known else None,
        }
    return result


def confusion(counts: QualityCounts) -> list[dict[str, Any]]:
    """[{"prediction", "label", "count"}], by label and prediction."""
    ordered = sorted(counts.confusion.items(), key=lambda item: (item[0][1], item[0][0]))
    return [{"prediction": p, "label": y, "count": count} for (p, y), count in ordered]


def classes(counts: QualityCounts) -> list[str]:
    """The classes seen in labels and predictions, numbers by size, texts by letter."""
    return sorted({name for pair in counts.confusion for name in pair}, key=_class_order)


def positive_class(names: list[str]) -> str | None:
    """The greater of two classes; None where there are more. One class alone may be the lesser."""
    for pair in (["0", "1"], ["false", "true"]):
        if set(names) <= set(pair):
            return pair[1]
    return names[-1] if len(names) == 2 else None


def estimated(reference: QualityCounts, current: QualityCounts) -> dict[str, Measure]:
    """Quality of the current rows without their labels (confidence-based, CBPE): accuracy,
    precision, recall, f1, roc_auc. Two classes only; see estimation.py."""
    seen = sorted({*classes(reference), *current.predicted}, key=_class_order)
    positive = positive_class(seen)
    if positive is None:
        return estimation.nothing("an estimate needs a score and two classes")
    chosen, others = _sides(reference.scores, positive)
    calibration = estimation.calibrate(chosen, others)
    if calibration is None:
        return estimation.nothing("the reference has no scores with labels of two classes")
    return estimation.expect(*_sides(current.predicted, positive), calibration)


def to_dict(counts: QualityCounts) -> dict[str, Any]:
    """JSON-able; the same rows give the same bytes."""
    return {
        "problem": counts.problem,
        "rows": counts.rows,
        "labelled": counts.labelled,
        "delays": bins.to_lists(counts.delays),
        "confusion": [[p, y, n] for (p, y), n in sorted(counts.confusion.items())],
        "right_rest": counts.right_rest,
        "wrong_rest": counts.wrong_rest,
        "losses": {name: sums.tolist() for name, sums in sorted(counts.losses.items())},
        "scores": {name: bins.to_lists(h) for name, h in sorted(counts.scores.items())},
        "predicted": {name: bins.to_lists(h) for name, h in sorted(counts.predicted.items())},
        "moments": [value if isfinite(value) else None for value in counts.moments.tolist()],
    }


def from_dict(stored: Mapping[str, Any]) -> QualityCounts:
    """The counts that to_dict was given."""
    return QualityCounts(
        problem=stored["problem"],
        rows=stored["rows"],
        labelled=stored["labelled"],
        delays=bins.from_lists(stored["delays"]),
        confusion={(p, y): n for p, y, n in stored["confusion"]},
        right_rest=stored["right_rest"],
        wrong_rest=stored["wrong_rest"],
        losses={name: np.array(sums) for name, sums in stored["losses"].items()},
        scores={name: bins.from_lists(h) for name, h in stored["scores"].items()},
        predicted={name: bins.from_lists(h) for name, h in stored["predicted"].items()},
        moments=np.array([np.inf if x is None else x for x in stored["moments"]]),
    )


@dataclass(frozen=True, slots=True)
class _Cells:
    """One class against all others."""

    true_positive: float
    predictions: float
    labels: float

    def precision(self) -> Measure:
        return intervals.share(self.true_positive, self.predictions, "no row was predicted so")

    def recall(self) -> Measure:
        return intervals.share(self.true_positive, self.labels, "no row has this label")

    def f1(self) -> Measure:
        """Wilson on hits among the rows that are either, then f1 = 2 j / (1 + j) of that share."""
        either = self.predictions + self.labels - self.true_positive
        hit = intervals.share(self.true_positive, either, "no row has or was predicted this label")
        for end in ("value", "low", "high"):
            hit[end] = None if hit[end] is None else 2 * hit[end] / (1 + hit[end])
        return hit


def _delays(frame: pl.DataFrame, labelled: NDArray[np.bool_]) -> bins.Histogram:
    times = [cells.instants(cells.column(frame, name)) for name in ("label_time", "request_time")]
    delay = (times[0] - times[1]).filter(pl.Series(labelled)).drop_nulls()
    return bins.histogram(np.maximum(delay.to_numpy() / 1e6, 0.0))


def _classified(columns: Mapping[str, pl.Series], labelled: NDArray[np.bool_]) -> dict[str, Any]:
    prediction, label = _class_names(columns["prediction"], columns["label"])
    score = cells.numbers(columns["score"])
    scored = ~np.isnan(score)
    both = pl.DataFrame({"p": prediction, "y": label}).filter(pl.Series(labelled))
    table = both.group_by("p", "y").len("n").sort("n", "p", "y", descending=[True, False, False])
    kept, rest = table.head(heavy.MOST_CATEGORIES), table.slice(heavy.MOST_CATEGORIES)
    right = int(rest.filter(pl.col("p") == pl.col("y"))["n"].sum())
    labels = label.filter(pl.Series(labelled & scored))
    return {
        "confusion": {(p, y): n for p, y, n in kept.iter_rows()},
        "right_rest": right,
        "wrong_rest": int(rest["n"].sum()) - right,
        "losses": {
            name: _losses(values) for name, values in _split(score[labelled & scored], labels)
        },
        "scores": {
            name: bins.histogram(values)
            for name, values in _split(score[labelled & scored], labels)
        },
        "predicted": {
            name: bins.histogram(values)
            for name, values in _split(score[scored], prediction.filter(pl.Series(scored)))
        },
    }


def _class_names(prediction: pl.Series, label: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Classes as texts; a boolean beside numbers is 0 or 1."""
    kinds = {prediction.dtype, label.dtype}
    if pl.Boolean in kinds and len(kinds) > 1 and all(cells.numeric(kind) for kind in kinds):
        prediction, label = (
            side.cast(pl.Int64) if side.dtype == pl.Boolean else side
            for side in (prediction, label)
        )
    return cells.texts(prediction).alias("p"), cells.texts(label).alias("y")


def _split(score: Floats, names: pl.Series) -> list[tuple[str, Floats]]:
    """The scores of each class; none where there are too many classes to be one."""
    found = names.drop_nulls().unique().sort().to_list()
    if len(found) > MOST_SCORED_LABELS:
        return []
    return [(name, score[(names == name).fill_null(False).to_numpy()]) for name in found]


def _losses(score: Floats) -> Floats:
    """What is no probability has no such loss."""
    score = score[(score >= 0) & (score <= 1)]
    sure = np.clip(score, CLIP, 1 - CLIP)
    parts = (-np.log(sure), -np.log1p(-sure), (1 - score) ** 2, score**2)
    return np.array([len(score), *(x for p in parts for x in (p.sum(), np.dot(p, p)))], dtype=float)


def _moments(columns: Mapping[str, pl.Series], labelled: NDArray[np.bool_]) -> Floats:
    y, prediction = (cells.numbers(columns[name])[labelled] for name in ("label", "prediction"))
    there = ~(np.isnan(y) | np.isnan(prediction))
    y, e = y[there], (y - prediction)[there]
    a = np.abs(e[y != 0] / y[y != 0])
    powers = (y, y**2, y**3, y**4, np.abs(e), e**2, e**4, e**2 * y, e**2 * y**2, a, a**2)
    return np.array([len(y), *(x.sum() for x in powers), len(a)], dtype=float)


def _classification(counts: QualityCounts) -> dict[str, Measure]:
    right = sum(n for (p, y), n in counts.confusion.items() if p == y) + counts.right_rest
    names = classes(counts)
    positive = positive_class(names)
    found = {"accuracy": intervals.share(right, counts.labelled, "no labels")}
    if positive is None:
        for metric in ("precision", "recall", "f1"):
            each = [getattr(_cells(counts, name), metric)() for name in names]
            found[metric] = intervals.macro(each, counts.labelled)
        several = intervals.unknown("a score per row tells two classes apart, not several")
        return {**found, "roc_auc": several, "log_loss": several, "brier": several}
    own = _cells(counts, positive)
    return {
        **found,
        "precision": own.precision(),
        "recall": own.recall(),
        "f1": own.f1(),
        "roc_auc": _roc_auc(counts, positive),
        "log_loss": _loss(counts, positive, "log"),
        "brier": _loss(counts, positive, "brier"),
    }


def _cells(counts: QualityCounts, name: str) -> _Cells:
    items = counts.confusion.items()
    return _Cells(
        counts.confusion.get((name, name), 0),
        sum(n for (p, _), n in items if p == name),
        sum(n for (_, y), n in items if y == name),
    )


def _loss(counts: QualityCounts, positive: str, kind: str) -> Measure:
    rows, total, squares = 0.0, 0.0, 0.0
    for name, losses in counts.losses.items():
        at = _LOSSES.index(f"{kind}_if" if name == positive else f"{kind}_if_not")
        rows, total, squares = rows + losses[0], total + losses[at], squares + losses[at + 1]
    return intervals.mean(rows, total, squares, "no scores with labels")


def _sides(
    histograms: Mapping[str, bins.Histogram], positive: str
) -> tuple[bins.Histogram, bins.Histogram]:
    """The histogram of the positive class, and that of all others."""
    chosen, others = bins.Histogram(), bins.Histogram()
    for name, histogram in histograms.items():
        if name == positive:
            chosen = histogram
        else:
            others = bins.added(others, histogram)
    return chosen, others


def _roc_auc(counts: QualityCounts, positive: str) -> Measure:
    """Mann-Whitney on the histograms, equal bins counted half; standard error after DeLong.

    `bound`: the area from the scores themselves is at most this far away, half the share of pairs
    of a positive and a negative in one bin."""
    ones, zeros = _sides(counts.scores, positive)
    p, n = ones.total, zeros.total
    if p == 0 or n == 0:
        return intervals.unknown("scores with labels of both classes are needed", p + n)
    keys = np.union1d(ones.keys, zeros.keys)
    one, zero = bins.spread(ones, keys), bins.spread(zeros, keys)
    v10 = (np.cumsum(zero) - zero / 2) / n
    v01 = 1 - (np.cumsum(one) - one / 2) / p
    value = float(np.dot(one, v10) / p)
    bound = float(np.dot(one, zero)) / (2 * p * n)
    if p < 2 or n < 2:
        return {"value": value, "low": None, "high": None, "n": p + n, "bound": bound}
    variance = sum(
        float(np.dot(weight, (v - value) ** 2)) / (size - 1) / size
        for weight, v, size in ((one, v10, p), (zero, v01, n))
    )
    return {**intervals.around(value, sqrt(variance), p + n, 0.0, 1.0), "bound": bound}


def _regression(counts: QualityCounts) -> dict[str, Measure]:
    m = dict(zip(_MOMENTS, counts.moments.tolist(), strict=True))
    n = m["rows"]
    mse = intervals.mean(n, m["e2"], m["e4"], reason="no labels")
    rmse = dict(mse)
    for end in ("value", "low", "high"):
        rmse[end] = None if rmse[end] is None else sqrt(max(0.0, rmse[end]))
    return {
        "mae": intervals.mean(n, m["e_abs"], m["e2"], reason="no labels"),
        "mse": mse,
        "rmse": rmse,
        "mape": intervals.mean(m["a_rows"], m["a"], m["a2"], reason="no label other than 0"),
        "r2": _r2(m),
    }


def _r2(m: Mapping[str, float]) -> Measure:
    """1 - sum e^2 / sum (y - mean)^2; its variance from the influence of each row, in moments."""
    n = int(m["rows"])
    if n < 2:
        return intervals.unknown("fewer than two labels", n)
    mean = m["y"] / n
    spread = m["y2"] - n * mean**2
    if not isfinite(spread) or spread <= 1e-12 * m["y2"]:
        return intervals.unknown("all labels are equal", n)
    ratio = m["e2"] / spread
    d4 = m["y4"] - 4 * mean * m["y3"] + 6 * mean**2 * m["y2"] - 3 * n * mean**4
    cross = m["e2y2"] - 2 * mean * m["e2y"] + mean**2 * m["e2"]
    squares = m["e4"] - 2 * ratio * cross + ratio**2 * d4
    return intervals.around(1 - ratio, sqrt(max(0.0, squares)) / spread, n, None, 1.0)


def _delay(delays: bins.Histogram, q: float) -> Measure:
    """A quantile of the delay; the interval from the ranks that a quantile may have."""
    n = delays.total
    if n == 0:
        return intervals.unknown("no label with its time")
    middle, cumulated = bins.middles(delays), np.cumsum(delays.counts)
    room = intervals.Z * sqrt(q * (1 - q) / n)
    ends = np.clip(np.array([q, q - room, q + room]), 0, 1) * (n - 1)
    values = middle[np.searchsorted(cumulated, ends, side="right").clip(max=len(middle) - 1)]
    return {"value": float(values[0]), "low": float(values[1]), "high": float(values[2]), "n": n}


def _union(a: Mapping[Any, Any], b: Mapping[Any, Any], add: Callable[[Any, Any], Any]) -> Any:
    result = dict(a)
    for name, value in b.items():
        result[name] = add(result[name], value) if name in result else value
    return result


def _class_order(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
