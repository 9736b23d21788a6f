"""The monitor process: one at a time does the monitors' work, under a lease.

Threads: one runs refreshes and, between them, the guard; one delivers events; one runs jobs, each
in a process of its own; the scheduler turns Quartz schedules into rows of waiting refreshes and
owns no rule; the main thread renews the lease and keeps the schedules as SQL says. SIGTERM ends it
with 0, between two pieces of work.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from capture import database, errors, logline, names
from capture.settings import Settings
from monitors import contract, delivery, jobs, lease, rounds, schedules, state, tables

log = logline.logger("monitors")

REFRESH_POLL_SECONDS = 0.05
DELIVERY_POLL_SECONDS = 0.5
JOB_POLL_SECONDS = 0.25
AFTER_TROUBLE_SECONDS = 1.0
CLEAN_HOURS, FIRST_CLEAN_MINUTES = 24, 30
READY_FILE = "monitor.ready"


class Schedules:
    """APScheduler's jobs, one per monitor that runs by itself."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.scheduler = BackgroundScheduler(timezone=UTC)
        self.known: dict[str, tuple[str, str]] = {}

    def start(self, clean: Callable[[], None]) -> None:
        # The first time soon: a process that is restarted every day would never clean otherwise.
        first = datetime.now(UTC) + timedelta(minutes=FIRST_CLEAN_MINUTES)
        self.scheduler.add_job(
            clean, "interval", hours=CLEAN_HOURS, coalesce=True, next_run_time=first
        )
        self.scheduler.start()

    def follow(self) -> None:
        """Make the jobs what SQL says: new, changed and removed schedules."""
        with database.reading(self.engine) as connection:
            wanted = {
                monitor.table_name: monitor
                for monitor in state.all_monitors(connection)
                if rounds.runs_by_itself(monitor)
            }
        for table in set(self.known) - set(wanted):
            with contextlib.suppress(JobLookupError):  # its last time is over
                self.scheduler.remove_job(table)
            del self.known[table]
            self._tell_next(table, None)
        for table, monitor in wanted.items():
            given = monitor.config["schedule"]
            schedule = (given["quartz_cron_expression"], given["timezone_id"])
            if self.known.get(table) != schedule:
                self.known[table] = schedule
                try:
                    self._add(monitor, *schedule)
                except ValueError as error:  # a time zone that this machine does not know
                    log.error("schedule_refused", table=table, message=str(error))

    def _add(self, monitor: state.Monitor, expression: str, zone: str) -> None:
        trigger = CronTrigger(timezone=schedules.timezone(zone), **schedules.fields(expression))
        table = monitor.table_name
        self.scheduler.add_job(
            self._due,
            trigger,
            args=(table,),
            id=table,
            replace_existing=True,
            coalesce=True,
            misfire_grace_time=None,
            max_instances=1,
        )
        with database.reading(self.engine) as connection:
            newest = state.newest_refreshes(connection, table, 1)
        asked_ms = max(newest[0].requested_ms if newest else 0, monitor.updated_ms)
        missed = trigger.get_next_fire_time(None, datetime.fromtimestamp(asked_ms / 1000, UTC))
        if missed is not None and missed <= datetime.now(UTC):
            self._due(table)  # it came due while no monitor process ran: once, now
        self._tell_next(table, trigger)

    def _due(self, table: str) -> None:
        now_ms = time.time_ns() // 1_000_000
        with database.transaction(self.engine) as connection:
            gone = state.get_monitor(connection, table) is None
            if gone or state.has_unfinished_refresh(connection, table):
                return
            state.request_refresh(connection, table, "SCHEDULE", None, now_ms)
        job = self.scheduler.get_job(table)
        self._tell_next(table, job.trigger if job is not None else None)

    def _tell_next(self, table: str, trigger: CronTrigger | None) -> None:
        at = None if trigger is None else trigger.get_next_fire_time(None, datetime.now(UTC))
        with database.transaction(self.engine) as connection:
            state.set_next_refresh(connection, table, contract.unix_ms(at) if at else None)

    def stop(self) -> None:
        if self.scheduler.running:
            self.scheduler.shutdown(wait=False)


class Process:
    """The running parts, and what ends them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = database.open_engine(settings)
        self.stop = threading.Event()
        self.failed = False
        self.lease = lease.Lease(self.engine)
        self.schedules = Schedules(self.engine)
        self.to_clean = threading.Event()

    def run(self) -> int:
        """Work until SIGTERM (0), or until another process took the lease (1)."""
        if not self.lease.acquire(self.stop):
            return 0
        with database.transaction(self.engine) as connection:
            state.queue_again(connection)
        threads = [
            threading.Thread(target=self._survive, args=(part,), name=part.__name__)
            for part in (self._work, self._deliver, self._run_jobs)
        ]
        for thread in threads:
            thread.start()
        self.schedules.start(self.to_clean.set)
        ready = self.settings.run_dir / READY_FILE
        try:
            self._follow_once()
            ready.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            ready.write_text(json.dumps({"pid": os.getpid()}))
            log.info("ready")
            self._lead()
        finally:
            self.stop.set()
            ready.unlink(missing_ok=True)
            self.schedules.stop()
            for thread in threads:
                thread.join()
        if not self.failed:
            self.lease.release()
        self.engine.dispose()
        return 1 if self.failed else 0

    def _lead(self) -> None:
        """Renew the lease and follow the schedules, once a second."""
        while not self.stop.wait(lease.RENEW_SECONDS):
            try:
                if not self.lease.renew():
                    self._lose()
                    return
                self.schedules.follow()
            except sa.exc.SQLAlchemyError as error:
                log.error("database_failed", error=type(error).__name__)

    def _follow_once(self) -> None:
        try:
            self.schedules.follow()
        except sa.exc.SQLAlchemyError as error:
            log.error("database_failed", error=type(error).__name__)

    def _lose(self) -> None:
        log.error("lease_lost")
        self.failed = True
        self.stop.set()

    def _survive(self, part: Callable[[], None]) -> None:
        """Run a loop again whatever it raised: polars and delta-rs panic outside of Exception."""
        while not self.stop.is_set():
            try:
                part()
            except rounds.LeaseLost:
                self._lose()
            except (KeyboardInterrupt, SystemExit):
                self.stop.set()
                raise
            except BaseException as error:  # noqa: BLE001 - see above
                log.error("loop_failed", part=part.__name__, error=repr(error)[:2000])
                self.stop.wait(AFTER_TROUBLE_SECONDS)

    def _work(self) -> None:
        work = rounds.Rounds(self.engine, self.settings, self.lease.renew)
        guarded_at = time.monotonic()
        try:
            while not self.stop.is_set():
                if work.run_pending():
                    continue
                if time.monotonic() - guarded_at >= rounds.GUARD_SECONDS:
                    work.guard()
                    guarded_at = time.monotonic()
                if self.to_clean.is_set():
                    self.to_clean.clear()
                    self._clean()
                self.stop.wait(REFRESH_POLL_SECONDS)
        finally:
            work.close()

    def _deliver(self) -> None:
        courier = delivery.Courier(self.engine, self.settings)
        try:
            while not self.stop.wait(DELIVERY_POLL_SECONDS):
                courier.step(time.time_ns() // 1_000_000)
        finally:
            courier.close()

    def _run_jobs(self) -> None:
        runner = jobs.Runner(self.engine, self.settings, self.lease.renew)
        runner.take_over()
        while not self.stop.is_set():
            if not runner.run_next(self.stop):
                self.stop.wait(JOB_POLL_SECONDS)

    def _clean(self) -> None:
        """Delete files of metric tables that nobody can read any more, and of old jobs; and what
        was delivered long ago."""
        jobs.Runner(self.engine, self.settings, self.lease.renew).clean()
        now_ms = time.time_ns() // 1_000_000
        forgotten = delivery.forget(self.engine, self.settings.keep_deliveries_days, now_ms)
        log.info("deliveries_forgotten", rows=forgotten)
        with database.reading(self.engine) as connection:
            found = state.all_monitors(connection)
        for monitor in found:
            for name in contract.metric_tables(monitor.table_name, monitor.config):
                uri = names.table_path(self.settings.tables_root, names.table_name(name))
                try:
                    log.info("cleaned", table=name, files=tables.clean(uri))
                except errors.Unavailable as error:
                    log.warning("not_cleaned", table=name, message=error.message)


def main() -> int:
    settings = Settings()
    for secret in (settings.service_token, settings.admin_token, settings.token):
        if secret is not None:
            logline.hide(secret.get_secret_value())
    process = Process(settings)

    def end(_signal: int, _frame: Any) -> None:
        process.stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return process.run()


if __name__ == "__main__":
    raise SystemExit(main())
