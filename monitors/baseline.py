"""What windows are compared with: profiles of a table of training rows, or of a fixed time range.

Per column for all rows; answers (prediction, score) also per version where the rows tell it, since
one version's answers are no yardstick for another's. Where the rows have the monitor's time column,
also the largest distance that the baseline's own windows have from the whole: weather and weekdays
make windows differ without any drift.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl
import pyarrow.parquet as pq

from capture import errors
from monitors import (
    custom_sums,
    distances,
    intake,
    kept,
    profile,
    quality,
    slices,
    tables,
    watched,
    windows,
)

if TYPE_CHECKING:
    from monitors import custom_metrics

SMALLEST_WINDOW = 200
MOST_WINDOWS = 400

MaximaKey = tuple[str | None, str, str]  # version, column, granularity


@dataclass(slots=True)
class Baseline:
    """Profiles and maxima of one baseline version. `problem`: why there are none, in words.

    before: not 0, and it has no profiles of its own: every window is compared with so many windows
    right before it."""

    baseline_version: int
    commit_version: int
    profiles: dict[kept.Group, kept.Profile] = field(default_factory=dict)
    maxima: dict[MaximaKey, dict[str, float]] = field(default_factory=dict)
    versions: tuple[str, ...] = ()
    counts: quality.QualityCounts | None = None
    problem: str | None = None
    by_slice: dict[slices.Slice, "Baseline"] = field(default_factory=dict)
    before: int = 0
    sums: dict[custom_sums.Group, custom_sums.Sums] = field(default_factory=dict)

    def of(self, slice_: slices.Slice | None) -> "Baseline":
        """The part that a slice is compared with; nothing where it has none of its rows."""
        if slice_ is None:
            return self
        nothing = Baseline(self.baseline_version, self.commit_version, versions=self.versions)
        return self.by_slice.get(slice_, nothing)

    def group(self, version: str | None, column: str, outputs: Sequence[str]) -> kept.Group:
        """Which profile a group of a window is compared with."""
        return kept.baseline_group(self.versions, version, column, outputs)


def read_rows(uri: str) -> tuple[pl.DataFrame, int]:
    """All rows of a Delta table and its commit version. Raises DoesNotExist, Unavailable."""
    table = tables.open_table(uri)
    if table is None:
        raise errors.DoesNotExist("the baseline table does not exist")
    files = tables.filesystem(uri)
    try:
        parts = [
            pl.DataFrame(pl.from_arrow(pq.read_table(path, filesystem=files, partitioning=None)))
            for path in sorted(intake.data_files(table))
        ]
    except (OSError, ValueError) as error:
        raise errors.Unavailable(
            f"the baseline table cannot be read: {type(error).__name__}"
        ) from None
    if not parts:
        return pl.DataFrame(), table.version()
    return pl.concat(parts, how="diagonal_relaxed"), table.version()


def build(
    rows: pl.DataFrame,
    shape: watched.Shape,
    columns: Mapping[str, watched.Column],
    baseline_version: int,
    commit_version: int,
    parts: Collection["custom_metrics.Part"] = (),
) -> Baseline:
    """Profile the rows of a baseline once. `columns`: every watched column, decided already;
    `parts`: of custom metrics."""
    made = Baseline(baseline_version, commit_version)
    if rows.is_empty():
        made.problem = "the baseline holds no rows"
        return made
    versions = _versions(rows, shape)
    made.versions = tuple(versions)
    watched_here = [name for name in rows.columns if name in columns and columns[name].watched]
    _profiles(made, None, rows, shape, {name: columns[name] for name in watched_here})
    outputs = {name: columns[name] for name in watched_here if name in shape.outputs}
    for version, part in versions.items():
        _profiles(made, version, part, shape, outputs)
    made.counts = _quality(rows, shape)
    if parts:
        ready = custom_sums.prepared(_with_truth(rows, shape), parts)
        made.sums = custom_sums.measured(ready, ready.rows, shape.model_id_col)
    for slice_, part in _slices(rows, shape):
        whole = dataclasses.replace(shape, slicing_exprs=())
        made.by_slice[slice_] = build(part, whole, columns, baseline_version, commit_version, parts)
    return made


def _with_truth(rows: pl.DataFrame, shape: watched.Shape) -> pl.DataFrame:
    """The labels of a recorded table are in column `label`, whatever its baseline calls them."""
    if not shape.recorded or "label" in rows.columns or shape.label_col not in rows.columns:
        return rows
    return rows.with_columns(pl.col(shape.label_col).alias("label"))


def _slices(
    rows: pl.DataFrame, shape: watched.Shape
) -> Iterator[tuple[slices.Slice, pl.DataFrame]]:
    """The most frequent values of each slicing expression that the baseline's columns can tell."""
    for text in shape.slicing_exprs:
        try:
            values = slices.labels(rows, slices.parse([text], rows.columns))[text]
        except errors.InvalidParameter:
            continue  # its windows have nothing to be compared with, and say so
        for value in slices.heaviest(slices.counted(values)):
            yield (text, value), rows.filter(values == value)


def of_windows(floating: Baseline, parts: Sequence[Mapping[kept.Group, kept.Profile]]) -> Baseline:
    """What the windows before one are together."""
    made = Baseline(floating.baseline_version, floating.commit_version)
    for part in parts:
        for group, one in part.items():
            known = made.profiles.get(group)
            made.profiles[group] = one if known is None else profile.merge(known, one)
    made.versions = tuple(sorted({version for version, _ in made.profiles if version is not None}))
    return made


def _versions(rows: pl.DataFrame, shape: watched.Shape) -> dict[str, pl.DataFrame]:
    if shape.model_id_col is None or shape.model_id_col not in rows.columns:
        return {}
    parts = rows.with_columns(pl.col(shape.model_id_col).cast(pl.String)).partition_by(
        shape.model_id_col, as_dict=True
    )
    return {str(key[0]): part for key, part in sorted(parts.items(), key=str) if key[0]}


def _profiles(
    made: Baseline,
    version: str | None,
    rows: pl.DataFrame,
    shape: watched.Shape,
    columns: Mapping[str, watched.Column],
) -> None:
    for name, column in columns.items():
        made.profiles[version, name] = watched.profiled(rows[name], column)
    if shape.time_column is None or shape.time_column not in rows.columns:
        return
    times = intake.as_times(rows[shape.time_column])
    for granularity in shape.granularities:
        parts = _own_windows(rows, times, granularity)
        for name, column in columns.items():
            own = [watched.profiled(part[name], column) for part in parts]
            maxima = distances.own_maxima(own, made.profiles[version, name])
            if maxima:
                made.maxima[version, name, granularity] = maxima


def _own_windows(rows: pl.DataFrame, times: pl.Series, granularity: str) -> list[pl.DataFrame]:
    starts = windows.assign(times, granularity).alias("__start")
    parts = (
        rows.with_columns(starts).drop_nulls("__start").partition_by("__start", maintain_order=True)
    )
    return [part for part in parts if part.height >= SMALLEST_WINDOW][-MOST_WINDOWS:]


def _quality(rows: pl.DataFrame, shape: watched.Shape) -> quality.QualityCounts | None:
    """Counts of the baseline's labelled rows, for estimates where labels are missing."""
    label = shape.label_col or "label"
    if shape.problem is None or label not in rows.columns:
        return None
    if shape.prediction_col not in rows.columns:
        return None
    renamed: dict[str | None, str] = {label: "label", shape.prediction_col: "prediction"}
    if shape.score_col in rows.columns:
        renamed[shape.score_col] = "score"
    frame = rows.select(pl.col(old).alias(new) for old, new in renamed.items() if old)
    return quality.summarise(frame, shape.problem)


def save(folder: Path, made: Baseline, shape: watched.Shape) -> None:
    """Keep a baseline for the next process, and for the one that draws histograms."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, one in (
        (kept.BASELINE_PROFILES, made),
        *((_slice_file(number), part) for number, part in enumerate(made.by_slice.values())),
    ):
        kept.write_window(folder / name, kept.Window(one.profiles, one.sums))
    facts = {
        **_facts(made),
        "shape": _shape(shape),
        "slices": [[*slice_, _facts(part)] for slice_, part in made.by_slice.items()],
    }
    kept.replace_file(
        folder / kept.BASELINE_FACTS, orjson.dumps(facts, option=orjson.OPT_SERIALIZE_NUMPY)
    )


def _shape(shape: watched.Shape) -> list[Any]:
    """How the rows were cut and summed up."""
    return [list(shape.slicing_exprs), [list(one) for one in shape.aggregates]]


def _slice_file(number: int) -> str:
    return f"baseline-slice-{number}.zst"


def _facts(made: Baseline) -> dict[str, Any]:
    return {
        "baseline_version": made.baseline_version,
        "commit_version": made.commit_version,
        "versions": made.versions,
        "maxima": [[*key, value] for key, value in made.maxima.items()],
        "quality": quality.to_dict(made.counts) if made.counts is not None else None,
        "problem": made.problem,
    }


def load(folder: Path, shape: watched.Shape | None = None) -> Baseline | None:
    """What `save` kept, if it can be read and was cut and summed up so; None: in any way."""
    try:
        facts = orjson.loads((folder / kept.BASELINE_FACTS).read_bytes())
        if shape is not None and facts["shape"] != _shape(shape):
            return None
        made = _read(facts, folder / kept.BASELINE_PROFILES)
        for number, (text, value, part) in enumerate(facts["slices"]):
            made.by_slice[text, value] = _read(part, folder / _slice_file(number))
        return made
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def load_profile(
    folder: Path,
    slice_: slices.Slice | None,
    version: str | None,
    column: str,
    outputs: Sequence[str],
) -> kept.Profile | None:
    """Of what `save` kept the profile that one group of a window is compared with."""
    try:
        facts = orjson.loads((folder / kept.BASELINE_FACTS).read_bytes())
        path = folder / kept.BASELINE_PROFILES
        if slice_ is not None:
            cuts = [(text, value) for text, value, _ in facts["slices"]]
            if slice_ not in cuts:
                return None
            number = cuts.index(slice_)
            facts, path = facts["slices"][number][2], folder / _slice_file(number)
        group = kept.baseline_group(facts["versions"], version, column, outputs)
        return kept.read_profile(path, group)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _read(facts: Mapping[str, Any], path: Path) -> Baseline:
    window = kept.read_window(path)
    return Baseline(
        facts["baseline_version"],
        facts["commit_version"],
        window.profiles,
        {(v, c, g): value for v, c, g, value in facts["maxima"]},
        tuple(facts["versions"]),
        quality.from_dict(facts["quality"]) if facts["quality"] else None,
        facts["problem"],
        sums=window.sums,
    )


def _fits(known: Baseline, baseline_version: int, columns: Mapping[str, watched.Column]) -> bool:
    """Is it of this version, and are its profiles like those of the columns as they are decided?

    A process that dies in its first refresh leaves a baseline, and its columns to be decided
    anew: with other centres, nothing could be compared."""
    if known.baseline_version != baseline_version or known.problem is not None:
        return False
    return all(
        name in columns
        and (not isinstance(one, profile.NumericProfile) or one.centre == columns[name].centre)
        for (_, name), one in known.profiles.items()
    )


def current(
    folder: Path,
    before: Baseline | None,
    baseline_version: int,
    read: Callable[[], tuple[pl.DataFrame, int]],
    shape: watched.Shape,
    columns: dict[str, watched.Column],
    parts: Collection["custom_metrics.Part"] = (),
) -> Baseline:
    """The baseline of a version: the one at hand, the one on disk, or a new one, which is profiled
    once. One that cannot be read is tried again at every call. A new one first decides on columns
    that were not seen yet: the centre of a histogram comes from the baseline."""
    for find in (lambda: before, lambda: load(folder, shape)):
        known = find()
        if known is not None and _fits(known, baseline_version, columns):
            return known
    try:
        rows, commit_version = read()
    except (errors.DoesNotExist, errors.Unavailable) as error:
        return Baseline(baseline_version, -1, problem=error.message)
    columns.update(watched.choose(rows, shape, columns))
    made = build(rows, shape, columns, baseline_version, commit_version, parts)
    if made.problem is None:
        save(folder, made, shape)
    return made
