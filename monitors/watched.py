"""Which columns of a table a monitor watches, as what, and what it keeps of each row. Pure.

The choice is made when a column is first seen and is kept: only profiles of one kind and centre can
be merged and compared.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from capture import unpack
from monitors import intake, profile

# Of a recorded table: neither features nor answers.
NOT_FEATURES = frozenset({*unpack.FIXED, "unpack_errors", "label", "label_time"})
KEPT_FIXED = (
    "served_entity_name",
    "databricks_request_id",
    "row_index",
    "client_request_id",
    "request_time",
    "unit_id",
    "route_split",
    "config_version",
    "shadow",
    "status_code",
    "error_source",
    "execution_duration_ms",
)
SAMPLE = 100
Profile = profile.NumericProfile | profile.CategoricalProfile
HOLDS_TIMES = "it holds times"
SPARK_TYPES: dict[Any, str] = {
    pl.Float64: "double",
    pl.Float32: "float",
    pl.Int64: "bigint",
    pl.Int32: "int",
    pl.Int16: "smallint",
    pl.Int8: "tinyint",
    pl.Boolean: "boolean",
    pl.Decimal: "decimal",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The part of a monitor's configuration that decides what a row means."""

    time_column: str | None
    granularities: tuple[str, ...]
    model_id_col: str | None
    prediction_col: str | None
    score_col: str | None
    label_col: str | None
    problem: str | None
    recorded: bool
    slicing_exprs: tuple[str, ...] = ()
    aggregates: tuple[tuple[str, ...], ...] = ()  # definition and input columns of each

    @classmethod
    def of(cls, config: Mapping[str, Any], recorded: bool) -> "Shape":
        """From a monitor's configuration; recorded: the table is an unpacked inference table."""
        log = config.get("inference_log")
        given = log or config.get("time_series") or {}
        kind = str(given.get("problem_type", "")).removeprefix("PROBLEM_TYPE_").lower()
        return cls(
            time_column=given.get("timestamp_col"),
            granularities=tuple(given.get("granularities", ())),
            model_id_col=given.get("model_id_col"),
            prediction_col=given.get("prediction_col"),
            score_col=given.get("prediction_proba_col"),
            label_col=given.get("label_col"),
            problem=kind or None,
            recorded=recorded,
            slicing_exprs=tuple(config.get("slicing_exprs") or ()),
            aggregates=tuple(
                (metric["definition"], *metric["input_columns"])
                for metric in config.get("custom_metrics") or ()
                if metric["type"] == "CUSTOM_METRIC_TYPE_AGGREGATE"
            ),
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Columns that a version answers with: one version's are not compared with another's."""
        named = [self.prediction_col, self.score_col]
        if self.recorded:
            named += ["prediction", "score"]
        return tuple(dict.fromkeys(name for name in named if name))


@dataclass(frozen=True, slots=True)
class Column:
    """A watched column. kind: numeric or categorical, or `left out` with the reason."""

    kind: str
    centre: float = 0.0
    reason: str | None = None
    data_type: str = "string"

    @property
    def watched(self) -> bool:
        return self.kind != "left out"

    @property
    def profiled_as(self) -> profile.Kind:
        """The kind of a watched column."""
        return "numeric" if self.kind == "numeric" else "categorical"


def choose(frame: pl.DataFrame, shape: Shape, known: Mapping[str, Column]) -> dict[str, Column]:
    """Decisions on the columns of `frame` that are not known yet; a column that holds only nulls
    waits for its first value."""
    chosen: dict[str, Column] = {}
    for name in frame.columns:
        if name not in known and not name.startswith("__"):
            decided = _column(frame[name], shape)
            if decided is not None:
                chosen[name] = decided
    return chosen


def _column(series: pl.Series, shape: Shape) -> Column | None:
    name = series.name
    if name in (shape.time_column, shape.model_id_col, shape.label_col):
        return Column("left out", reason="it tells time, version or truth")
    if shape.recorded and name in NOT_FEATURES:
        return Column("left out", reason="it is no feature")
    if isinstance(series.dtype, (pl.Struct, pl.Binary, pl.Object)):
        return Column("left out", reason=f"type {series.dtype} is not profiled")
    if series.null_count() == len(series):
        return None
    if is_time(series):
        return Column("left out", reason=HOLDS_TIMES)
    kind = profile.kind_of(series.dtype)
    centre = profile.choose_centre(series) if kind == "numeric" else 0.0
    return Column(kind, centre, data_type=_spark_type(series.dtype))


def _spark_type(dtype: pl.DataType) -> str:
    if dtype.is_nested():
        return "array"
    return SPARK_TYPES.get(dtype.base_type(), "string")


def is_time(series: pl.Series) -> bool:
    """Dates and times, also as ISO 8601 text throughout a sample."""
    if series.dtype.is_temporal():
        return True
    if series.dtype != pl.String:
        return False
    sample = series.drop_nulls().head(SAMPLE)
    looks = sample.str.contains(r"^\d{4}-\d{2}-\d{2}").all()
    return bool(sample.len() and looks and intake.as_times(sample).null_count() == 0)


def as_kind(series: pl.Series, column: Column) -> pl.Series:
    """The series in a type that the column's kind takes; what does not fit is null."""
    if profile.kind_of(series.dtype) == column.kind:
        return series
    if column.kind == "numeric":
        return series.cast(pl.Float64, strict=False)
    return series.cast(pl.String, strict=False)


def profiled(series: pl.Series, column: Column) -> Profile:
    """The profile of a watched column's values."""
    return profile.profile_column(as_kind(series, column), column.profiled_as, column.centre)


def kept_columns(
    frame: pl.DataFrame, shape: Shape, columns: Mapping[str, Column], slices: Collection[str]
) -> list[str]:
    """Columns of each row that stay in memory: ids, answers, times, versions, and what explains a
    failure: the categorical features. `slices`: columns that something is cut by or measured with,
    in any case."""
    wanted = {*shape.outputs, shape.model_id_col, shape.label_col, "__time"}
    folded = {name.casefold() for name in slices}
    if shape.recorded:
        wanted.update(KEPT_FIXED)
        wanted.update(
            name
            for name, column in columns.items()
            if column.kind == "categorical" or column.reason == HOLDS_TIMES
        )
    return [name for name in frame.columns if name in wanted or name.casefold() in folded]
