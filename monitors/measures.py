"""What a metric says of each row: right or wrong, a loss, a score with its class.

Source: experiments.md, "Policy": the metric value of a labelled row.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import cells, formulas, policies

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

CLIP = 1e-15


class Rows(Protocol):
    """Answers of which some are labelled."""

    @property
    def labelled(self) -> Flags: ...

    def column(self, name: str, rows: Ints) -> pl.Series:
        """The values of a column at these positions, all null where the column is absent."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows (positions) that have a value of a metric. values: y, or the score of an
    AUC; positive: the class of each row, for an AUC only."""

    rows: Ints
    values: Floats
    positive: Flags | None = None


def name_of(metric: policies.Metric) -> str:
    """Two metrics of one name here have the same value in every row."""
    said = (metric.kind, metric.name, metric.value, metric.positive, metric.score)
    return ":".join(map(repr, said))


def quality(policy: policies.Policy) -> dict[str, policies.Metric]:
    """Every labelled metric of a policy, by `name_of`; the primary first."""
    chosen = (policy.primary, *policy.guardrails, *policy.information)
    return {name_of(m): m for m in chosen if m.kind in policies.QUALITY_KINDS}


def sample(data: Rows, metric: policies.Metric) -> Sample:
    """The labelled rows that have a value of this metric."""
    labelled = np.flatnonzero(data.labelled)
    if metric.kind == "auc":
        score = cells.numbers(data.column(metric.score, labelled))
        there = ~np.isnan(score)
        positive = cells.is_value(data.column("label", labelled), metric.positive)[there]
        return Sample(labelled[there], score[there], positive)
    if metric.value is None and metric.kind == "binary":
        return _hits(data, metric, labelled)
    if metric.value is not None:
        y = _stated(data, metric.value, labelled)
    else:
        y = _losses(data, metric, labelled)
    there = np.isfinite(y)
    return Sample(labelled[there], y[there])


def _stated(data: Rows, text: str, labelled: Ints) -> Floats:
    """What a column, or else an expression, says of the labelled rows."""
    names = dict.fromkeys(["label", *formulas.names_in(text)])
    parts = [data.column(name, labelled).alias(name) for name in names]
    # A text that is no column is an expression; a column that it names and nobody has is null.
    there = [part for part in parts if part.name != text or part.dtype != pl.Null]
    return formulas.values(text, pl.DataFrame(there))


def _hits(data: Rows, metric: policies.Metric, labelled: Ints) -> Sample:
    prediction, label = (data.column(name, labelled) for name in ("prediction", "label"))
    y = cells.equal(prediction, label).astype(float)
    if metric.name not in ("recall", "precision"):
        return Sample(labelled, y)
    among = cells.is_value(label if metric.name == "recall" else prediction, metric.positive)
    return Sample(labelled[among], y[among])


def _losses(data: Rows, metric: policies.Metric, labelled: Ints) -> Floats:
    label = data.column("label", labelled)
    truth = cells.numbers(label)
    if metric.name in ("mse", "mae"):
        error = truth - cells.numbers(data.column("prediction", labelled))
        return error * error if metric.name == "mse" else np.abs(error)
    score = cells.numbers(data.column(metric.score, labelled))
    # A text, or a class named by the policy, is turned into 1 and 0; numbers stay what they are.
    if metric.positive != 1 or not cells.numeric(label.dtype):
        truth = cells.is_value(label, metric.positive).astype(float)
    if metric.name == "brier":
        return (score - truth) ** 2
    sure = np.clip(score, CLIP, 1 - CLIP)
    return -(truth * np.log(sure) + (1 - truth) * np.log1p(-sure))
