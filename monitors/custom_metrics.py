"""Custom metrics of a monitor: what is summed of the rows, and what is computed of the sums. Pure.

An *aggregate* metric is arithmetic over aggregate functions. What stands inside of such a function
is a part: an expression over one row, whose sums are kept per window (custom_sums.py). A *derived*
metric is arithmetic over metrics of the same row, a *drift* metric over those of two windows.
Source: databricks-monitoring.md, section 6.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from capture import errors, expressions

TABLE = ":table"
CURRENT, BASE = "current", "base"

DATA_TYPES: dict[str, pa.DataType] = {
    "double": pa.float64(),
    "float": pa.float32(),
    "long": pa.int64(),
    "bigint": pa.int64(),
    "integer": pa.int32(),
    "int": pa.int32(),
    "short": pa.int16(),
    "smallint": pa.int16(),
    "byte": pa.int8(),
    "tinyint": pa.int8(),
    "boolean": pa.bool_(),
}
QUALITY_METRICS: dict[str | None, tuple[str, ...]] = {
    None: (),
    "classification": (
        *("accuracy_score", "log_loss"),
        *(
            f"{name}.{mean}"
            for name in ("precision", "recall", "f1_score", "roc_auc_score")
            for mean in ("macro", "weighted")
        ),
    ),
    "regression": (
        *("mean_squared_error", "root_mean_squared_error", "mean_average_error"),
        *("mean_absolute_percentage_error", "r2_score"),
    ),
}


@dataclass(frozen=True, slots=True)
class Part:
    """An expression over a row, named by its text, with the columns that it names."""

    key: str
    tree: expressions.Node
    columns: tuple[str, ...]

    def values(self, rows: pl.DataFrame) -> pl.Series:
        """Of every row a finite double or null; a column that the rows do not have is null in all
        of them. Raises InvalidParameter where their types do not fit, or it is no number."""
        present = {name.casefold() for name in rows.columns}
        absent = [name for name in self.columns if name.casefold() not in present]
        wide = rows.with_columns(pl.lit(None).alias(name) for name in absent)
        made = expressions.convert(self.tree, expressions.by_name(wide.columns))
        found = expressions.computed(wide, made)
        if not (found.dtype.is_numeric() or found.dtype in (pl.Boolean, pl.Null)):
            raise errors.InvalidParameter(
                f"'{self.key[:100]}' is of type {found.dtype}; a number is needed."
            )
        numbers = found.cast(pl.Float64)
        return numbers.set(~numbers.is_finite(), None)


@dataclass(frozen=True, slots=True)
class Formula:
    """A metric of one input column. inputs: what each column of the expression is: (statistic, part
    key) of an aggregate metric, else (CURRENT or BASE, metric)."""

    metric: str
    column: str
    expression: pl.Expr
    inputs: Mapping[str, tuple[str, str]]

    def values(self, rows: Sequence[Mapping[str, float | None]]) -> list[Any]:
        """The metric for each mapping of its inputs; null where it is no finite number."""
        given = {
            name: pl.Series([row[name] for row in rows], dtype=pl.Float64) for name in self.inputs
        }
        frame = pl.DataFrame({"__row": range(len(rows)), **given})
        found = expressions.computed(frame, self.expression)
        return (found.set(~found.is_finite(), None) if found.dtype.is_float() else found).to_list()


@dataclass(frozen=True, slots=True)
class Metrics:
    """The custom metrics of a monitor. late: keys of parts that name labels which come later."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    late: frozenset[str] = frozenset()
    aggregates: tuple[Formula, ...] = ()
    derived: tuple[Formula, ...] = ()
    drift: tuple[Formula, ...] = ()
    types: Mapping[str, pa.DataType] = field(default_factory=dict)

    def of(self, kind: str, column: str) -> list[Formula]:
        """Formulas of `aggregates`, `derived` or `drift` of an input column."""
        return [one for one in getattr(self, kind) if one.column == column]

    def columns(self, *kinds: str) -> list[str]:
        """Input columns of these kinds."""
        named = (one.column for kind in kinds for one in getattr(self, kind))
        return list(dict.fromkeys(named))

    def fields(self, *kinds: str) -> list[tuple[str, pa.DataType]]:
        """Columns of a metric table."""
        named = (one.metric for kind in kinds for one in getattr(self, kind))
        return [(name, self.types[name]) for name in dict.fromkeys(named)]

    @property
    def truth_columns(self) -> list[str]:
        """Columns of the rows that are needed again when labels come."""
        return sorted({name for key in self.late for name in self.parts[key].columns})

    @property
    def follow_labels(self) -> bool:
        """Do numbers of columns, or of drift, change when labels come?"""
        late_columns = any(
            key in self.late and one.column != TABLE
            for one in self.aggregates
            for _, key in one.inputs.values()
        )
        return late_columns or bool(self.drift and (self.late or self._judge_quality()))

    def _judge_quality(self) -> bool:
        quality = {name for names in QUALITY_METRICS.values() for name in names}
        used = {name for one in self.derived + self.drift for _, name in one.inputs.values()}
        return bool(quality & used)


@dataclass(frozen=True, slots=True)
class Context:
    """What definitions may refer to. label: the column of the truth; late: it comes after its row;
    problem: classification, regression or None."""

    prediction: str | None = None
    label: str | None = None
    late: bool = False
    problem: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], recorded: bool) -> "Context":
        """Of a monitor's configuration; recorded: the table is an unpacked inference table."""
        log = config.get("inference_log") or {}
        kind = str(log.get("problem_type", "")).removeprefix("PROBLEM_TYPE_").lower()
        label = "label" if recorded else log.get("label_col")
        return cls(log.get("prediction_col"), label, recorded, kind or None)


def data_type(text: str) -> pa.DataType:
    """Of a Spark type name, or of a StructField as JSON. Raises InvalidParameter."""
    name: Any = text.strip()
    if name.startswith(("{", '"')):
        try:
            given = json.loads(name)
        except ValueError:
            given = None
        name = given.get("type") if isinstance(given, dict) else given
    found = DATA_TYPES.get(name.casefold()) if isinstance(name, str) else None
    if found is None:
        raise errors.InvalidParameter(
            f"output_data_type: '{text[:100]}' is not offered; allowed: {', '.join(DATA_TYPES)}."
        )
    return found


def typed(value: Any, kind: pa.DataType) -> Any:
    """A computed value as the declared type has it; null where it does not fit."""
    if value is None:
        return None
    if pa.types.is_boolean(kind):
        return bool(value)
    if pa.types.is_integer(kind):
        bound = 1 << (kind.bit_width - 1)
        return int(value) if -bound <= int(value) < bound else None
    return float(value)
