"""A window as a whole: its rows and their quality, of all versions together and of each."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from monitors import baseline, fairness, kept, metric_rows, quality, slices, watch, watched

Groups = dict[str | None, metric_rows.TableGroup]
TWINS = {"true": "false", "false": "true"}


def of_window(known: watch.Watch, key: kept.WindowKey) -> Groups:
    """From the rows that are held; of a snapshot from its profiles, without quality."""
    shape = known.shape
    if shape.time_column is None:
        window = known.kept.window(key) or {}
        n = max((one.rows for (version, _), one in window.items() if version is None), default=0)
        return {None: metric_rows.TableGroup(n, None, {}, {})}
    rows: dict[str | None, int] = {}
    counts: dict[str | None, quality.QualityCounts] = {}
    for portion in known.rows_of(key, _columns(shape)):
        for version, part in _by_version(portion, shape.model_id_col):
            rows[version] = rows.get(version, 0) + part.height
            counted = _counts(known, part)
            if counted is not None:
                before = counts.get(version)
                counts[version] = counted if before is None else quality.merge(before, counted)
    return {
        version: _group(known, n, counts.get(version), key.slice) for version, n in rows.items()
    }


def _columns(shape: watched.Shape) -> list[str]:
    """What the quality of rows is told by."""
    named = (shape.model_id_col, shape.prediction_col, shape.score_col, _label(shape))
    return ["__time", "label_time", *(name for name in named if name is not None)]


def _label(shape: watched.Shape) -> str | None:
    return "label" if shape.recorded else shape.label_col


def _by_version(rows: pl.DataFrame, model: str | None) -> Iterator[tuple[str | None, pl.DataFrame]]:
    """All rows, and those of each version."""
    yield None, rows
    if model is not None and model in rows.columns:
        for (version,), part in rows.partition_by(model, as_dict=True).items():
            if version is not None:
                yield str(version), part


def _counts(known: watch.Watch, rows: pl.DataFrame) -> quality.QualityCounts | None:
    shape = known.shape
    label = _label(shape)
    if shape.problem is None or label not in rows.columns:
        return None
    renamed = {
        label: "label",
        shape.prediction_col: "prediction",
        shape.score_col: "score",
        "__time": "request_time",
    }
    frame = rows.select(
        *(pl.col(old).alias(new) for old, new in renamed.items() if old in rows.columns),
        *(["label_time"] if "label_time" in rows.columns else []),
    )
    if "prediction" not in frame.columns:
        return None
    return quality.summarise(frame.filter(pl.col("prediction").is_not_null()), shape.problem)


def _group(
    known: watch.Watch,
    rows: int,
    counts: quality.QualityCounts | None,
    slice_: slices.Slice | None,
) -> metric_rows.TableGroup:
    if counts is None:
        return metric_rows.TableGroup(rows, None, {}, {})
    estimated: Mapping[str, Mapping[str, Any]] = {}
    reference = known.baseline.of(slice_).counts if known.baseline is not None else None
    if reference is not None and known.shape.problem == "classification":
        estimated = quality.estimated(reference, counts)
    return metric_rows.TableGroup(rows, counts, quality.metrics(counts), estimated)


def of_baseline(reference: baseline.Baseline) -> Groups:
    """Of the rows of a baseline; the quality of all versions together alone."""
    rows: dict[str | None, int] = {}
    for (version, _), one in reference.profiles.items():
        rows[version] = max(one.rows, rows.get(version, 0))
    return {
        version: _counted(n, reference.counts if version is None else None)
        for version, n in rows.items()
    }


def _counted(rows: int, counts: quality.QualityCounts | None) -> metric_rows.TableGroup:
    measured = {} if counts is None else quality.metrics(counts)
    return metric_rows.TableGroup(rows, counts, measured, {})


def merged(a: Groups, b: Groups) -> Groups:
    """Of the rows of both, without estimates."""
    nothing = metric_rows.TableGroup(0, None, {}, {})
    found: Groups = {}
    for version in {**a, **b}:
        one, other = a.get(version, nothing), b.get(version, nothing)
        counts = one.counts or other.counts
        if one.counts is not None and other.counts is not None:
            counts = quality.merge(one.counts, other.counts)
        found[version] = _counted(one.rows + other.rows, counts)
    return found


def twins(known: watch.Watch, keys: Collection[kept.WindowKey]) -> set[kept.WindowKey]:
    """The other sides of these windows: what is said of one depends on both."""
    return {other for key in keys if (other := _twin(known, key)) is not None}


def add_fairness(known: watch.Watch, found: dict[kept.WindowKey, Groups]) -> None:
    """Compare the protected sides with the others; both are among what was found."""
    for key in list(found):
        if key.slice is not None and key.slice[1] == "true":
            other = _twin(known, key)
            if other is not None and other in found:
                found[key] = _with_fairness(found[key], found[other])


def _twin(known: watch.Watch, key: kept.WindowKey) -> kept.WindowKey | None:
    """The other side of a slice that tells true from false, where a monitor judges classes."""
    if key.slice is None or known.shape.problem != "classification":
        return None
    text, value = key.slice
    if value not in TWINS or not slices.is_boolean(text, known.held.schema):
        return None
    other = key._replace(slice=(text, TWINS[value]))
    return other if known.kept.whole(other) is not None else None


def _with_fairness(protected: Groups, unprotected: Groups) -> Groups:
    found = dict(protected)
    for version, group in protected.items():
        other = unprotected.get(version)
        if group.counts is not None and other is not None and other.counts is not None:
            found[version] = replace(group, rates=fairness.compare(group.counts, other.counts))
    return found
