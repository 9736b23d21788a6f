"""Text of a filter, slice or metric -> polars expression. Pure.

SQL as Spark writes it, parsed by sqlglot and walked through an allow-list of nodes; whatever is not
in it is refused by name, so nothing in such a text can reach a file, a function of ours or a query.
Nulls follow SQL: a comparison with null is null, and a filter takes null for false.
"""

from collections.abc import Callable, Collection
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import sqlglot
import sqlglot.errors
from sqlglot import expressions as sql

from capture import errors

HARMLESS = frozenset({"safe", "typed", "negate"})  # of a node's parts: division by zero, ...
MAX_CHARACTERS = 2_000
MAX_DEPTH = 60
MAX_NODES = 500
MOST_PLACES = 15
MAX_WEIGHT = 5_000
TOO_LARGE = f"An expression has at most {MAX_NODES} parts, nested at most {MAX_DEPTH} deep."

Node = Any  # sqlglot renamed the base of its nodes between the versions that we allow
Walk = Callable[[Node], pl.Expr]
Leaf = Callable[[Node], pl.Expr | None]


def to_polars(text: str, columns: Collection[str]) -> pl.Expr:
    """The expression in a text over these columns, named exactly or else in any case.

    Raises InvalidParameter that names the node, the column or what cannot be read.
    """
    return convert(parse(text), by_name(columns))


def convert(tree: Node, leaf: Leaf) -> pl.Expr:
    """The expression in a tree. `leaf` is asked first for every node, and gives what stands for it
    or None; columns are for it alone. Raises InvalidParameter that names the node."""

    def walk(node: Node) -> pl.Expr:
        if node is None:
            raise errors.InvalidParameter(f"'{shown(tree)}' lacks an argument.")
        given = leaf(node)
        if given is not None:
            return given
        make = _NODES.get(type(node))
        if make is None:
            raise errors.InvalidParameter(
                f"'{shown(node)}' ({type(node).__name__}) is not allowed in an expression."
            )
        found = make(node, walk)
        return ~found if node.args.get("negate") else found  # x NOT ILIKE y

    return walk(tree)


def by_name(columns: Collection[str]) -> Leaf:
    """Columns as leaves, named exactly or else in any case."""
    exact = {name: name for name in columns}
    folded: dict[str, str] = {}
    for name in columns:
        folded.setdefault(name.casefold(), name)

    def leaf(node: Node) -> pl.Expr | None:
        return pl.col(_column(node, exact, folded)) if isinstance(node, sql.Column) else None

    return leaf


def computed(rows: pl.DataFrame, expression: pl.Expr) -> pl.Series:
    """The value of every row. Raises InvalidParameter where the rows' types do not fit."""
    try:
        return rows.with_columns(expression.alias("__value"))["__value"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OverflowError) as error:
        raise errors.InvalidParameter(" ".join(str(error).split())[:200]) from None


def parse(text: str) -> Node:
    """The tree of a text, of bounded size. Raises InvalidParameter."""
    if not text.strip() or len(text) > MAX_CHARACTERS:
        raise errors.InvalidParameter(
            f"An expression has 1 to {MAX_CHARACTERS} characters, not {len(text)}."
        )
    try:
        if any(token.comments for token in sqlglot.tokenize(text, dialect="spark")):
            raise errors.InvalidParameter(
                f"Expression '{text[:100]}' holds a comment; none is allowed."
            )
        trees = sqlglot.parse(text, dialect="spark")
    except RecursionError:
        raise errors.InvalidParameter(TOO_LARGE) from None
    except sqlglot.errors.SqlglotError as error:
        message = str(error).partition("\n")[0]
        raise errors.InvalidParameter(
            f"Expression '{text[:100]}' cannot be read: {message[:200]}"
        ) from None
    if len(trees) != 1 or trees[0] is None:
        raise errors.InvalidParameter(f"'{text[:100]}' is not one expression.")
    _check_size(trees[0])
    return trees[0]


def _check_size(tree: Node) -> None:
    for count, node in enumerate(tree.walk()):
        if count > MAX_NODES or node.depth > MAX_DEPTH:
            raise errors.InvalidParameter(TOO_LARGE)
    if _weight(tree) > MAX_WEIGHT:
        raise errors.InvalidParameter(
            f"'{shown(tree)}' nests what has to be computed several times; write it more simply."
        )


def _weight(node: Node) -> int:
    """How many polars nodes come of a node. One that is used twice is there twice, and so is all
    below it: thirty divisors within each other would be a billion nodes."""
    times = _times(node)
    below = (_weight(child) * times.get(id(child), 1) for child in node.iter_expressions())
    return 1 + sum(below)


def _times(node: Node) -> dict[int, int]:
    """How often a child is used, where that is not once."""
    match node:
        case sql.Div():
            return {id(node.right): 2}
        case sql.Mod():
            return {id(node.left): 5, id(node.right): 6}
        case sql.Nullif():
            return {id(node.this): 2}
        case sql.In():
            return {id(node.this): max(1, len(node.expressions))}
        case sql.Case():
            return {id(node.this): len(node.args["ifs"])}
    return {}


def shown(node: Node) -> str:
    """The text of a node, cut to what fits a message."""
    return node.sql(dialect="spark")[:100]


def _column(node: sql.Column, exact: dict[str, str], folded: dict[str, str]) -> str:
    name = node.name
    if node.table or not isinstance(node.this, sql.Identifier):
        raise errors.InvalidParameter(f"'{shown(node)}' is not allowed; name a column alone.")
    found = exact.get(name) or folded.get(name.casefold())
    if found is None:
        raise errors.InvalidParameter(
            f"Column '{name[:100]}' is not there; there are {', '.join(sorted(exact))[:500]}."
        )
    return found


def _literal(node: sql.Literal, walk: Walk) -> pl.Expr:
    if node.is_string:
        return pl.lit(node.this)
    try:
        whole = int(node.this)
    except ValueError:
        return pl.lit(float(node.this))
    return pl.lit(whole if abs(whole) < 1 << 63 else float(node.this))


def _two(make: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> Callable[[Any, Walk], pl.Expr]:
    def convert(node: Any, walk: Walk) -> pl.Expr:
        only(node, "this", "expression")
        return make(walk(node.left), walk(node.right))

    return convert


def _one(make: Callable[[pl.Expr], pl.Expr]) -> Callable[[Any, Walk], pl.Expr]:
    def convert(node: Node, walk: Walk) -> pl.Expr:
        only(node, "this")
        return make(walk(node.this))

    return convert


def _dividing(
    make: Callable[[pl.Expr, pl.Expr], pl.Expr],
) -> Callable[[Any, Walk], pl.Expr]:
    """A division, which gives null where the divisor is 0, as Spark's does."""

    def convert(node: Any, walk: Walk) -> pl.Expr:
        divisor = node.right.unnest()
        if isinstance(divisor, sql.Literal) and divisor.is_number and not float(divisor.this):
            raise errors.InvalidParameter(
                f"'{shown(node)}' ({type(node).__name__}) divides by zero."
            )
        by = walk(node.right)
        return pl.when(by != 0).then(make(walk(node.left), by))

    return convert


def _remainder(a: pl.Expr, b: pl.Expr) -> pl.Expr:
    """With the sign of the dividend, as in SQL; that of polars has the sign of the divisor."""
    rest = a % b
    return pl.when((rest != 0) & ((rest < 0) != (a < 0))).then(rest - b).otherwise(rest)


def _several(
    make: Callable[[list[pl.Expr]], pl.Expr],
) -> Callable[[Any, Walk], pl.Expr]:
    def convert(node: Any, walk: Walk) -> pl.Expr:
        return make([walk(node.this), *(walk(one) for one in node.expressions)])

    return convert


def _nullif(node: sql.Nullif, walk: Walk) -> pl.Expr:
    value = walk(node.this)
    return pl.when(value.ne_missing(walk(node.expression))).then(value)


def only(node: Node, *known: str) -> None:
    """Refuse a form that says more than we would look at, such as `TRIM(LEADING ...)`."""
    for name, value in node.args.items():
        if value and name not in known and name not in HARMLESS:
            raise errors.InvalidParameter(f"'{shown(node)}': {name} is not allowed here.")


def _in(node: sql.In, walk: Walk) -> pl.Expr:
    values = node.expressions
    if not values or node.args.get("query") is not None:
        raise errors.InvalidParameter(f"'{shown(node)}': IN takes a list of values.")
    if any(not isinstance(value, sql.Literal | sql.Neg | sql.Boolean) for value in values):
        raise errors.InvalidParameter(f"'{shown(node)}': IN takes plain values only.")
    # One comparison each: is_in over a list would ask for one type of all of them.
    return pl.any_horizontal([walk(node.this) == walk(value) for value in values])


def _between(node: sql.Between, walk: Walk) -> pl.Expr:
    return walk(node.this).is_between(walk(node.args["low"]), walk(node.args["high"]))


def _is(node: sql.Is, walk: Walk) -> pl.Expr:
    if isinstance(node.expression, sql.Null):
        return walk(node.this).is_null()
    if isinstance(node.expression, sql.Boolean):
        return walk(node.this).eq_missing(walk(node.expression))
    raise errors.InvalidParameter(f"'{shown(node)}': IS takes NULL, TRUE or FALSE.")


def _like(is_case_sensitive: bool) -> Callable[[Any, Walk], pl.Expr]:
    def convert(node: Any, walk: Walk) -> pl.Expr:
        if not isinstance(node.expression, sql.Literal) or not node.expression.is_string:
            raise errors.InvalidParameter(f"'{shown(node)}': LIKE takes a text.")
        flags = "(?s)" if is_case_sensitive else "(?si)"
        pattern = f"{flags}^{_pattern(node.expression.this)}$"
        return walk(node.this).cast(pl.String).str.contains(pattern)

    return convert


def _pattern(like: str) -> str:
    """A regular expression for a LIKE pattern: `%` any text, `_` any one character."""
    found, escaped = [], False
    for character in like:
        if escaped or character not in "%_\\":
            found.append(_quoted(character))
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            found.append(".*" if character == "%" else ".")
    return "".join(found)


def _quoted(character: str) -> str:
    return character if character.isalnum() or character == "_" else f"\\x{{{ord(character):x}}}"


def _case(node: sql.Case, walk: Walk) -> pl.Expr:
    subject = None if node.this is None else walk(node.this)
    otherwise = node.args.get("default")
    result = pl.lit(None) if otherwise is None else walk(otherwise)
    for branch in reversed(node.args["ifs"]):
        found = walk(branch.this)
        found = found if subject is None else subject == found
        result = pl.when(found).then(walk(branch.args["true"])).otherwise(result)
    return result


def _if(node: sql.If, walk: Walk) -> pl.Expr:
    otherwise = node.args.get("false")
    result = pl.lit(None) if otherwise is None else walk(otherwise)
    return pl.when(walk(node.this)).then(walk(node.args["true"])).otherwise(result)


_CAST_TYPES: dict[Any, Any] = {
    sql.DataType.Type.DOUBLE: pl.Float64,
    sql.DataType.Type.FLOAT: pl.Float64,
    sql.DataType.Type.INT: pl.Int64,
    sql.DataType.Type.BIGINT: pl.Int64,
    sql.DataType.Type.BOOLEAN: pl.Boolean,
    sql.DataType.Type.TEXT: pl.String,
    sql.DataType.Type.VARCHAR: pl.String,
    sql.DataType.Type.DATE: pl.Date,
    sql.DataType.Type.TIMESTAMP: pl.Datetime("us", "UTC"),
    sql.DataType.Type.TIMESTAMPTZ: pl.Datetime("us", "UTC"),
}
_TIMES = (pl.Date, pl.Datetime("us", "UTC"))


def _cast(node: sql.Cast, walk: Walk) -> pl.Expr:
    """CAST(x AS type), and the literals DATE '...', TIMESTAMP '...'; what does not fit is null."""
    kind = _CAST_TYPES.get(node.to.this)
    if kind is None:
        raise errors.InvalidParameter(f"'{shown(node)}': this type is not allowed.")
    if kind in _TIMES and isinstance(node.this, sql.Literal) and node.this.is_string:
        return _time_literal(node.this.this, kind)
    return walk(node.this).cast(kind, strict=False)


def _time_literal(text: str, kind: Any) -> pl.Expr:
    try:
        found = datetime.fromisoformat(text)
        aware = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise errors.InvalidParameter(f"'{text[:100]}' is no ISO 8601 date or time.") from None
    return pl.lit(date(found.year, found.month, found.day) if kind == pl.Date else aware)


def _round(node: sql.Round, walk: Walk) -> pl.Expr:
    places = node.args.get("decimals")
    if places is not None and not (
        isinstance(places, sql.Literal) and places.is_int and int(places.this) <= MOST_PLACES
    ):
        raise errors.InvalidParameter(
            f"'{shown(node)}': ROUND takes a whole number of places, 0..{MOST_PLACES}."
        )
    return walk(node.this).round(0 if places is None else int(places.this))


_NODES: dict[type[Any], Callable[[Any, Walk], pl.Expr]] = {
    sql.Literal: _literal,
    sql.Boolean: lambda node, walk: pl.lit(node.this),
    sql.Null: lambda node, walk: pl.lit(None),
    sql.Paren: lambda node, walk: walk(node.this),
    sql.And: _two(lambda a, b: a & b),
    sql.Or: _two(lambda a, b: a | b),
    sql.Not: _one(lambda a: ~a),
    sql.EQ: _two(lambda a, b: a == b),
    sql.NullSafeEQ: _two(lambda a, b: a.eq_missing(b)),
    sql.NEQ: _two(lambda a, b: a != b),
    sql.GT: _two(lambda a, b: a > b),
    sql.GTE: _two(lambda a, b: a >= b),
    sql.LT: _two(lambda a, b: a < b),
    sql.LTE: _two(lambda a, b: a <= b),
    sql.Add: _two(lambda a, b: a + b),
    sql.Sub: _two(lambda a, b: a - b),
    sql.Mul: _two(lambda a, b: a * b),
    sql.Div: _dividing(lambda a, b: a / b),
    sql.Mod: _dividing(_remainder),
    sql.Neg: _one(lambda a: -a),
    sql.In: _in,
    sql.Between: _between,
    sql.Is: _is,
    sql.Like: _like(True),
    sql.ILike: _like(False),
    sql.Case: _case,
    sql.If: _if,
    sql.Cast: _cast,
    sql.TryCast: _cast,
    sql.Coalesce: _several(pl.coalesce),
    sql.Greatest: _several(pl.max_horizontal),
    sql.Least: _several(pl.min_horizontal),
    sql.Nullif: _nullif,
    sql.Pow: _two(lambda a, b: a.cast(pl.Float64).pow(b)),
    sql.Round: _round,
    sql.Abs: _one(lambda a: a.abs()),
    sql.Ceil: _one(lambda a: a.ceil()),
    sql.Floor: _one(lambda a: a.floor()),
    sql.Sqrt: _one(lambda a: a.sqrt()),
    sql.Ln: _one(lambda a: a.log()),
    sql.Exp: _one(lambda a: a.exp()),
    sql.IsNan: _one(lambda a: a.is_nan()),
    sql.Lower: _one(lambda a: a.str.to_lowercase()),
    sql.Upper: _one(lambda a: a.str.to_uppercase()),
    sql.Trim: _one(lambda a: a.str.strip_chars()),
    sql.Length: _one(lambda a: a.str.len_chars()),
    sql.TsOrDsToDate: _one(lambda a: a.dt.date()),  # also within YEAR and the like
    sql.Year: _one(lambda a: a.dt.year()),
    sql.Month: _one(lambda a: a.dt.month()),
    sql.Day: _one(lambda a: a.dt.day()),
    sql.Hour: _one(lambda a: a.dt.hour()),
    sql.DayOfWeek: _one(lambda a: a.dt.weekday() % 7 + 1),  # Spark: 1 = Sunday
}
