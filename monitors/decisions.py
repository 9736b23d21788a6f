"""The rows of an experiment, and the decisions made of them.

`experiments.evaluate` decides; here its rows are put together from what a monitor holds, the guard
looks at the newest hours a second time, and every decision becomes a row of `<prefix>_decisions`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import polars as pl

from monitors import (
    arms,
    contract,
    experiment_state,
    experiments,
    followed,
    formulas,
    held,
    roles,
    tables,
    tallied,
)

VERSION = tallied.VERSION
DELAYS_OVER = timedelta(days=30)
FEWEST_DELAYS = 100
DELAY_QUANTILE = 0.9
MAIN, GUARD = "full", "guard"
OWN = ("prediction", "score", "label", "label_time")  # there without being asked for


@dataclass(frozen=True, slots=True)
class Look:
    """One decision and what it rests on. `challenger_requests`: under configuration
    `config_version`, the newest that the rows show; `newest_row`: time of the newest row."""

    experiment: experiment_state.Experiment
    roles: roles.Roles
    moment: datetime
    kind: str
    decision: Mapping[str, Any]
    policy: Mapping[str, Any]
    requests: int
    config_version: int | None
    challenger_requests: int
    newest_row: datetime | None

    @property
    def action(self) -> str:
        return str(self.decision["action"])


def rows_of(
    rows: pl.DataFrame, who: roles.Roles, start: datetime | None, named: Sequence[str]
) -> pl.DataFrame:
    """What `experiments.evaluate` takes, of the rows that a monitor keeps (experiments.md,
    "Input"). A request of several rows: an id per row, one unit. `named`: columns of slices and
    metrics."""
    chosen = rows.filter(pl.col(VERSION).is_in([who.champion, who.challenger]))
    if start is not None:
        chosen = chosen.filter(pl.col("__time") >= start)
    several = chosen.filter(pl.col("row_index") > 0)["databricks_request_id"].unique()
    of_several = pl.col("databricks_request_id").is_in(several.implode())
    columns: dict[str, pl.Expr | pl.Series] = {
        "request_time": pl.col("__time"),
        "request_id": pl.when(of_several)
        .then(pl.format("{}:{}", "databricks_request_id", "row_index"))
        .otherwise(pl.col("databricks_request_id")),
        "unit_id": pl.when(of_several & pl.col("unit_id").is_null())
        .then(pl.col("databricks_request_id"))
        .otherwise(pl.col("unit_id")),
        "version": pl.col(VERSION),
        "route_share": _shares(chosen["route_split"], who),
        "status_code": pl.col("status_code"),
        "latency_ms": pl.col("execution_duration_ms"),
        # 400 is the contract's answer when a model raises; it is the model's error all the same.
        "error": pl.when(pl.col("error_source") == "model").then(True),
    }
    for name, column in formulas.named((*OWN, *named), chosen.columns).items():
        columns.setdefault(name, pl.col(column))
    return chosen.select(**columns)


def columns_of(body: Mapping[str, Any]) -> list[str]:
    """The columns that an experiment is cut by or measured with, at either look; names may differ
    in case from those of the table."""
    policies = [experiments.Policy.parse(one) for one in contract.policies_of(body)]
    metrics = [metric for policy in policies for metric in policy.placed_metrics.values()]
    values = [name for m in metrics if m.value for name in formulas.names_in(m.value)]
    slices = [name for policy in policies for name in policy.slices]
    named = dict.fromkeys([*slices, *values, *(metric.score for metric in metrics)])
    return [name for name in named if name not in OWN]


def _shares(splits: pl.Series, who: roles.Roles) -> pl.Series:
    """Probability that the split gave a request to the challenger rather than to the champion."""
    distinct = splits.drop_nulls().unique().to_list()
    if not distinct:
        return pl.Series("route_share", [None] * len(splits), dtype=pl.Float64)
    values = [roles.share(orjson.loads(text), who) for text in distinct]
    return splits.replace_strict(distinct, values, default=None, return_dtype=pl.Float64)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A champion and a challenger to compare, and how."""

    who: roles.Roles
    policy: Mapping[str, Any]
    start: datetime | None
    named: Sequence[str]

    def prepared(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows_of(rows, self.who, self.start, self.named)


def looks(
    experiment: experiment_state.Experiment,
    rows: held.Held,
    moment: datetime,
    starts_at_receipt: bool,
    known: followed.Followed,
) -> list[Look]:
    """The decisions of now, one per challenger; none: nothing to compare yet. Of several that may
    be promoted one is. `starts_at_receipt`: the monitor's time is that of receipt, so that an
    experiment without a start begins when it was made. `known`: the sums of the looks before."""
    if VERSION not in rows.columns or "route_split" not in rows.columns:
        return []
    start = _start(experiment, starts_at_receipt)
    found = roles.assign(experiment.body, rows.tally.splits, start)
    whole_hours = starts_at_receipt or not rows.tally.most_index
    judged, named = [], columns_of(experiment.body)
    for who in found.pairs:
        policy = _policy(experiment, rows, who, found.started, start, moment, known)
        pair = _Pair(who, policy, start, named)
        judged.append((pair, *_judge(experiment, pair, rows, moment, whole_hours, known)))
    chosen = experiments.choose([decision for _, _, decision in judged])
    return [
        _look(experiment, pair, kind, decision, rows, moment)
        for (pair, kind, _), decision in zip(judged, chosen, strict=True)
    ]


def _policy(
    experiment: experiment_state.Experiment,
    rows: held.Held,
    who: roles.Roles,
    started: int,
    start: datetime | None,
    moment: datetime,
    known: followed.Followed,
) -> dict[str, Any]:
    """The agreed policy for one pair, with what the service adds to it."""
    policy = {
        **contract.policy_of(experiment.body),
        "champion": who.champion,
        "challenger": who.challenger,
        "challengers": max(started, int(experiment.body.get("challengers", 1))),
    }
    if "label_window_hours" not in experiment.body:
        policy["label_window_hours"] = known.label_window(
            experiment.endpoint,
            experiment.number,
            rows.tally.labelled,
            moment,
            lambda: label_window(_labelled(rows, start, who, moment), who, moment),
        )
    return policy


def _judge(
    experiment: experiment_state.Experiment,
    pair: _Pair,
    rows: held.Held,
    moment: datetime,
    whole_hours: bool,
    known: followed.Followed,
) -> tuple[str, experiments.Decision]:
    """The kind of look that decides about a pair, and its decision. whole_hours: no request has
    rows in several hours; else no hour can be summed by itself."""
    guarded = _guarded(experiment.body, pair, rows, moment)
    if whole_hours:
        asked = followed.Asked(experiment.number, experiments.Policy.parse(pair.policy), pair.start)
        found = known.decide(experiment.endpoint, asked, rows, pair.prepared, moment)
    else:
        every = rows.frame(pair.start)
        found = experiments.evaluate(pair.prepared(every), pair.policy, moment)
    if guarded is not None and guarded.action == "roll_back":
        return GUARD, guarded
    return MAIN, found


def _look(
    experiment: experiment_state.Experiment,
    pair: _Pair,
    kind: str,
    decision: experiments.Decision,
    rows: held.Held,
    moment: datetime,
) -> Look:
    version, requests = rows.tally.newest_configuration(pair.who.challenger)
    compared, newest = _compared(rows, pair.who, pair.start)
    return Look(
        experiment=experiment,
        roles=pair.who,
        moment=moment,
        kind=kind,
        decision=decision.to_dict(),
        policy=pair.policy,
        requests=compared,
        config_version=version,
        challenger_requests=requests,
        newest_row=newest,
    )


def _start(experiment: experiment_state.Experiment, starts_at_receipt: bool) -> datetime | None:
    text = experiment.body.get("start_time")
    if text is not None:
        return contract.moment(text, "start_time")
    if starts_at_receipt:
        return datetime.fromtimestamp(experiment.started_ms / 1000, UTC)
    return None


def _labelled(
    rows: held.Held, start: datetime | None, who: roles.Roles, moment: datetime
) -> pl.DataFrame:
    """What `label_window` takes: the champion's labelled rows, as far back as it looks."""
    since = moment - DELAYS_OVER
    since = since if start is None else max(since, start)
    columns = (VERSION, "__time", "label", "label_time")
    if not set(columns) <= set(rows.columns):
        return pl.DataFrame()
    chosen = (pl.col(VERSION) == who.champion) & pl.col("label").is_not_null()
    parts = (part.filter(chosen) for part in rows.portions(since, None, columns))
    return pl.concat(parts).rename({VERSION: "version", "__time": "request_time"})


def _compared(
    rows: held.Held, who: roles.Roles, start: datetime | None
) -> tuple[int, datetime | None]:
    """How many rows the two versions have, and the time of the newest."""
    hours = rows.tally.hours.filter(pl.col("version").is_in([who.champion, who.challenger]))
    count, newest = 0, None
    if start is not None:
        first = arms.microseconds(start) // arms.HOUR
        hours = hours.filter(pl.col("hour") > first)
        # Of the hour in which it started only some rows count.
        end = arms.EPOCH + timedelta(hours=first + 1)
        begun = rows.frame(start, end, [VERSION, "__time"])
        begun = begun.filter(pl.col(VERSION).is_in([who.champion, who.challenger]))
        count, newest = begun.height, begun["__time"].max()
    last = hours["newest"].max()
    if isinstance(last, int):
        newest = arms.EPOCH + timedelta(microseconds=last)
    return count + int(hours["rows"].sum()), newest if isinstance(newest, datetime) else None


def _guarded(
    body: Mapping[str, Any], pair: _Pair, rows: held.Held, moment: datetime
) -> experiments.Decision | None:
    """The second look, at the newest hours alone."""
    if not body.get("guard"):
        return None
    since = moment - timedelta(hours=float(body["guard"]["window_hours"]))
    overrides = {key: value for key, value in body["guard"].items() if key != "window_hours"}
    recent = pair.prepared(rows.frame(since + timedelta(microseconds=1)))
    return experiments.evaluate(recent, {**pair.policy, **overrides}, moment)


def label_window(rows: pl.DataFrame, who: roles.Roles, moment: datetime) -> float | None:
    """Hours in which nine of ten of the champion's labels came, in the last 30 days: the slower of
    the two kinds of label (above, not above their mean). None: too few, or an hour at most."""
    if "label" not in rows.columns or "label_time" not in rows.columns:
        return None
    labelled = rows.filter(
        (pl.col("version") == who.champion)
        & (pl.col("request_time") > moment - DELAYS_OVER)
        & pl.col("label").is_not_null()
        & (pl.col("label_time") <= moment)
    ).select(
        "label",
        hours=(pl.col("label_time") - pl.col("request_time")).dt.total_microseconds() / 3.6e9,
    )
    if labelled.height < FEWEST_DELAYS:
        return None
    kinds = [labelled]
    if labelled["label"].dtype.is_numeric():
        above = pl.col("label") > labelled["label"].mean()
        kinds = [labelled.filter(above), labelled.filter(~above)]
    quantiles = [part["hours"].quantile(DELAY_QUANTILE, "higher") for part in kinds if part.height]
    hours = max(value for value in quantiles if value is not None)
    return math.ceil(hours * 10) / 10 if hours > 1 else None


def store(
    uri: str,
    found: Sequence[Look],
    refresh_id: int | None,
    versions: tuple[int, int],
    now_ms: int,
) -> None:
    """Append the decisions of one endpoint; once per refresh. `versions`: commit versions of
    unpacked rows and labels that they rest on."""
    if not found:
        return
    rows = [_row(one, refresh_id, versions, now_ms) for one in found]
    app_id = f"decisions:{found[0].experiment.endpoint}"
    if refresh_id is None:
        tables.append(uri, tables.DECISIONS, rows, f"{app_id}:guard", now_ms)
    else:
        tables.append(uri, tables.DECISIONS, rows, app_id, refresh_id)


def _row(
    found: Look, refresh_id: int | None, versions: tuple[int, int], now_ms: int
) -> dict[str, Any]:
    return {
        "decided_time": found.moment,
        "written_time": datetime.fromtimestamp(now_ms / 1000, UTC),
        "endpoint": found.experiment.endpoint,
        "experiment": found.experiment.number,
        "champion": found.roles.champion,
        "challenger": found.roles.challenger,
        "kind": found.kind,
        "action": found.action,
        "reasons": list(found.decision["reasons"]),
        "summary": found.decision["summary"],
        "config_version": found.config_version,
        "requests": found.requests,
        "unpacked_commit_version": versions[0],
        "labels_commit_version": versions[1],
        "refresh_id": refresh_id,
        "decision": orjson.dumps(found.decision, option=orjson.OPT_SERIALIZE_NUMPY).decode(),
    }
