"""A metric of one's own: a column, or an expression over columns, of each labelled row. Pure.

`CASE WHEN prediction = 1 AND label = 0 THEN amount ELSE 0 END` is as good a loss as any: what a row
gives is counted like every other metric's value. Language: capture/expressions.py.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from capture import errors
from monitors import cells, policies

Floats = NDArray[np.float64]

# Of every request, beside the columns of the table (experiments.md, "Input").
GIVEN = {
    **dict.fromkeys(("prediction", "score", "label"), pl.Null()),
    "latency_ms": pl.Float64(),
    "label_time": pl.Datetime("us", "UTC"),
}


@lru_cache(maxsize=256)
def names_in(text: str) -> tuple[str, ...]:
    """The columns that a text may need: itself, if it is a column's name, and those that it names
    as an expression."""
    if text.isidentifier():
        return (text,)
    from sqlglot import expressions as sql

    from capture import expressions  # half a second that only expressions need

    try:
        tree = expressions.parse(text)
    except errors.InvalidParameter:
        return (text,)
    return tuple(dict.fromkeys([text, *(node.name for node in tree.find_all(sql.Column))]))


def values(text: str, rows: pl.DataFrame) -> Floats:
    """The value of every row as a number, NaN where it has none; a column goes before an
    expression. Never raises: of rows that do not fit an expression none has a value."""
    if text in rows.columns or text.isidentifier():
        return cells.numbers(cells.column(rows, text))
    from capture import expressions

    try:
        found = expressions.computed(rows, expressions.to_polars(text, rows.columns))
    except errors.InvalidParameter:
        return np.full(rows.height, np.nan)
    return cells.numbers(found)


def check(
    metrics: Mapping[str, policies.Metric], columns: Mapping[str, pl.DataType] | None
) -> None:
    """Is every `value` computable from a table with these columns? None: the table comes later, and
    may have any. metrics: by their place in the policy. Raises InvalidParameter that names it."""
    for where, metric in metrics.items():
        if metric.value is not None:
            try:
                _check(metric.value, columns)
            except errors.InvalidParameter as error:
                raise errors.InvalidParameter(f"{where}.value: {error.message}") from None


def _check(text: str, columns: Mapping[str, pl.DataType] | None) -> None:
    from capture import expressions

    known = columns
    if known is None:
        known = {name: pl.Null() for name in names_in(text) if name != text or text.isidentifier()}
    nothing = pl.DataFrame(schema={**GIVEN, **known})
    if text in nothing.columns:
        kind = nothing.schema[text]
    else:
        made = expressions.to_polars(text, nothing.columns)
        if not made.meta.root_names():
            raise errors.InvalidParameter(f"'{text[:100]}' names no column.")
        kind = expressions.computed(nothing, made).dtype
    if not (cells.numeric(kind) or kind == pl.Null):
        raise errors.InvalidParameter(
            f"'{text[:100]}' gives {kind}; a number or a truth value is needed."
        )


def named(wanted: Iterable[str], columns: Collection[str]) -> dict[str, str]:
    """Wanted name -> column of that name, exactly or else in any case; without those that are not
    there."""
    folded = {name.casefold(): name for name in sorted(columns, reverse=True)}
    found = {
        name: name if name in columns else folded.get(name.casefold())
        for name in dict.fromkeys(wanted)
    }
    return {name: column for name, column in found.items() if column is not None}
