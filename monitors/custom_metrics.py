"""Custom metrics of a monitor: what is summed of the rows, and what is computed of the sums. Pure.

An *aggregate* metric is arithmetic over aggregate functions. What stands inside of such a function
is a part: an expression over one row, whose sums are kept per window (custom_sums.py). A *derived*
metric is arithmetic over metrics of the same row, a *drift* metric over those of two windows.
Source: databricks-monitoring.md, section 6.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import pyarrow as pa
from sqlglot import expressions as sql

from capture import errors, expressions
from monitors import tables

TABLE = ":table"
KINDS = {f"CUSTOM_METRIC_TYPE_{kind}": kind for kind in ("AGGREGATE", "DERIVED", "DRIFT")}
MOST_FORMULAS = 2_000
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
# Aggregates that add up over files, and which number of the sums each of them is.
ADDITIVE: dict[type[Any], str] = {
    sql.Count: "count",
    sql.CountIf: "count",
    sql.Sum: "sum",
    sql.Avg: "avg",
    sql.Min: "min",
    sql.Max: "max",
    sql.Stddev: "stddev_samp",
    sql.StddevSamp: "stddev_samp",
    sql.StddevPop: "stddev_pop",
    sql.Variance: "var_samp",
    sql.VariancePop: "var_pop",
}
OTHER_NAMES = {"mean": "avg", "std": "stddev_samp"}  # of Spark, unknown to sqlglot
ALLOWED = (
    "count, count_if, sum, avg, mean, min, max, stddev, std, stddev_samp, stddev_pop, variance, "
    "var_samp, var_pop"
)
COLUMN_METRICS = (
    *("count", "num_nulls", "avg", "min", "max", "stddev", "num_zeros", "num_nan"),
    *("min_length", "max_length", "avg_length", "median", "distinct_count"),
    *("percent_nan", "percent_null", "percent_zeros", "percent_distinct"),
)
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
_TEMPLATE = re.compile(r"(`?)\{\{\s*(\w+)\s*\}\}\1")
_STEM = "inferlake_template_"
_SHOWN = re.compile(rf"`?{_STEM}(\w+)`?", re.IGNORECASE)
_OF_ROWS = ("input_column", "prediction_col", "label_col")
_SIDES = {"current_df": CURRENT, "base_df": BASE}


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


def read(specs: Sequence[Mapping[str, Any]], context: Context) -> Metrics:
    """The metrics of a configuration (`contract.CustomMetric`). Raises InvalidParameter that names
    the metric, and the node or name in its definition."""
    _check_names(specs)
    found = Metrics(types={})
    for kind in KINDS.values():
        for number, spec in enumerate(specs):
            if KINDS[spec["type"]] == kind:
                try:
                    kind_of = data_type(spec["output_data_type"])
                    found = replace(found, types={**found.types, spec["name"]: kind_of})
                    found = _READERS[kind](found, spec, context)
                except errors.InvalidParameter as error:
                    said = _SHOWN.sub(r"{{\1}}", error.message)
                    raise errors.InvalidParameter(
                        f"custom_metrics[{number}] '{spec['name']}': {said}"
                    ) from None
    if len(found.aggregates) + len(found.derived) + len(found.drift) > MOST_FORMULAS:
        raise errors.InvalidParameter(
            f"custom_metrics: over {MOST_FORMULAS} metrics times input columns."
        )
    return found


def _check_names(specs: Sequence[Mapping[str, Any]]) -> None:
    built_in = (*tables.profile_schema(None).names, *tables.drift_schema(None).names)
    taken = {name.casefold() for name in built_in}
    for number, spec in enumerate(specs):
        if spec["name"].casefold() in taken:
            raise errors.InvalidParameter(
                f"custom_metrics[{number}].name: '{spec['name']}' is the name of another metric."
            )
        taken.add(spec["name"].casefold())


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


# --- the three kinds -----------------------------------------------------------------------------


def _aggregates(found: Metrics, spec: Mapping[str, Any], context: Context) -> Metrics:
    for column in spec["input_columns"]:
        names = {"prediction_col": context.prediction, "label_col": context.label}
        names["input_column"] = None if column == TABLE else column
        tree = _filled(spec["definition"], {n: name for n, name in names.items() if name}, _OF_ROWS)
        parts: dict[str, Part] = {}
        inputs: dict[str, tuple[str, str]] = {}

        def leaf(
            node: expressions.Node,
            parts: dict[str, Part] = parts,
            inputs: dict[str, tuple[str, str]] = inputs,
        ) -> pl.Expr | None:
            statistic = _statistic(node)
            if statistic is None:
                return None
            part = _part(_inside(node))
            parts[part.key] = part
            name = f"{statistic} {part.key}"
            inputs[name] = (statistic, part.key)
            return pl.col(name)

        formula = Formula(spec["name"], column, _outside(tree, leaf), inputs)
        if not inputs:
            raise errors.InvalidParameter(f"it holds no aggregate function; allowed: {ALLOWED}.")
        truth = {"label", "label_time"} if context.late else set()
        late = {
            key for key, one in parts.items() if truth & {name.casefold() for name in one.columns}
        }
        found = replace(
            found,
            parts={**found.parts, **parts},
            late=found.late | late,
            aggregates=(*found.aggregates, formula),
        )
    return found


def _outside(tree: expressions.Node, leaf: expressions.Leaf) -> pl.Expr:
    """Arithmetic over leaves, which must give a number or a truth value."""

    def known(node: expressions.Node) -> pl.Expr | None:
        given = leaf(node)
        if given is None and isinstance(node, sql.Column):
            raise errors.InvalidParameter(
                f"'{expressions.shown(node)}' stands outside of an aggregate function."
            )
        return given

    made = expressions.convert(tree, known)
    frame = pl.DataFrame(schema=dict.fromkeys(made.meta.root_names(), pl.Float64))
    kind = expressions.computed(frame.with_columns(pl.lit(1).alias("__row")), made).dtype
    if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
        raise errors.InvalidParameter(
            f"'{expressions.shown(tree)}' ({type(tree).__name__}) gives no number."
        )
    return made


def _statistic(node: expressions.Node) -> str | None:
    """Which number of the sums a node asks for; None: it is no aggregate function."""
    if isinstance(node, sql.Anonymous) and node.name.casefold() in OTHER_NAMES:
        return OTHER_NAMES[node.name.casefold()]
    if type(node) in ADDITIVE:
        return ADDITIVE[type(node)]
    if isinstance(node, (sql.AggFunc, sql.Filter, sql.Window, sql.Distinct)):
        raise _not_additive(node)
    return None


def _not_additive(node: expressions.Node) -> errors.InvalidParameter:
    return errors.InvalidParameter(
        f"'{expressions.shown(node)}' ({type(node).__name__}) does not add up over files; allowed: "
        f"{ALLOWED}. A derived metric may use the built-in median and distinct_count."
    )


def _inside(node: expressions.Node) -> expressions.Node:
    """The expression over a row whose sums give the aggregate."""
    if isinstance(node, sql.Anonymous):
        if len(node.expressions) != 1:
            raise errors.InvalidParameter(f"'{expressions.shown(node)}' takes one expression.")
        return node.expressions[0]
    expressions.only(node, "this", "big_int")
    if isinstance(node.this, sql.Distinct):
        raise _not_additive(node)
    if not isinstance(node, (sql.Count, sql.CountIf)):
        return node.this
    if isinstance(node.this, sql.Star):
        return sql.Boolean(this=True)
    if node.this is None:
        raise errors.InvalidParameter(f"'{expressions.shown(node)}' lacks an argument.")
    if isinstance(node, sql.CountIf):
        return sql.Case(ifs=[sql.If(this=node.this.copy(), true=sql.Literal.number(1))])
    return sql.Not(this=sql.Is(this=sql.Paren(this=node.this.copy()), expression=sql.Null()))


def _part(tree: expressions.Node) -> Part:
    columns: list[str] = []

    def leaf(node: expressions.Node) -> pl.Expr | None:
        if not isinstance(node, sql.Column):
            return None
        columns.append(node.name)
        return expressions.by_name([node.name])(node)

    expressions.convert(tree, leaf)
    return Part(tree.sql(dialect="spark"), tree, tuple(dict.fromkeys(columns)))


def _derived(found: Metrics, spec: Mapping[str, Any], context: Context) -> Metrics:
    for column in spec["input_columns"]:
        tree = _filled(spec["definition"], {}, ())
        made = _outside(tree, _columns)
        known = {name.casefold(): name for name in _metrics(found, column, context)}
        inputs = {name: (CURRENT, _known(name, known, column)) for name in _named(tree)}
        found = replace(
            found, derived=(*found.derived, Formula(spec["name"], column, made, inputs))
        )
    return found


def _drift(found: Metrics, spec: Mapping[str, Any], context: Context) -> Metrics:
    for column in spec["input_columns"]:
        tree = _filled(spec["definition"], {}, tuple(_SIDES))
        made = _outside(tree, _columns)
        known = {name.casefold(): name for name in _metrics(found, column, context)}
        inputs: dict[str, tuple[str, str]] = {}
        for name in _named(tree):
            side, _, metric = name.partition(".")
            if side.removeprefix(_STEM) not in _SIDES or not metric:
                raise errors.InvalidParameter(
                    f"'{name[:100]}': write {{{{current_df}}}}.metric or {{{{base_df}}}}.metric."
                )
            inputs[name] = (_SIDES[side.removeprefix(_STEM)], _known(metric, known, column))
        found = replace(found, drift=(*found.drift, Formula(spec["name"], column, made, inputs)))
    return found


_READERS = {"AGGREGATE": _aggregates, "DERIVED": _derived, "DRIFT": _drift}


def _columns(node: expressions.Node) -> pl.Expr | None:
    if isinstance(node, sql.AggFunc):
        raise errors.InvalidParameter(
            f"'{expressions.shown(node)}' ({type(node).__name__}) is for metrics of type AGGREGATE."
        )
    return pl.col(_dotted(node)) if isinstance(node, sql.Column) else None


def _dotted(node: sql.Column) -> str:
    return ".".join(part.name for part in node.parts)


def _named(tree: expressions.Node) -> Iterator[str]:
    """The metrics that a definition names. Raises InvalidParameter where it names none."""
    found = [_dotted(node) for node in tree.find_all(sql.Column)]
    if not found:
        raise errors.InvalidParameter("it names no metric.")
    return iter(dict.fromkeys(found))


def _known(name: str, known: Mapping[str, str], column: str) -> str:
    if name.casefold() not in known:
        raise errors.InvalidParameter(
            f"'{name[:100]}' is no metric of {column}; there are {', '.join(known.values())[:700]}."
        )
    return known[name.casefold()]


def _metrics(found: Metrics, column: str, context: Context) -> list[str]:
    """Metrics that a row of this column has: built-in ones, then those defined before."""
    own = [one.metric for one in (*found.aggregates, *found.derived) if one.column == column]
    if column == TABLE:
        return [*own, "count", *QUALITY_METRICS.get(context.problem, ())]
    return [*own, *COLUMN_METRICS]


# --- templates -----------------------------------------------------------------------------------


def _filled(text: str, names: Mapping[str, str], allowed: Sequence[str]) -> expressions.Node:
    """The tree of a definition, templates replaced: those in `names` by their column, the others of
    `allowed` by an identifier that tells them. Raises InvalidParameter."""
    if len(text) <= expressions.MAX_CHARACTERS:
        if _STEM in text.casefold():
            raise errors.InvalidParameter(f"'{_STEM}' is a reserved name.")
        for _, name in _TEMPLATE.findall(text):
            _check_template(name, names, allowed)
        text = _TEMPLATE.sub(rf"{_STEM}\2", text)
        if re.search(r"\{\{|\}\}|\{%|%\}", text):
            raise errors.InvalidParameter("of Jinja only names in {{ }} are allowed.")
    tree = expressions.parse(text)
    for node in list(tree.walk()):
        if isinstance(node, (sql.Identifier, sql.Literal)) and _STEM in node.this:
            _replace(node, names)
    return tree


def _check_template(name: str, names: Mapping[str, str], allowed: Sequence[str]) -> None:
    if name not in allowed:
        known = ", ".join(f"{{{{{one}}}}}" for one in allowed) or "no template"
        raise errors.InvalidParameter(
            f"{{{{{name[:50]}}}}} is not allowed in a metric of this type; allowed: {known}."
        )
    if name in _OF_ROWS and name not in names:
        missing = {
            "input_column": "a column in input_columns, not :table",
            "prediction_col": "a monitor of type inference_log",
            "label_col": "a monitor of type inference_log with a label_col",
        }
        raise errors.InvalidParameter(f"{{{{{name}}}}} needs {missing[name]}.")


def _replace(node: expressions.Node, names: Mapping[str, str]) -> None:
    name = node.this.removeprefix(_STEM)
    whole = isinstance(node, sql.Identifier) and isinstance(node.parent, sql.Column)
    if not whole or name not in (*names, *_SIDES):
        raise errors.InvalidParameter(
            f"'{expressions.shown(node)}': a template stands for a column, alone and without "
            "quotes."
        )
    if name in names:
        node.set("this", names[name])
        node.set("quoted", True)
