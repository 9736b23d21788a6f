"""A refresh from its row in SQL to its end, and the guard's look between refreshes.

Everything here runs in one thread: what a monitor knows is in memory and has one owner. A failure
ends its refresh, is told, and leaves the monitor to begin from what it had kept.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from capture import database, errors, logline, outbox
from capture.settings import Settings
from monitors import (
    advice,
    alert_state,
    alerts,
    comparisons,
    cost_reads,
    costs,
    decisions,
    experiment_state,
    facts,
    followed,
    intake,
    kept,
    ramps,
    refresh,
    server,
    state,
    watch,
)

log = logline.logger(__name__)

# How often new rows are looked at, for evidence may be there for a moment only; and all the same.
GUARD_SECONDS, LOOK_SECONDS = 2.0, 5.0
COSTS_SECONDS = 600.0
DECISION_EVERY_MS = 60_000
MOST_TROUBLE_CHARACTERS = 2000


class LeaseLost(Exception):
    """Another process holds the lease; nothing more may be written by this one."""


@dataclass(slots=True)
class _Told:
    """The last decision of a guard that was written down."""

    written_ms: int
    action: str
    reasons: tuple[str, ...]


class Rounds:
    """Runs refreshes and guards. `holds_lease` is asked before anything is written."""

    def __init__(
        self, engine: sa.Engine, settings: Settings, holds_lease: Callable[[], bool]
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.holds_lease = holds_lease
        self.refresher = refresh.Refresher(engine, settings)
        self.server = server.Server(settings)
        self.followed = followed.Followed()
        self.told: dict[tuple[str, str], _Told] = {}  # by endpoint and challenger
        self.looked: dict[str, tuple[tuple[int, int] | None, float]] = {}  # by table, by the guard
        self.drifted: dict[str, list[dict[str, Any]]] = {}  # by table, of the last refresh
        self.spent: dict[tuple[str, int], tuple[float, dict[str, costs.Cost]]] = {}  # by experiment

    def close(self) -> None:
        self.server.close()

    # --- refreshes ---------------------------------------------------------------------------

    def run_pending(self) -> bool:
        """Run the refresh that waits longest; False: none waits."""
        with database.reading(self.engine) as connection:
            waiting = state.pending_refresh(connection)
        if waiting is None:
            return False
        now = _now_ms()
        with database.transaction(self.engine) as connection:
            started = state.start_refresh(connection, waiting.id, now)
        if started:
            self._run(waiting._replace(state="RUNNING", started_ms=now))
        return True

    def _run(self, job: state.Refresh) -> None:
        begun = time.monotonic()
        try:
            with database.reading(self.engine) as connection:
                monitor = state.get_monitor(connection, job.table_name)
            if monitor is None:
                raise watch.Cancelled("the monitor was deleted")
            self._refresh_or_begin_anew(job, monitor)
        except watch.Cancelled:
            self.refresher.forget(job.table_name)
            with database.transaction(self.engine) as connection:
                _check_mine(connection, job)
                state.end_refresh(connection, job.id, "CANCELED", None, _now_ms())
        except (KeyboardInterrupt, SystemExit, LeaseLost):
            raise
        except BaseException as error:  # noqa: BLE001 - polars and delta-rs panic outside Exception
            self._fail(job, error)
        elapsed_ms = round((time.monotonic() - begun) * 1000)
        log.info("refreshed", table=job.table_name, refresh=job.id, elapsed_ms=elapsed_ms)

    def _fail(self, job: state.Refresh, error: BaseException) -> None:
        self.refresher.forget(job.table_name)
        ours = isinstance(error, errors.InferlakeError)
        message = str(error) if ours else f"Internal error in refresh {job.id}."
        log.error("refresh_failed", table=job.table_name, refresh=job.id, error=repr(error)[:2000])
        now = _now_ms()
        with database.transaction(self.engine) as connection:
            _check_mine(connection, job)
            state.end_refresh(connection, job.id, "FAILED", message, now)
            monitor = state.get_monitor(connection, job.table_name)
            status = "MONITOR_STATUS_ERROR" if ours else "MONITOR_STATUS_FAILED"
            state.set_result(connection, job.table_name, status, message, None)
            told = {
                "table": job.table_name,
                "endpoint": monitor.endpoint if monitor else None,
                "refresh_id": job.id,
                "message": message,
            }
            outbox.emit(connection, "monitor.failed", told, now)

    def _refresh_or_begin_anew(self, job: state.Refresh, monitor: state.Monitor) -> None:
        try:
            self._refresh(job, monitor)
        except intake.ReadAnew as reason:
            # A file of what is kept is lost or not whole: it costs a full read, no more.
            self.refresher.begin_anew(job.table_name, str(reason))
            self._refresh(job, monitor)

    def _refresh(self, job: state.Refresh, monitor: state.Monitor) -> None:
        experiment, rules = self._endpoint(monitor)
        known = self.refresher.watch_of(monitor)
        if experiment is not None:
            known.keep_slices(decisions.columns_of(experiment.body))
        known.troubles = []
        if not refresh.wait_for_unpacking(self.settings, known):
            known.troubles.append("The newest requests were not unpacked in time.")
        until = None
        if job.until_ms is not None:
            until = datetime.fromtimestamp(job.until_ms / 1000, UTC)
        progress = watch.Progress(lambda facts: self._report(job, facts))
        moment = known.advance(until, progress)
        refresh.meet_new_baseline(known)
        most = max((rule.windows for rule in rules), default=1)
        found = self.refresher.measure(known, refresh.newest_windows(known, most, rules))
        self._fence()
        self.refresher.write(known, monitor, job.id, found, self._fence)
        looks = self._looks(known, experiment, moment)
        self._store(known, looks, job.id)
        traffic = self._act(known, looks)
        self._fence()
        known.settle()
        self._conclude(job, monitor, known, found, rules, looks, traffic, moment)

    def _fence(self) -> None:
        """Raises LeaseLost where another process has begun with this one's work."""
        if not self.holds_lease():
            raise LeaseLost

    def _endpoint(
        self, monitor: state.Monitor
    ) -> tuple[experiment_state.Experiment | None, list[alert_state.Rule]]:
        if monitor.endpoint is None:
            return None, []
        with database.reading(self.engine) as connection:
            experiment = experiment_state.get_experiment(connection, monitor.endpoint)
            return experiment, alert_state.rules(connection, monitor.endpoint)

    def _report(self, job: state.Refresh, progress: Mapping[str, int]) -> None:
        with database.transaction(self.engine) as connection:
            if state.report_progress(connection, job.id, progress):
                raise watch.Cancelled

    def _conclude(
        self,
        job: state.Refresh,
        monitor: state.Monitor,
        known: watch.Watch,
        found: refresh.Measured,
        rules: list[alert_state.Rule],
        looks: Sequence[decisions.Look],
        traffic: server.Traffic | None,
        moment: datetime,
    ) -> None:
        """Alerts, recommendations, the monitor's state and the end of the refresh: one
        transaction, so that a client that sees the end sees all that came of it."""
        now = _now_ms()
        made = self.refresher.facts(known, monitor, rules, found, moment, now)
        problem = known.baseline.problem if known.baseline is not None else None
        if problem is not None:
            known.troubles.append(f"No comparison with the baseline: {problem}.")
        message = " ".join(known.troubles)[:MOST_TROUBLE_CHARACTERS] or None
        status = "MONITOR_STATUS_ERROR" if problem else "MONITOR_STATUS_ACTIVE"
        self.drifted[monitor.table_name] = _drifted(known, found)
        summary = self.refresher.summary(known, found, moment, monitor.summary)
        known_costs = self._costs(looks) if traffic is not None else {}
        with database.transaction(self.engine) as connection:
            _check_mine(connection, job)
            if monitor.endpoint is not None:
                alerts.apply(connection, rules, made, monitor.endpoint, now)
            if traffic is not None:
                drifted = self.drifted[monitor.table_name]
                advice.advise(connection, looks, traffic.shares, drifted, now, known_costs)
            state.set_result(connection, job.table_name, status, message, summary)
            state.end_refresh(connection, job.id, "SUCCESS", message, now)

    # --- experiments -------------------------------------------------------------------------

    def _looks(
        self,
        known: watch.Watch,
        experiment: experiment_state.Experiment | None,
        moment: datetime,
    ) -> list[decisions.Look]:
        if experiment is None or not known.shape.recorded:
            return []
        at_receipt = known.shape.time_column == "request_time"
        return decisions.looks(experiment, known.held, moment, at_receipt, self.followed)

    def _store(
        self, known: watch.Watch, looks: Sequence[decisions.Look], refresh_id: int | None
    ) -> None:
        versions = (known.intake.version, known.labels.version)
        uri = known.uri("decisions")
        decisions.store(uri, looks, refresh_id, versions, _now_ms())

    def _act(self, known: watch.Watch, looks: Sequence[decisions.Look]) -> server.Traffic | None:
        """Let the ramp take its step; gives the traffic after it, None if nothing is compared or
        the server is silent."""
        if not looks:
            return None
        for look in looks:
            trouble = ramps.act(self.engine, self.server, look, LOOK_SECONDS, _now_ms())
            if trouble is not None:
                known.troubles.append(trouble)
        try:
            return self.server.traffic(looks[0].experiment.endpoint)
        except server.Refused as refused:
            known.troubles.append(f"No recommendation: {refused.message}")
            return None

    def guard(self) -> None:
        """Look at the newest rows of every experiment whose monitor runs by itself."""
        with database.reading(self.engine) as connection:
            watched = [m for m in state.all_monitors(connection) if runs_by_itself(m)]
        for monitor in watched:
            try:
                self._guard(monitor)
            except (KeyboardInterrupt, SystemExit, LeaseLost):
                raise
            except BaseException as error:  # noqa: BLE001 - one monitor's trouble is not another's
                self.refresher.forget(monitor.table_name)
                log.error("guard_failed", table=monitor.table_name, error=repr(error)[:2000])

    def _guard(self, monitor: state.Monitor) -> None:
        experiment, _ = self._endpoint(monitor)
        if experiment is None:
            return
        known = self.refresher.watch_of(monitor)
        known.keep_slices(decisions.columns_of(experiment.body))
        moment = known.advance(None, watch.Progress(lambda _facts: None))
        if not self._is_due(known):
            return
        looks = self._looks(known, experiment, moment)
        if not looks:
            return
        if not self.holds_lease():
            raise LeaseLost
        now = _now_ms()
        self._store(known, [look for look in looks if self._is_news(look, now)], None)
        known.troubles = []
        traffic = self._act(known, looks)
        if traffic is not None:
            known_costs = self._costs(looks)
            with database.transaction(self.engine) as connection:
                drifted = self.drifted.get(monitor.table_name, [])
                advice.advise(connection, looks, traffic.shares, drifted, now, known_costs)

    def _costs(self, looks: Sequence[decisions.Look]) -> dict[str, costs.Cost]:
        """What the versions cost since their experiment began, read now and then, and only where a
        decision could rest on it; nothing where it cannot be read."""
        if not any(
            reason in costs.NO_ADVANTAGE for one in looks for reason in one.decision["reasons"]
        ):
            return {}
        experiment, now = looks[0].experiment, time.monotonic()
        at, found = self.spent.get((experiment.endpoint, experiment.number), (None, {}))
        if at is None or now - at > COSTS_SECONDS:
            try:
                found = cost_reads.read(
                    self.settings, self.engine, experiment.endpoint, experiment.started_ms
                )
            except errors.InferlakeError as error:
                log.warning("costs_unknown", endpoint=experiment.endpoint, message=error.message)
                found = {}
            self.spent[experiment.endpoint, experiment.number] = now, found
        return found

    def _is_due(self, known: watch.Watch) -> bool:
        """Are there new rows or labels since the guard's last look, or is that some seconds ago?"""
        now, seen = time.monotonic(), (known.intake.version, known.labels.version)
        before, at = self.looked.get(known.table_uri, (None, 0.0))
        if before == seen and now - at < LOOK_SECONDS:
            return False
        self.looked[known.table_uri] = seen, now
        return True

    def _is_news(self, look: decisions.Look, now_ms: int) -> bool:
        """Is it time to write this decision down: another one than the last, or a minute later?"""
        key = (look.experiment.endpoint, look.roles.challenger)
        last = self.told.get(key)
        fresh = _Told(now_ms, look.action, tuple(look.decision["reasons"]))
        same = last is not None and (last.action, last.reasons) == (fresh.action, fresh.reasons)
        if last is not None and same and now_ms - last.written_ms < DECISION_EVERY_MS:
            return False
        self.told[key] = fresh
        return True


def runs_by_itself(monitor: state.Monitor) -> bool:
    """Does the monitor have a schedule that is not paused?"""
    schedule = monitor.config.get("schedule")
    return schedule is not None and schedule.get("pause_status") != "PAUSED"


def _drifted(known: watch.Watch, found: refresh.Measured) -> list[dict[str, Any]]:
    """Columns that drifted in the newest window of each granularity that could be judged."""
    newest: dict[str | None, tuple[datetime, list[comparisons.Comparison]]] = {}
    for key, cells in found.compared.items():
        judged = [one for one in cells if one.judgement.status in ("ok", "drifted")]
        if judged and (key.granularity not in newest or newest[key.granularity][0] < key.start):
            newest[key.granularity] = (key.start, judged)
    return [
        {
            "column": one.column,
            "served_entity": one.version,
            "metric": one.judgement.metric,
            "value": one.decisive.value if one.decisive else None,
            "threshold": one.decisive.threshold if one.decisive else None,
            "severity": one.judgement.severity,
            "window": list(facts.of_window(one.key)),
        }
        for _, cells in newest.values()
        for one in cells
        if one.drift_type == kept.BASELINE
        and one.judgement.status == "drifted"
        and (one.version is None or one.column in known.shape.outputs)
    ]


def _check_mine(connection: sa.Connection, job: state.Refresh) -> None:
    """Raises LeaseLost where a refresh was begun again by another process: this one slept."""
    try:
        now = state.get_refresh(connection, job.table_name, job.id)
    except errors.DoesNotExist:
        return  # gone with its monitor
    if (now.state, now.started_ms) != (job.state, job.started_ms):
        raise LeaseLost


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
