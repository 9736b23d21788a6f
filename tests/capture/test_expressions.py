"""Text of filters and slices: what it means, and that nothing outside the allow-list passes."""

from datetime import UTC, datetime

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import errors, expressions

ROWS = pl.DataFrame(
    {
        "a": [1.0, -2.5, None, 4.0, 0.5],
        "b": [1.0, 2.0, 3.0, None, -4.0],
        "n": [1, 2, 3, None, 7],
        "s": ["x", "Axe", None, "a%b", "  axe "],
        "ok": [True, False, None, True, False],
        "t": [datetime(2013, 7, day, 5 * day, 30, tzinfo=UTC) for day in range(1, 5)] + [None],
    }
)


def value(text: str, frame: pl.DataFrame = ROWS) -> list:
    return frame.select(expressions.to_polars(text, frame.columns).alias("x"))["x"].to_list()


@pytest.mark.parametrize(
    "text",
    [
        "a > b",
        "a = 1 OR b < 0 AND NOT ok",
        "NOT (a <> 1)",
        "a IS NULL",
        "a IS NOT NULL AND s IS NULL",
        "ok IS TRUE",
        "n IN (1, 3, -2)",
        "n NOT IN (1, 3)",
        "s IN ('x', 'Axe')",
        "a BETWEEN -1 AND 2",
        "s LIKE '%x%'",
        "s LIKE 'A_e'",
        "s NOT ILIKE 'a%'",
        "s NOT LIKE '%x%'",
        "a NOT BETWEEN -1 AND 2",
        "a + b * 2 - n",
        "a / 4",
        "-a",
        "ABS(a)",
        "CASE WHEN a > 1 THEN 'high' WHEN a < 0 THEN 'low' ELSE 'mid' END",
        "CASE s WHEN 'x' THEN 1 END",
        "COALESCE(a, b, 0)",
        "LOWER(s) = 'axe'",
        "UPPER(TRIM(s))",
        "LENGTH(s)",
        "CAST(n AS DOUBLE) / 2",
        "CAST(n AS BIGINT) % 2",
        "t >= TIMESTAMP '2013-07-02 10:30:00+00'",
        "CAST(t AS DATE) = DATE '2013-07-03'",
        "HOUR(t) > 9",
        "YEAR(t) = 2013 AND MONTH(t) = 7 AND DAY(t) > 2",
        "ROUND(a / 3, 2)",
        "FLOOR(a) + CEIL(a)",
        "SQRT(ABS(a))",
        "a > 1 AND NULL",
        "TRUE",
    ],
)
def test_an_expression_means_what_it_means_in_duckdb(text):
    frame = ROWS
    duck = duckdb.connect()
    duck.execute("SET TimeZone = 'UTC'")
    expected = duck.sql(f"SELECT ({text}) AS x FROM frame").pl()["x"].to_list()
    found = value(text)
    found = found * len(frame) if len(found) == 1 else found
    assert [pytest.approx(one) if isinstance(one, float) else one for one in found] == expected


def test_a_column_is_found_in_any_case_and_with_any_name():
    frame = pl.DataFrame({"Petal Length (cm)": [1.0], "x": [1], "X": [2]})
    assert value("`petal length (cm)` > 0", frame) == [True]
    assert value("X", frame) == [2]


def test_days_of_the_week_are_numbered_as_spark_does():
    assert value("dayofweek(t)") == [2, 3, 4, 5, None]  # 1 July 2013 was a Monday


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("SELECT 1", "Select"),
        ("EXISTS (SELECT 1)", "Exists"),
        ("a IN (SELECT 1)", "IN"),
        ("a; DROP TABLE x", "one expression"),
        ("read_csv('/etc/passwd')", "ReadCSV"),
        ("my_function(a)", "MY_FUNCTION"),
        ("SUM(a)", "Sum"),
        ("t.a = 1", "name a column alone"),
        ("*", "Star"),
        ("s RLIKE '(a+)+'", "RegexpLike"),
        ("s LIKE s", "LIKE"),
        ("a IN (b)", "plain values"),
        ("CAST(a AS STRUCT<x: INT>)", "type"),
        ("TRIM(LEADING 'x' FROM s)", "position"),
        ("DATE 'soon'", "soon"),
        ("wind > 3", "wind"),
        ("a >", "cannot be read"),
        ("'unclosed", "cannot be read"),
        ("", "1 to 2000"),
        ("   ", "1 to 2000"),
        ("a" * 3000, "1 to 2000"),
        ("(" * 900 + "a" + ")" * 900, "deep"),
        ("-" + " -" * 800 + "a", "deep|parts"),
        ("+".join(["a"] * 900), "parts|deep"),
        ("DROP TABLE x", "Drop"),
        ("COPY x TO '/tmp/y'", "not allowed|cannot be read"),
        ("a > 1 -- and more", "comment"),
        ("a /* b */ > 1", "comment"),
        ("{# b #} a > 1", "comment"),
        ("a / 0 > 1", "Div.*divides by zero"),
        ("a % (0.0) > 1", "Mod.*divides by zero"),
        ("a > @x", "Parameter"),
        ("a > ${x}", "Parameter"),
        ("ROUND(a, 99999999999)", "places"),
        ("1 / (a + " * 15 + "a" + ")" * 15, "several times"),
        ("2 % (" * 12 + "a" + ")" * 12, "several times"),
        ("NULLIF(" * 25 + "a" + ", 1)" * 25, "several times"),
        ("(" * 25 + "a IN (1, 2)" + ") IN (true, false)" * 25, "several times"),
        ("CASE " * 20 + "a" + " WHEN 1 THEN 1 WHEN 2 THEN 2 END" * 20, "several times"),
        ("TIMESTAMP '0001-01-01T00:00:00+14:00' > t", "no ISO 8601"),
    ],
)
def test_whatever_is_not_allowed_is_refused_by_name(text, named):
    with pytest.raises(errors.InvalidParameter, match=named):
        expressions.to_polars(text, ROWS.columns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n / (n - 2) > 0", [False, None, True, None, True]),
        ("n % (n - 2)", [0, None, 0, None, 2]),
        ("(n - 4) % 3", [0, -2, -1, None, 0]),
        ("(4 - n) % (0 - 3)", [0, 2, 1, None, 0]),
        ("(a - 1) % 2", [0, -1.5, None, 1.0, -0.5]),
        ("NULLIF(n, 3)", [1, 2, None, None, 7]),
        ("NULLIF(n, NULL)", [1, 2, 3, None, 7]),
        ("POW(n, 2)", [1, 4, 9, None, 49]),
        ("GREATEST(n, 2)", [2, 2, 3, 2, 7]),
        ("LEAST(n, 2)", [1, 2, 2, 2, 2]),
        ("a < " + "9" * 400, [True, True, None, True, True]),
    ],
)
def test_an_expression_means_what_it_means_in_spark(text, expected):
    """Spark SQL's function reference: a zero divisor gives null, GREATEST skips nulls."""
    assert value(text) == expected


@pytest.mark.parametrize("text", ["ABS(s)", "s + 1 > 2", "CASE WHEN a THEN 1 END", "HOUR(a)"])
def test_a_text_that_does_not_fit_the_rows_is_an_error_of_ours(text):
    with pytest.raises(errors.InvalidParameter):
        expressions.computed(ROWS, expressions.to_polars(text, ROWS.columns))


@given(text=st.text(max_size=40))
def test_no_text_does_anything_but_give_an_expression_or_an_error(text):
    try:
        assert isinstance(expressions.to_polars(text, ROWS.columns), pl.Expr)
    except errors.InvalidParameter as error:
        assert error.message


@given(pattern=st.text(alphabet="ab%_.*\\(", max_size=6), subject=st.text("ab.(*", max_size=6))
def test_a_like_pattern_matches_nothing_but_what_it_says(pattern, subject):
    if pattern.replace("\\\\", "").endswith("\\"):
        return  # an escape of nothing: an error elsewhere
    frame = pl.DataFrame({"s": [subject]})
    text = "s LIKE '" + pattern.replace("\\", "\\\\") + "'"
    with duckdb.connect() as connection:
        asked = connection.execute("SELECT ? LIKE ? ESCAPE '\\'", [subject, pattern])
        assert value(text, frame) == [asked.fetchone()[0]]
