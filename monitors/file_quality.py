"""Quality between files: every window with its labels and without, as the JSON says it.

The contract is monitors.md, "Command line". A metric alerts outside the mean -+ 3 standard
deviations of what the reference's own windows realised.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from capture import errors
from monitors import estimation, files, passes, portions, quality

METRICS = {
    "classification": ("accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "brier"),
    "regression": ("mae", "mse", "rmse", "mape", "r2"),
}
MOST_CLASSES = 20
DEVIATIONS = 3.0
FEWEST_WINDOWS = 2
_ALL = portions.Slicing({}, {})

Counts = quality.QualityCounts
Measures = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row's answer and truth stand. id: joins the rows of a file of labels."""

    label: str
    prediction: str
    score: str | None = None
    id: str | None = None

    def of(self, source: files.Source, labels: pl.DataFrame | None = None) -> dict[str, str]:
        """Column of the file -> what it is. Raises InvalidParameter for one that is not there."""
        named = {self.prediction: "prediction"}
        if self.score is not None:
            named[self.score] = "score"
        if labels is not None and self.id is not None:
            named[self.id] = "id"
        elif self.label in source.schema:
            named[self.label] = "label"
        for name in named:
            if name not in source.schema:
                raise errors.InvalidParameter(
                    f"Column '{name}' is not there; there are {', '.join(source.schema)[:500]}."
                )
        return named


@dataclass(slots=True)
class Reference:
    """What the reference's rows realise: as a whole, and as limits from its own windows."""

    counts: Counts
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)


def problem_of(source: files.Source, label: str) -> str:
    """Classification where the labels are texts, truth values or few whole numbers."""
    values = source.sample([label])[label].drop_nulls()
    if not values.dtype.is_numeric():
        return "classification"
    whole = bool((values.cast(pl.Float64) % 1 == 0).all())
    return "classification" if whole and values.n_unique() <= MOST_CLASSES else "regression"


def read_labels(source: files.Source, columns: Columns) -> pl.DataFrame:
    """id and label of a file of labels; the last row of an id counts."""
    assert columns.id is not None
    wanted = [columns.id, columns.label]
    for name in wanted:
        if name not in source.schema:
            raise errors.InvalidParameter(
                f"Column '{name}' is not in the file of labels; there are "
                f"{', '.join(source.schema)[:500]}."
            )
    parts = [portions.frame(batch, wanted) for batch in source.batches(wanted)]
    if not parts:
        return pl.DataFrame(schema={"id": pl.String, "label": pl.Float64})
    rows = pl.concat(parts, how="vertical_relaxed").rename(
        {columns.id: "id", columns.label: "label"}
    )
    return rows.drop_nulls("id").unique("id", keep="last")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides and how the current one is cut. labels: of its rows, where they come apart."""

    reference: files.Source
    current: files.Source
    columns: Columns
    problem: str
    labels: pl.DataFrame | None
    windowing: portions.Windowing
    pool: Executor
    seen: Callable[[int], None]

    def measured_reference(self) -> Reference:
        """The reference in windows like those of the current side, and as a whole."""
        own = [
            counts
            for window in self._pass(self.reference, self._own_windowing(), None)
            for counts in window.measured.values()
        ]
        total = quality.empty(self.problem)
        for counts in own:
            total = quality.merge(total, counts)
        if total.labelled == 0:
            raise errors.InvalidParameter(
                f"The reference holds no row with '{self.columns.label}' and "
                f"'{self.columns.prediction}'."
            )
        return Reference(total, self._limits([quality.metrics(counts) for counts in own]))

    def _own_windowing(self) -> portions.Windowing:
        there = all(name in self.reference.schema for name in self.windowing.columns)
        return self.windowing if there else portions.Windowing()

    def _limits(self, windows: Sequence[Measures]) -> dict[str, tuple[float, float]]:
        limits = {}
        for name in METRICS[self.problem]:
            values = [found[name]["value"] for found in windows]
            known = np.array([value for value in values if value is not None])
            if len(known) >= FEWEST_WINDOWS:
                room = DEVIATIONS * float(known.std())
                limits[name] = (float(known.mean()) - room, float(known.mean()) + room)
        return limits

    def windows(self, reference: Reference) -> Iterator[dict[str, Any]]:
        """Every window of the current side; an empty file is one empty window."""
        any_window = False
        for window in self._pass(self.current, self.windowing, self.labels):
            any_window = True
            counts = window.measured[None, "all"]
            yield self._judged(window.key, counts, reference)
        if not any_window and self.windowing.by_position:
            yield self._judged(0, quality.empty(self.problem), reference)

    def _pass(
        self, source: files.Source, windowing: portions.Windowing, labels: pl.DataFrame | None
    ) -> Iterator[passes.Window[Counts]]:
        named = self.columns.of(source, labels)
        wanted = {*named, *windowing.columns}

        def jobs(batch: pa.RecordBatch) -> list[passes.Job[Counts]]:
            return [("all", lambda: self._counted(batch, named, labels))]

        plan = passes.Pass(windowing, _ALL, jobs, quality.merge, self.pool, self.seen)
        return plan.windows(source.batches([name for name in source.schema if name in wanted]))

    def _counted(
        self, batch: pa.RecordBatch, named: Mapping[str, str], labels: pl.DataFrame | None
    ) -> Counts:
        rows = portions.frame(batch, list(named)).rename(dict(named))
        if labels is not None:
            known = labels.with_columns(pl.col("id").cast(rows["id"].dtype, strict=False))
            rows = rows.join(known, on="id", how="left", maintain_order="left")
        return quality.summarise(rows, self.problem)

    def _judged(self, key: portions.Key, counts: Counts, reference: Reference) -> dict[str, Any]:
        found = quality.metrics(counts)
        estimates = (
            quality.estimated(reference.counts, counts)
            if self.problem == "classification"
            else estimation.nothing("an estimate needs a score and two classes")
        )
        wanted = METRICS[self.problem]
        sides = {
            "realized": {name: found[name] for name in wanted},
            "estimated": {name: one for name, one in estimates.items() if name in wanted},
        }
        alerts = [
            _mark(one, reference.limits.get(name))
            for measures in sides.values()
            for name, one in measures.items()
        ]
        return {
            "window": self.windowing.shown(key, counts.rows),
            "rows": counts.rows,
            "labelled": counts.labelled,
            "alert": any(alerts),
            **sides,
        }


def _mark(measure: dict[str, Any], limits: tuple[float, float] | None) -> bool:
    """Adds `alert` and the limits to a measure; null where either is not known."""
    value = measure["value"]
    outside = None
    if value is not None and limits is not None:
        outside = not limits[0] <= value <= limits[1]
    measure["alert"] = outside
    measure["limits"] = None if limits is None else list(limits)
    return bool(outside)
