"""The main job on real data: serve, record, judge, recommend, shift. `inferlake demo` runs this.

Every number printed is computed on the way, by the server from its tables or here from the answers;
the words around them are all that is fixed. Decisions wait for the monitor at fixed moments of the
story (`refreshes {"until": ...}`), so the speed of the machine does not change what is printed.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from serving.demo import control, driver, feed, models, receiver, screen

JULY = datetime(2013, 7, 1, tzinfo=UTC)
HALF_SINCE = datetime(2013, 7, 3, tzinfo=UTC)
FIRST_MONDAY_OF_AUGUST = datetime(2013, 8, 5, tzinfo=UTC)
FEED_HANGS = datetime(2013, 10, 8, 1, tzinfo=UTC)  # 7 October, 21:00 in New York
FEED_REPAIRED = FEED_HANGS + timedelta(hours=48)
CHALLENGER_BACK = datetime(2013, 10, 11, tzinfo=UTC)
CANARY_SINCE = datetime(2013, 11, 4, tzinfo=UTC)
CANARY_UNTIL = datetime(2013, 12, 9, tzinfo=UTC)
CANARY_LOOK_EVERY = 50
END = datetime(2014, 1, 2, tzinfo=UTC)
HOLDOUT_PERCENTAGE = 10

POLICY: dict[str, Any] = {
    "primary": {"name": "log_loss", "kind": "continuous", "mode": "superiority", "mde": 0.03},
    "information": [{"name": "accuracy", "kind": "binary"}],
    # Latency is no guardrail here: it differs between machines, and the story must not.
    "guardrails": [{"name": "error_rate", "kind": "error_rate", "margin": 0.002}],
    "min_hours": 336,
    "stratum_hours": 24,
    # A day: within 8 hours 3 % of the labels are missing, the very late flights, and with them a
    # sixth of what v2 gains.
    "label_window_hours": 24,
    "champion": "v1",
    "challenger": "v2",
    "holdout_percentage": HOLDOUT_PERCENTAGE,
}
# The guard looks at the newest hours alone and compares with the hold-out of the same hours: an
# absolute limit would fire with every season.
GUARD: dict[str, Any] = {
    "window_hours": 12,
    "label_window_hours": 5,
    "stratum_hours": 1,
    "min_labels": 15,
    "min_units": 15,
    "guardrails": [{"name": "accuracy", "kind": "binary", "margin": 0.2, "mde": 0.2}],
}

METRICS = {
    "ks": "KS",
    "psi": "PSI",
    "js_distance": "JS",
    "tv_distance": "TV",
    "l_infinity_distance": "L-inf",
    "null_share": "missing +",
}


@dataclass(slots=True)
class Story:
    """What the chapters share."""

    control: control.Control
    driver: driver.Driver
    screen: screen.Screen
    receiver: receiver.Receiver
    feed: feed.Feed
    trained: dict[str, models.Trained]
    last_drifted: dict[str, datetime] = field(default_factory=dict)  # column -> newest such week
    alerts_told: set[str] = field(default_factory=set)
    promoted_at: datetime | None = None
    serving_version: int = 0  # configuration with v2 in front, to come back to


# --- the story's clock ----------------------------------------------------------------------------


def advance(story: Story, moment: datetime, at_most: int | None = None) -> int:
    """Send the flights before `moment`, post the labels due by then. Gives flights sent."""

    def progress(done: int) -> None:
        story.screen.advance(story.driver.next_event_time() or moment, done)

    sent = story.driver.send_until(moment, at_most, progress)
    story.driver.label_until(moment)
    return sent


def look(story: Story, moment: datetime) -> None:
    """Let the monitor judge everything up to `moment`, and tell which alerts opened by it."""
    wait_until_recorded(story)
    story.control.refresh(moment)
    new = [a for a in story.control.open_alerts() if a["id"] not in story.alerts_told]
    new.sort(key=lambda alert: alert["column"] or "")
    story.alerts_told.update(alert["id"] for alert in new)
    for metric in dict.fromkeys(alert["metric"] for alert in new):
        if metric != "drift":  # those are told week by week
            tell_alerts(story, moment, [alert for alert in new if alert["metric"] == metric])


def tell_alerts(story: Story, moment: datetime, alerts: list[dict[str, Any]]) -> None:
    """One line for alerts of one metric: the first as it was sent, the others by their column."""
    first = alerts[0]
    stale = "airport_hour is stale: " if first["metric"] == "feature_age_hours" else ""
    others = ", ".join(alert["column"] for alert in alerts[1:])
    also = f" The same of {others}." if others else ""
    story.screen.line(moment, f"ALERT       {stale}{first['message']}{also}", "bad")


def wait_until_recorded(story: Story, seconds: float = 30) -> None:
    """Wait until every answered request and every accepted label is a committed row."""
    deadline = time.monotonic() + seconds
    replay = story.driver.replay
    while (found := story.control.committed()) != (replay.sent, replay.labels_sent):
        if time.monotonic() > deadline:
            raise control.Refused(
                f"{replay.sent} requests and {replay.labels_sent} labels were sent; "
                f"{found[0]} and {found[1]} are in the tables after {seconds:.0f} s."
            )
        time.sleep(0.02)


# --- words ----------------------------------------------------------------------------------------


def interval(metric: dict[str, Any], digits: int = 3) -> str:
    """`-0.089 [-0.158 -0.019]`, or what is missing."""
    if metric.get("effect") is None or metric.get("interval") is None:
        return "no interval yet"
    low, high = metric["interval"]
    return f"{metric['effect']:+.{digits}f} [{low:+.{digits}f} {high:+.{digits}f}]"


def labels_of(decision: dict[str, Any]) -> int:
    primary = decision["metrics"].get("log_loss") or next(iter(decision["metrics"].values()))
    return sum((primary.get("n") or {}).values())


def verdict(decision: dict[str, Any]) -> str:
    """The decision's reasons in a few words."""
    reasons = decision["reasons"]
    if decision["action"] == "promote":
        return "better, and long enough"
    if "min_hours" in reasons:
        better = decision["metrics"]["log_loss"]["interval"][1] < 0
        days = int(decision["health"]["hours"] // 24)
        return f"better, but {days} of 14 days" if better else "not yet"
    words = {
        "undecided": "not yet",
        "min_labels": "too few labels",
        "no_labels": "no labels yet",
        "labels_immature": "labels too young",
    }
    return ", ".join(words.get(reason, reason) for reason in reasons)


def split_text(shares: dict[str, int]) -> str:
    return "  ".join(f"{version} {share} %" for version, share in shares.items())


# --- chapters -------------------------------------------------------------------------------------


def canary(story: Story) -> None:
    """1 July: v2 beside v1 with a tenth of the traffic; 3 July: half and half."""
    story.control.serve({"v1": 90, "v2": 10})
    story.control.experiment({**POLICY, "start_time": JULY.isoformat()})
    story.screen.line(JULY, "CANARY      v2 gets 10 % of the flights, v1 keeps 90 %", "act")
    advance(story, HALF_SINCE)
    look(story, HALF_SINCE)
    story.control.serve({"v1": 50, "v2": 50})
    story.screen.line(HALF_SINCE, "SPLIT       v1 50 %  v2 50 %: no errors, so compare", "act")


def comparison(story: Story) -> None:
    """Look every day of July, then every week, until the experiment says promote.

    Told are the Mondays, and each day on which the answer is another one."""
    moment, told = HALF_SINCE, ""
    while moment < FEED_HANGS - timedelta(days=7):
        moment += timedelta(days=1 if moment < FIRST_MONDAY_OF_AUGUST else 7)
        advance(story, moment)
        look(story, moment)
        if moment.weekday() == 0:
            tell_drift(story, moment)
        decision = story.control.decision("v2")
        if decision is None:
            continue
        if decision["action"] == "promote":
            tell_comparison(story, moment, decision)
            promote(story, moment, decision)
            return
        if moment.weekday() == 0 or verdict(decision) != told:
            tell_comparison(story, moment, decision)
            told = verdict(decision)
    story.screen.line(
        moment, "UNDECIDED   too few labels came to decide; both versions go on as they are", "act"
    )


def tell_comparison(story: Story, moment: datetime, decision: dict[str, Any]) -> None:
    loss = decision["metrics"].get("log_loss", {})
    story.screen.line(
        moment,
        f"{labels_of(decision):6,} labels  v2-v1 log loss {interval(loss)}  {verdict(decision)}",
        "good" if decision["action"] == "promote" else "quiet",
    )


def promote(story: Story, moment: datetime, decision: dict[str, Any]) -> None:
    """Apply the recommendation that the server made of the decision."""
    advised = [
        r
        for r in story.control.open_recommendations()
        if r["action"]["kind"] in ("promote", "shift") and r["action"]["served_entity"] == "v2"
    ]
    if not advised:
        raise control.Refused("The decision says promote, but no recommendation came of it.")
    accuracy = decision["metrics"].get("accuracy", {})
    story.screen.line(
        moment,
        f"RECOMMENDED promote v2: log loss {interval(decision['metrics']['log_loss'])}, "
        f"accuracy {interval(accuracy)}",
        "good",
    )
    before = story.control.endpoint()
    version = before["config"]["config_version"]
    path = f"/api/1.0/recommendations/{advised[0]['id']}/apply"
    story.control.call("POST", path, {"if_config_version": version})
    shares = story.control.shares()
    story.screen.line(moment, f"PROMOTED    {split_text(shares)} (the hold-out)", "act")
    heard = wait_for_event(story, "endpoint.promoted")
    story.screen.line(moment, f"WEBHOOK     {heard['type']} received, signature verified", "quiet")
    story.promoted_at = moment


def wait_for_event(story: Story, type: str, seconds: float = 20) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not (heard := story.receiver.received(type)):
        if time.monotonic() > deadline:
            raise control.Refused(f"No webhook '{type}' came within {seconds:.0f} s.")
        time.sleep(0.02)
    return heard[-1]


def weeks(story: Story, until: datetime) -> None:
    """Go on week by week, telling what drifted when that changes."""
    while (monday := next_monday(story)) < until:
        advance(story, monday)
        look(story, monday)
        tell_drift(story, monday)
    advance(story, until)


def next_monday(story: Story) -> datetime:
    now = story.driver.next_event_time() or END
    midnight = datetime(now.year, now.month, now.day, tzinfo=UTC)
    return midnight + timedelta(days=7 - midnight.weekday())


def tell_drift(story: Story, monday: datetime) -> None:
    """A line when columns drifted last week that had not drifted in the four weeks before."""
    week = monday - timedelta(days=7)
    cells = {
        column["name"]: cell
        for column in story.control.drift(week, monday)
        for cell in column["cells"]
        if cell["status"] == "drifted" and cell["served_entity"] is None
    }
    before = week - timedelta(days=28)
    new = [name for name in cells if story.last_drifted.get(name, before) <= before]
    story.last_drifted.update(dict.fromkeys(cells, week))
    if not new:
        return
    new.sort(key=lambda name: -(cells[name]["effect"] or 0))
    text = ", ".join(
        f"{name} {METRICS.get(cells[name]['metric'], cells[name]['metric'])} "
        f"{cells[name]['value']:.2f}"
        for name in new[:4]
    )
    more = f" and {len(new) - 4} more" if len(new) > 4 else ""
    story.screen.line(monday, f"DRIFT       week of {screen.day(week)}: {text}{more}")


def hung_feed(story: Story) -> None:
    """7 October, 21:00 in New York: `airport_hour` repeats its last rows for 48 hours."""
    weeks(story, FEED_HANGS)
    look(story, FEED_HANGS)
    hold_out(story)
    story.control.guard("v2", [HOLDOUT_PERCENTAGE, 50, 100 - HOLDOUT_PERCENTAGE])
    story.serving_version = story.control.endpoint()["config"]["config_version"]
    story.feed.hang(FEED_HANGS, FEED_REPAIRED)
    story.screen.line(
        FEED_HANGS, "FAULT       the feed of airport_hour hangs: every hour gets the same row"
    )
    back_at = watch_guard(story)
    advance(story, FEED_REPAIRED)
    if back_at is not None:
        tell_avoided(story, back_at)
    story.feed.repair()
    story.screen.line(FEED_REPAIRED, "REPAIRED    airport_hour is fresh again", "good")
    advance(story, CHALLENGER_BACK)
    look(story, CHALLENGER_BACK)
    if back_at is None:
        return
    path = f"/api/1.0/endpoints/{control.ENDPOINT}/rollback"
    body = {"to_config_version": story.serving_version, "reason": "feed repaired"}
    story.control.call("POST", path, body)
    story.control.wait_until_ready()
    story.screen.line(CHALLENGER_BACK, f"BACK        {split_text(story.control.shares())}", "act")


def hold_out(story: Story) -> None:
    """From the promotion on, v2 is compared with the hold-out, and guarded."""
    since = (story.promoted_at or JULY).isoformat()
    policy = {**POLICY, "start_time": since, "min_hours": 24, "guard": GUARD}
    story.control.experiment(policy)


def watch_guard(story: Story) -> datetime | None:
    """Look every hour until the server has taken v2's traffic away; when, or None."""
    moment = FEED_HANGS
    while moment < FEED_REPAIRED:
        moment += timedelta(hours=1)
        if advance(story, moment) == 0:
            continue
        look(story, moment)
        if story.control.ramp_state() == "rolled_back":
            tell_roll_back(story, moment, "v2")
            return moment
    return None


def tell_roll_back(story: Story, moment: datetime, challenger: str) -> None:
    decision = story.control.decision(challenger)
    assert decision is not None, "a roll-back rests on a decision"
    story.screen.line(moment, f"GUARDRAIL   {decision['summary']}", "bad")
    wait_for_event(story, "ramp.rolled_back")
    story.control.wait_until_ready()
    shares = {v: s for v, s in story.control.shares().items() if s}
    story.screen.line(moment, f"ROLLED BACK by the server: {split_text(shares)}", "act")


def tell_avoided(story: Story, back_at: datetime) -> None:
    """What v2 would have answered on the stale rows, against what v1 did answer."""
    replay = story.driver.replay
    rows = replay.flights.with_row_index("number").filter(
        pl.col("event_time").is_between(back_at, FEED_REPAIRED, closed="left"),
        pl.col("late").is_not_null(),
    )
    late = rows["late"].to_numpy() == 1
    served = replay.scores[rows["number"].to_numpy()] >= 0.5
    model = story.trained["v2"]
    would = models.score(model.pipeline, model.columns, story.feed.served(rows)) >= 0.5
    right, would_right = served == late, would == late
    avoided = int(would_right.size - would_right.sum()) - int(right.size - right.sum())
    story.screen.line(
        FEED_REPAIRED,
        f"AVOIDED     {avoided:,} wrong answers: of {late.size:,} flights since the roll-back v1 "
        f"was right on {np.mean(right):.1%}, v2 would have been on {np.mean(would_right):.1%}",
        "good",
    )


def careless_canary(story: Story) -> None:
    """4 November: v3, the best offline, raises on every missing value."""
    weeks(story, CANARY_SINCE)
    look(story, CANARY_SINCE)
    present = {version: share for version, share in story.control.shares().items() if share}
    front = max(present, key=lambda version: present[version])
    present[front] -= HOLDOUT_PERCENTAGE
    story.control.serve({**present, "v3": HOLDOUT_PERCENTAGE})
    policy = {**POLICY, "champion": front, "challenger": "v3"}
    story.control.experiment({**policy, "start_time": CANARY_SINCE.isoformat()})
    story.control.guard("v3", [HOLDOUT_PERCENTAGE])
    story.screen.line(
        CANARY_SINCE,
        f"CANARY      v3 gets {HOLDOUT_PERCENTAGE} %: AUC {story.trained['v3'].auc:.3f} in "
        f"training, on the {story.trained['v3'].rows:,} rows without a missing value",
        "act",
    )
    watch_canary(story)
    hold_out(story)


def watch_canary(story: Story) -> None:
    """Look every CANARY_LOOK_EVERY flights until the server has taken v3's traffic away."""
    first = story.driver.replay.sent
    while (moment := story.driver.next_event_time()) is not None and moment < CANARY_UNTIL:
        advance(story, CANARY_UNTIL, CANARY_LOOK_EVERY)
        moment = story.driver.next_event_time() or END
        look(story, moment)
        if story.control.ramp_state() == "rolled_back":
            tell_roll_back(story, moment, "v3")
            tell_failures(story, first, moment)
            return
    story.screen.line(CANARY_UNTIL, "UNDECIDED   too few answers of v3 came to judge it", "act")


def tell_failures(story: Story, first: int, moment: datetime) -> None:
    """Which carriers' flights v3 could not answer."""
    replay = story.driver.replay
    rows = replay.flights[first : replay.sent].with_columns(
        version=pl.Series(replay.versions[first : replay.sent], dtype=pl.String),
        failed=pl.Series(replay.statuses[first : replay.sent] >= 400),
    )
    asked = rows.filter(pl.col("version") == "v3")
    by_carrier = (
        asked.group_by("carrier")
        .agg(failed=pl.col("failed").sum(), requests=pl.len())
        .filter(pl.col("failed") > 0)
        .sort("failed", "carrier", descending=[True, False])
    )
    text = ", ".join(f"{c} {f} of {n}" for c, f, n in by_carrier.iter_rows())
    story.screen.line(
        moment,
        f"EXPLAINED   {asked['failed'].sum()} of {asked.height} answers of v3 were errors, by "
        f"carrier: {text} (their planes are missing from `planes`)",
    )


def end_of_weather(story: Story) -> None:
    """The rest of the year; on 30 December the weather really ends in the data."""
    weeks(story, END)
    look(story, END)
    decision = story.control.decision("v2")
    if decision is not None and decision["metrics"]:
        since = screen.day(story.promoted_at or JULY)
        story.screen.line(
            END,
            f"HOLD-OUT    since {since}: v2-v1 log loss {interval(decision['metrics']['log_loss'])}"
            f" on {labels_of(decision):,} labels",
        )
