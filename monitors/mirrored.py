"""Pairs of answers to one request, of a version in the shadow or of a replay, and what they say.

Both sides come as rows of an unpacked table. A copy's id is its original's with the last bit
turned, so all digits but the last are the same for both, and `KEY` is what joins them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import sqrt
from typing import Any

import polars as pl

from capture import database, recorded
from capture.settings import Settings
from monitors import cells, contract, experiment_state, pairs, policies

KEY = "pair"
ANSWER = ("prediction", "score", "status_code", "error_source", "execution_duration_ms")
COLUMNS = (
    *("databricks_request_id", "row_index", "request_time", "client_request_id", "unit_id"),
    *("served_entity_name", "model_version", "shadow", *ANSWER),
)
BOTH = ("prediction", "score", "status_code", "latency_ms")
MOST_ROWS = 1_000_000
NORMAL_95 = 1.96
# Where nobody has agreed on a policy: the smallest gain that counts, in the metric's own unit; of
# numbers, as a share of the standard deviation of the labels.
DEFAULT_MDE = {"accuracy": 0.01, "brier": 0.005, "mae": 0.02}


@dataclass(frozen=True, slots=True)
class Version:
    """A served entity with the model version behind it; rows of another one are another's."""

    name: str
    model_version: str | None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Version":
        return cls(given["name"], given["version"])

    @property
    def rows(self) -> pl.Expr:
        """Which rows of an unpacked table it answered."""
        is_version = pl.col("model_version").eq_missing(pl.lit(self.model_version, pl.String))
        return (pl.col("served_entity_name") == self.name) & is_version


def comparison(settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """How the version in the shadow compares with the one that answered, since it got copies.

    arguments: `table`, `endpoint`, `champion` and `challenger` {"name", "version"}, `since_ms`,
    `now_ms`, `dropped` (copies that were dropped)."""
    champion, challenger = (Version.of(arguments[role]) for role in pairs.SIDES)
    since = datetime.fromtimestamp(arguments["since_ms"] / 1000, UTC)
    now = datetime.fromtimestamp(arguments["now_ms"] / 1000, UTC)
    table = arguments["table"]
    copied = pl.col("shadow") & challenger.rows
    copies = (
        recorded.unpacked(settings, table, since, columns=COLUMNS)
        .filter(copied)
        .top_k(MOST_ROWS, by="request_time")
        .collect()
    )
    start = copies["request_time"].min()
    first = start if isinstance(start, datetime) else now
    originals = (
        recorded.unpacked(settings, table, first, columns=COLUMNS)
        .filter(~pl.col("shadow") & champion.rows)
        .with_columns(_key())
        .join(copies.lazy().select(_key()).unique(), on=KEY, how="semi")
        .collect()
    )
    labelled = recorded.with_labels(originals, recorded.labels(settings, table, now).collect())
    together = paired(labelled, copies)
    agreed = agreed_policy(settings, arguments["endpoint"])
    found = compared(together, champion.name, challenger.name, agreed, now)
    told = {"dropped": arguments["dropped"], "since": contract.rfc3339(arguments["since_ms"])}
    return {**found, **told}


def agreed_policy(settings: Settings, endpoint: str) -> dict[str, Any] | None:
    """The body of an endpoint's experiment, if it has one."""
    engine = database.open_engine(settings)
    try:
        with database.reading(engine) as connection:
            experiment = experiment_state.get_experiment(connection, endpoint)
    finally:
        engine.dispose()
    return None if experiment is None else experiment.body


def paired(originals: pl.DataFrame, copies: pl.DataFrame) -> pl.DataFrame:
    """What `pairs.evaluate` takes: a row per row that both were asked. originals: COLUMNS with
    label and label_time; copies: COLUMNS.

    A version that refuses or fails what the other one answers has failed, whatever its status; a
    request of several rows is one unit."""
    mine = originals.with_columns(_key(), *_answer("champion"))
    theirs = copies.with_columns(_key(), *_answer("challenger"))
    own = [f"challenger_{name}" for name in (*BOTH, "error_source")]
    found = mine.join(theirs.select(KEY, "row_index", *own), on=[KEY, "row_index"], how="inner")
    several = found.filter(pl.col("row_index") > 0)["databricks_request_id"].unique()
    of_several = pl.col("databricks_request_id").is_in(several.implode())
    id = pl.col("databricks_request_id")
    return found.select(
        "request_time",
        "row_index",
        "databricks_request_id",
        request_id=pl.when(of_several).then(pl.format("{}:{}", id, "row_index")).otherwise(id),
        unit_id=pl.when(of_several & pl.col("unit_id").is_null())
        .then(id)
        .otherwise(pl.col("unit_id")),
        label=pl.col("label"),
        label_time=pl.col("label_time"),
        champion_status_code=_status("champion", "challenger"),
        challenger_status_code=_status("challenger", "champion"),
        **{
            f"{side}_{name}": pl.col(f"{side}_{name}")
            for side in pairs.SIDES
            for name in BOTH
            if name != "status_code"
        },
    )


def _key() -> pl.Expr:
    return pl.col("databricks_request_id").str.head(-1).alias(KEY)


def _answer(side: str) -> list[pl.Expr]:
    named = {"execution_duration_ms": "latency_ms"}
    return [pl.col(name).alias(f"{side}_{named.get(name, name)}") for name in ANSWER]


def _status(side: str, other: str) -> pl.Expr:
    """The status as `pairs` reads it: 500 and more is a failure."""
    at_fault = pl.col(f"{side}_error_source").is_in(["model", "server"]).fill_null(False)
    alone = (pl.col(f"{side}_status_code") >= 400) & (pl.col(f"{other}_status_code") < 400)
    status = pl.col(f"{side}_status_code")
    return pl.when((at_fault | alone) & (status < 500)).then(500).otherwise(status)


def compared(
    together: pl.DataFrame,
    champion: str,
    challenger: str,
    agreed: Mapping[str, Any] | None,
    now: datetime,
) -> dict[str, Any]:
    """What `pairs.evaluate` says of `paired` rows, with the difference of the answers themselves.

    agreed: the body of the endpoint's experiment; without one, or with one whose metric is no mean
    over requests, a metric that fits the labels, and `policy_from` says so."""
    policy, source = _policy(together, agreed)
    named = {**policy, "champion": champion, "challenger": challenger}
    outcome = pairs.evaluate(together, named, now).to_dict()
    return {
        **outcome,
        "primary": policy["primary"],
        "policy_from": source,
        "prediction_difference": _difference(together),
    }


def _policy(together: pl.DataFrame, agreed: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    if agreed is not None:
        policy = contract.policy_of(agreed)
        parsed = policies.Policy.parse(policy).primary
        if parsed.kind != "auc" and parsed.name not in pairs.UNPAIRED:
            return policy, "experiment"
    return {"primary": _fitting(together)}, "default"


def _fitting(together: pl.DataFrame) -> dict[str, Any]:
    """accuracy of classes, brier of shares, mae of numbers."""
    labels = cells.column(together, "label").drop_nulls()
    answers = pl.concat(
        [cells.floats(cells.column(together, f"{side}_prediction")) for side in pairs.SIDES]
    ).drop_nulls()
    name, mde = "accuracy", DEFAULT_MDE["accuracy"]
    if cells.numeric(labels.dtype) and not labels.is_empty():
        numbers = cells.floats(labels)
        are_whole = (numbers == numbers.round()).all() and (answers == answers.round()).all()
        if not are_whole:
            are_shares = numbers.is_in([0.0, 1.0]).all() and answers.is_between(0, 1).all()
            name = "brier" if are_shares else "mae"
            spread = numbers.std()
            wide = spread if isinstance(spread, float) and spread > 0 else 1.0
            mde = DEFAULT_MDE[name] * (wide if name == "mae" else 1.0)
    return {"name": name, "mde": mde}


def _difference(together: pl.DataFrame) -> dict[str, Any] | None:
    """challenger - champion of answers that are numbers: mean, and its 95 % interval at one look;
    None: there are no two."""
    champion, challenger = (
        cells.numbers(cells.column(together, f"{side}_prediction")) for side in pairs.SIDES
    )
    d = pl.Series(challenger - champion).fill_nan(None).drop_nulls()
    mean, spread = d.mean(), d.std()
    if not isinstance(mean, float) or not isinstance(spread, float):
        return None
    half = NORMAL_95 * spread / sqrt(len(d))
    largest = d.abs().max()
    return {
        "n": len(d),
        "mean": mean,
        "interval_95": [mean - half, mean + half],
        "largest": largest,
    }
