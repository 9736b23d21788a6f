"""Rows cut by the values of slicing expressions. Pure.

Each expression is its own key, never crossed with another; a Boolean one has the values true and
false, a column one per value. Source: databricks-monitoring.md, section 2.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import polars as pl

from capture import errors
from monitors import cells

MOST_VALUES = 100

Slice = tuple[str, str]  # expression, value


def parse(texts: Iterable[str], columns: Collection[str]) -> dict[str, pl.Expr]:
    """Expressions over these columns by their text. Raises InvalidParameter, which names the node
    that is not allowed or the column that is not there."""
    found: dict[str, pl.Expr] = {}
    for text in dict.fromkeys(texts):
        from capture import expressions  # a tenth of a second that only slices need

        found[text] = expressions.to_polars(text, columns)
        if not found[text].meta.root_names():
            raise errors.InvalidParameter(f"Slice '{text}' names no column.")
    return found


def names_in(text: str) -> list[str]:
    """The columns that an expression names, there or not. Raises InvalidParameter."""
    from sqlglot import expressions as sql

    from capture import expressions

    return sorted({node.name for node in expressions.parse(text).find_all(sql.Column)})


def columns_of(parsed: Mapping[str, pl.Expr]) -> list[str]:
    """The columns that the expressions name."""
    named = (name for one in parsed.values() for name in one.meta.root_names())
    return list(dict.fromkeys(named))


def labels(rows: pl.DataFrame, parsed: Mapping[str, pl.Expr]) -> dict[str, pl.Series]:
    """Per expression the value of every row as text. Raises InvalidParameter where the rows' types
    do not fit an expression."""
    return {text: cells.texts(_values(rows, text, one)) for text, one in parsed.items()}


def is_boolean(text: str, rows: pl.DataFrame) -> bool:
    """Does the expression tell true from false in such rows?"""
    try:
        parsed = parse([text], rows.columns)
        return _values(rows.head(0), text, parsed[text]).dtype == pl.Boolean
    except errors.InvalidParameter:
        return False


def _values(rows: pl.DataFrame, text: str, expression: pl.Expr) -> pl.Series:
    from capture import expressions

    try:
        return expressions.computed(rows, expression)
    except errors.InvalidParameter as error:
        raise errors.InvalidParameter(
            f"Slice '{text}' cannot be computed: {error.message}"
        ) from None


def counted(values: pl.Series) -> dict[str, int]:
    """How many rows each value has; null has none."""
    return dict(values.drop_nulls().value_counts().iter_rows())


def heaviest(counts: Mapping[str, int], known: Sequence[str] = ()) -> list[str]:
    """The known values, then the most frequent others, 100 in all."""
    others = sorted(counts.keys() - set(known), key=lambda value: (-counts[value], value))
    return [*known, *others][:MOST_VALUES]
