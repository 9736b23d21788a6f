"""Definitions of custom metrics, parsed and walked into formulas. Pure.

A template, `{{input_column}}`, is replaced before the text is parsed and must then stand where a
column stands. What is not known to be harmless is refused by name (capture/expressions.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
from sqlglot import expressions as sql

from capture import errors, expressions
from monitors import custom_metrics, tables

KINDS = {f"CUSTOM_METRIC_TYPE_{kind}": kind for kind in ("AGGREGATE", "DERIVED", "DRIFT")}
MOST_FORMULAS = 1_000
MOST_PARTS = 250  # each is a column beside the rows that are read
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
_TEMPLATE = re.compile(r"(`?)\{\{\s*(\w+)\s*\}\}\1")
_STEM = "inferlake_template_"
_SHOWN = re.compile(rf"`?{_STEM}(\w+)`?", re.IGNORECASE)
_OF_ROWS = ("input_column", "prediction_col", "label_col")
_SIDES = {"current_df": custom_metrics.CURRENT, "base_df": custom_metrics.BASE}


def read(
    specs: Sequence[Mapping[str, Any]], context: custom_metrics.Context
) -> custom_metrics.Metrics:
    """The metrics of a configuration (`contract.CustomMetric`). Raises InvalidParameter that names
    the metric, and the node or name in its definition."""
    if sum(len(spec["input_columns"]) for spec in specs) > MOST_FORMULAS:
        raise errors.InvalidParameter(
            f"custom_metrics: over {MOST_FORMULAS} metrics times input columns."
        )
    _check_names(specs)
    found = custom_metrics.Metrics(types={})
    for kind in KINDS.values():
        for number, spec in enumerate(specs):
            if KINDS[spec["type"]] == kind:
                try:
                    kind_of = custom_metrics.data_type(spec["output_data_type"])
                    found = replace(found, types={**found.types, spec["name"]: kind_of})
                    found = _READERS[kind](found, spec, context)
                except errors.InvalidParameter as error:
                    said = _SHOWN.sub(r"{{\1}}", error.message)
                    raise errors.InvalidParameter(
                        f"custom_metrics[{number}] '{spec['name']}': {said}"
                    ) from None
            if len(found.parts) > MOST_PARTS:
                raise errors.InvalidParameter(
                    f"custom_metrics: over {MOST_PARTS} different expressions within aggregate "
                    "functions."
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


# --- the three kinds -----------------------------------------------------------------------------


def _aggregates(
    found: custom_metrics.Metrics, spec: Mapping[str, Any], context: custom_metrics.Context
) -> custom_metrics.Metrics:
    for column in spec["input_columns"]:
        names = {"prediction_col": context.prediction, "label_col": context.label}
        names["input_column"] = None if column == custom_metrics.TABLE else column
        tree = _filled(spec["definition"], {n: name for n, name in names.items() if name}, _OF_ROWS)
        parts: dict[str, custom_metrics.Part] = {}
        inputs: dict[str, tuple[str, str]] = {}

        def leaf(
            node: expressions.Node,
            parts: dict[str, custom_metrics.Part] = parts,
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

        formula = custom_metrics.Formula(spec["name"], column, _outside(tree, leaf), inputs)
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


def _part(tree: expressions.Node) -> custom_metrics.Part:
    columns: list[str] = []

    def leaf(node: expressions.Node) -> pl.Expr | None:
        if not isinstance(node, sql.Column):
            return None
        columns.append(node.name)
        return expressions.by_name([node.name])(node)

    expressions.convert(tree, leaf)
    return custom_metrics.Part(tree.sql(dialect="spark"), tree, tuple(dict.fromkeys(columns)))


def _derived(
    found: custom_metrics.Metrics, spec: Mapping[str, Any], context: custom_metrics.Context
) -> custom_metrics.Metrics:
    for column in spec["input_columns"]:
        tree = _filled(spec["definition"], {}, ())
        made = _outside(tree, _columns)
        known = {name.casefold(): name for name in _metrics(found, column, context)}
        inputs = {
            name: (custom_metrics.CURRENT, _known(name, known, column)) for name in _named(tree)
        }
        found = replace(
            found,
            derived=(*found.derived, custom_metrics.Formula(spec["name"], column, made, inputs)),
        )
    return found


def _drift(
    found: custom_metrics.Metrics, spec: Mapping[str, Any], context: custom_metrics.Context
) -> custom_metrics.Metrics:
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
        found = replace(
            found, drift=(*found.drift, custom_metrics.Formula(spec["name"], column, made, inputs))
        )
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


def _metrics(
    found: custom_metrics.Metrics, column: str, context: custom_metrics.Context
) -> list[str]:
    """Metrics that a row of this column has: built-in ones, then those defined before."""
    own = [one.metric for one in (*found.aggregates, *found.derived) if one.column == column]
    if column == custom_metrics.TABLE:
        return [*own, "count", *custom_metrics.QUALITY_METRICS.get(context.problem, ())]
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
