"""Which label is a row's, and what it says. Pure.

The newest label of a row counts, by its request id or by its client's; of two of one moment the
greater text, so that no order in which they come decides. The JSON text `null` takes back what was
said before.
"""

from typing import Any

import orjson
import polars as pl

TIME = pl.Datetime("us", "UTC")
LABEL = ("label", "label_time")
KEYS = ("databricks_request_id", "client_request_id")
SCHEMA: dict[str, Any] = {
    "databricks_request_id": pl.String,
    "client_request_id": pl.String,
    "row_index": pl.Int32,
    "label": pl.String,
    "label_time": TIME,
}


Sides = tuple[pl.DataFrame, ...]


def sides(labels: pl.DataFrame) -> Sides:
    """The newest label of every id and row index, by either id. labels: columns as in SCHEMA, in
    any order."""
    ordered = labels.sort("label_time", "label")
    return tuple(
        ordered.drop_nulls(key)
        .unique([key, "row_index"], keep="last", maintain_order=True)
        .select(key, "row_index", __label="label", __told="label_time")
        for key in KEYS
    )


def renewed(rows: pl.DataFrame, known: Sides) -> pl.DataFrame:
    """The rows with `label` (JSON text) and `label_time` as they are when these labels are known as
    well."""
    columns = rows.columns
    for key, side in zip(KEYS, known, strict=True):
        if side.is_empty():
            continue
        joined = rows.join(side, on=[key, "row_index"], how="left", maintain_order="left")
        later = pl.col("label_time").is_null() | (pl.col("__told") > pl.col("label_time"))
        same = (pl.col("__told") == pl.col("label_time")) & (pl.col("__label") > pl.col("label"))
        wins = pl.col("__told").is_not_null() & (later | same)
        rows = joined.with_columns(
            label=pl.when(wins).then("__label").otherwise("label"),
            label_time=pl.when(wins).then("__told").otherwise("label_time"),
        ).select(columns)
    return rows


def unlabelled(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with both columns, all null."""
    return rows.with_columns(pl.lit(None, SCHEMA[name]).alias(name) for name in LABEL)


def scalars(texts: pl.Series, as_texts: bool = False) -> pl.Series:
    """JSON scalars -> one column: numbers and booleans as double, else, or if wanted, all texts."""
    distinct = texts.drop_nulls().unique().to_list()
    values = [_scalar(text) for text in distinct]
    if not as_texts and all(_is_number(value) for value in values):
        numbers = [None if value is None else float(value) for value in values]
        return _mapped(texts, distinct, numbers, pl.Float64())
    words = [
        value if value is None or isinstance(value, str) else text
        for value, text in zip(values, distinct, strict=True)
    ]
    return _mapped(texts, distinct, words, pl.String())


def are_words(texts: pl.Series) -> pl.Series:
    """Which labels are neither numbers nor booleans, nor nothing."""
    distinct = texts.drop_nulls().unique().to_list()
    found = [not _is_number(_scalar(text)) for text in distinct]
    return _mapped(texts, distinct, found, pl.Boolean()).fill_null(False)


def is_told(texts: pl.Series) -> pl.Series:
    """Which rows have a label that was not taken back."""
    return texts.is_not_null() & (texts.str.strip_chars() != "null").fill_null(False)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))  # or bool


def _mapped(
    texts: pl.Series, distinct: list[str], values: list[Any], dtype: pl.DataType
) -> pl.Series:
    if not distinct:
        return pl.Series(texts.name, [None] * len(texts), dtype=dtype)
    return texts.replace_strict(distinct, values, default=None, return_dtype=dtype)


def _scalar(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
