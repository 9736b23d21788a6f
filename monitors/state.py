"""SQL of monitors, their refreshes and baselines, and of what waits for a person.

Experiments, ramps and recommendations: `experiment_state.py`; rules, alerts and webhooks:
`alert_state.py`. Times are Unix milliseconds. Each function is one intent and runs in the caller's
transaction.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from capture import catalog, database, errors, names
from monitors import alert_state, experiment_state, job_state

BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UNFINISHED = ("PENDING", "RUNNING")

monitors = sa.Table(
    "monitors",
    database.metadata,
    sa.Column("table_name", sa.String(400), primary_key=True),
    sa.Column("table_id", sa.String(36), nullable=False, unique=True),
    sa.Column("endpoint", sa.String(63), index=True),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("monitor_version", sa.Integer, nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("failure_message", sa.Text),
    sa.Column("baseline_version", sa.Integer, nullable=False),
    sa.Column("summary", sa.JSON, nullable=False),
    sa.Column("next_refresh_ms", sa.BigInteger),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)

refreshes = sa.Table(
    "refreshes",
    database.metadata,
    sa.Column("id", BIG_ID, primary_key=True),
    sa.Column("table_name", sa.String(400), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("trigger", sa.String(16), nullable=False),
    sa.Column("until_ms", sa.BigInteger),
    sa.Column("requested_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("message", sa.Text),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

baselines = sa.Table(
    "baselines",
    database.metadata,
    sa.Column("table_name", sa.String(400), primary_key=True),
    sa.Column("baseline_version", sa.Integer, primary_key=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)


class Monitor(NamedTuple):
    """A monitor over one Delta table. `config`: the body of Databricks' create call."""

    table_name: str
    table_id: str
    endpoint: str | None
    config: dict[str, Any]
    monitor_version: int
    status: str
    failure_message: str | None
    baseline_version: int
    summary: dict[str, Any]
    next_refresh_ms: int | None
    created_by: str
    created_ms: int
    updated_ms: int


class Refresh(NamedTuple):
    """One run of a monitor. `until_ms`: in the time of the monitor's timestamp column."""

    id: int
    table_name: str
    state: str
    trigger: str
    until_ms: int | None
    requested_ms: int
    started_ms: int | None
    ended_ms: int | None
    message: str | None
    cancel_requested: bool
    progress: dict[str, Any]


class Baseline(NamedTuple):
    """What windows are compared with. `spec`: {"kind": "training", "table"}, {"kind": "window",
    "start", "end"}, {"kind": "previous" or "rolling", "windows"}; {"kind": "none"} ends them."""

    table_name: str
    baseline_version: int
    spec: dict[str, Any]
    created_by: str
    created_ms: int


# --- monitors ------------------------------------------------------------------------------------


def endpoint_of(connection: sa.Connection, table_name: str) -> str | None:
    """The endpoint whose rows a table holds: a recorded payload table or one beside it."""
    payload = str(names.table_name(table_name).sibling("payload"))
    found = catalog.get(connection, payload)
    return found.endpoint_name if found else None


def unpacked_table(connection: sa.Connection, endpoint: str) -> str | None:
    """Full name of the unpacked table of an endpoint, if it records."""
    recorded = catalog.of_endpoint(connection, endpoint)
    if recorded is None:
        return None
    return str(names.table_name(recorded.full_name).sibling("unpacked"))


def create_monitor(
    connection: sa.Connection,
    table_name: str,
    table_id: str,
    config: Mapping[str, Any],
    created_by: str,
    now_ms: int,
) -> None:
    """A new monitor, version 0. Raises AlreadyExists, also for a table whose name differs by the
    case of its letters alone: to callers, and in ids, the two are one."""
    same = sa.func.lower(monitors.c.table_name) == table_name.lower()
    if connection.execute(sa.select(monitors.c.table_name).where(same)).first() is not None:
        raise errors.AlreadyExists(f"Table '{table_name}' has a monitor already.")
    connection.execute(
        sa.insert(monitors).values(
            table_name=table_name,
            table_id=table_id,
            endpoint=endpoint_of(connection, table_name),
            config=dict(config),
            monitor_version=0,
            status="MONITOR_STATUS_ACTIVE",
            failure_message=None,
            baseline_version=0,
            summary={},
            created_by=created_by,
            created_ms=now_ms,
            updated_ms=now_ms,
        )
    )


def get_monitor(connection: sa.Connection, table_name: str) -> Monitor | None:
    found = connection.execute(sa.select(monitors).where(monitors.c.table_name == table_name))
    row = found.first()
    return Monitor(**row._mapping) if row else None


def monitor(connection: sa.Connection, table_name: str) -> Monitor:
    """The monitor of a table; its letters may be of either case. Raises DoesNotExist."""
    found = get_monitor(connection, table_name)
    if found is None:
        where = sa.func.lower(monitors.c.table_name) == table_name.lower()
        row = connection.execute(sa.select(monitors).where(where)).first()
        found = Monitor(**row._mapping) if row else None
    if found is None:
        raise errors.DoesNotExist(f"Table '{table_name}' has no monitor.")
    return found


def monitor_of_id(connection: sa.Connection, table_id: str) -> Monitor | None:
    """The monitor of the table with this id."""
    found = connection.execute(sa.select(monitors).where(monitors.c.table_id == table_id))
    row = found.first()
    return Monitor(**row._mapping) if row else None


def all_monitors(connection: sa.Connection) -> list[Monitor]:
    found = connection.execute(sa.select(monitors).order_by(monitors.c.table_name))
    return [Monitor(**row._mapping) for row in found]


def monitors_of(connection: sa.Connection, endpoint: str) -> list[Monitor]:
    found = connection.execute(sa.select(monitors).where(monitors.c.endpoint == endpoint))
    return [Monitor(**row._mapping) for row in found]


def replace_config(
    connection: sa.Connection, table_name: str, config: Mapping[str, Any], now_ms: int
) -> None:
    """New content of a monitor; its version grows by one."""
    connection.execute(
        sa.update(monitors)
        .where(monitors.c.table_name == table_name)
        .values(
            config=dict(config),
            monitor_version=monitors.c.monitor_version + 1,
            endpoint=endpoint_of(connection, table_name),
            updated_ms=now_ms,
        )
    )


def delete_monitor(connection: sa.Connection, table_name: str) -> None:
    """Forget a monitor, its refreshes and baselines; metric tables stay."""
    for table in (refreshes, baselines, monitors):
        connection.execute(sa.delete(table).where(table.c.table_name == table_name))


def set_result(
    connection: sa.Connection,
    table_name: str,
    status: str,
    failure_message: str | None,
    summary: Mapping[str, Any] | None,
) -> None:
    """What the last refresh found. `summary` None: keep the one before."""
    values: dict[str, Any] = {"status": status, "failure_message": failure_message}
    if summary is not None:
        values["summary"] = dict(summary)
    where = monitors.c.table_name == table_name
    connection.execute(sa.update(monitors).where(where).values(**values))


def set_next_refresh(connection: sa.Connection, table_name: str, at_ms: int | None) -> None:
    """When the schedule will ask for a refresh; None: never."""
    where = monitors.c.table_name == table_name
    connection.execute(sa.update(monitors).where(where).values(next_refresh_ms=at_ms))


# --- baselines -----------------------------------------------------------------------------------


def add_baseline(
    connection: sa.Connection,
    table_name: str,
    spec: Mapping[str, Any],
    created_by: str,
    now_ms: int,
) -> int:
    """A new baseline version of a monitor; windows computed from now on use it."""
    where = monitors.c.table_name == table_name
    number = (
        connection.execute(sa.select(monitors.c.baseline_version).where(where)).scalar_one() + 1
    )
    connection.execute(
        sa.insert(baselines).values(
            table_name=table_name,
            baseline_version=number,
            spec=dict(spec),
            created_by=created_by,
            created_ms=now_ms,
        )
    )
    connection.execute(sa.update(monitors).where(where).values(baseline_version=number))
    return number


def current_baseline(connection: sa.Connection, table_name: str) -> Baseline | None:
    """The newest baseline of a monitor; None also where the newest one is that there is none."""
    row = connection.execute(
        sa.select(baselines)
        .where(baselines.c.table_name == table_name)
        .order_by(baselines.c.baseline_version.desc())
    ).first()
    return Baseline(**row._mapping) if row and row.spec["kind"] != "none" else None


# --- refreshes -----------------------------------------------------------------------------------


def request_refresh(
    connection: sa.Connection, table_name: str, trigger: str, until_ms: int | None, now_ms: int
) -> int:
    """Queue a refresh; gives its id."""
    done = connection.execute(
        sa.insert(refreshes).values(
            table_name=table_name,
            state="PENDING",
            trigger=trigger,
            until_ms=until_ms,
            requested_ms=now_ms,
            cancel_requested=False,
            progress={},
        )
    )
    return int(done.inserted_primary_key[0])  # type: ignore[index]


def get_refresh(connection: sa.Connection, table_name: str, refresh_id: int) -> Refresh:
    """Raises DoesNotExist."""
    where = (refreshes.c.table_name == table_name, refreshes.c.id == refresh_id)
    row = connection.execute(sa.select(refreshes).where(*where)).first()
    if row is None:
        raise errors.DoesNotExist(f"Table '{table_name}' has no refresh {refresh_id}.")
    return Refresh(**row._mapping)


def newest_refreshes(
    connection: sa.Connection, table_name: str, limit: int = 25, before_id: int | None = None
) -> list[Refresh]:
    """Newest first; with `before_id`, those that were asked for before that one."""
    asked = sa.select(refreshes).where(refreshes.c.table_name == table_name)
    if before_id is not None:
        asked = asked.where(refreshes.c.id < before_id)
    found = connection.execute(asked.order_by(refreshes.c.id.desc()).limit(limit))
    return [Refresh(**row._mapping) for row in found]


def last_refresh_of_each(connection: sa.Connection) -> dict[str, Refresh]:
    """Newest refresh per monitored table."""
    newest = sa.select(sa.func.max(refreshes.c.id)).group_by(refreshes.c.table_name)
    found = connection.execute(sa.select(refreshes).where(refreshes.c.id.in_(newest)))
    return {row.table_name: Refresh(**row._mapping) for row in found}


def pending_refresh(connection: sa.Connection) -> Refresh | None:
    """The refresh that waits longest."""
    row = connection.execute(
        sa.select(refreshes).where(refreshes.c.state == "PENDING").order_by(refreshes.c.id)
    ).first()
    return Refresh(**row._mapping) if row else None


def has_unfinished_refresh(connection: sa.Connection, table_name: str) -> bool:
    where = (refreshes.c.table_name == table_name, refreshes.c.state.in_(UNFINISHED))
    return connection.execute(sa.select(refreshes.c.id).where(*where)).first() is not None


def start_refresh(connection: sa.Connection, refresh_id: int, now_ms: int) -> bool:
    """PENDING -> RUNNING; False: it was cancelled meanwhile."""
    done = connection.execute(
        sa.update(refreshes)
        .where(refreshes.c.id == refresh_id, refreshes.c.state == "PENDING")
        .values(state="RUNNING", started_ms=now_ms)
    )
    return done.rowcount == 1


def report_progress(
    connection: sa.Connection, refresh_id: int, progress: Mapping[str, Any]
) -> bool:
    """Write how far a refresh is; True: somebody wants it cancelled."""
    where = refreshes.c.id == refresh_id
    connection.execute(sa.update(refreshes).where(where).values(progress=dict(progress)))
    return bool(connection.execute(sa.select(refreshes.c.cancel_requested).where(where)).scalar())


def end_refresh(
    connection: sa.Connection, refresh_id: int, state: str, message: str | None, now_ms: int
) -> None:
    """RUNNING -> SUCCESS, FAILED or CANCELED."""
    connection.execute(
        sa.update(refreshes)
        .where(refreshes.c.id == refresh_id)
        .values(state=state, message=message, ended_ms=now_ms)
    )


def cancel_refresh(
    connection: sa.Connection, table_name: str, refresh_id: int, now_ms: int
) -> None:
    """A waiting refresh ends at once, a running one between two files. Raises DoesNotExist."""
    found = get_refresh(connection, table_name, refresh_id)
    where = refreshes.c.id == refresh_id
    if found.state == "PENDING":
        values: dict[str, Any] = {"state": "CANCELED", "ended_ms": now_ms}
        connection.execute(sa.update(refreshes).where(where).values(**values))
    elif found.state == "RUNNING":
        connection.execute(sa.update(refreshes).where(where).values(cancel_requested=True))


def delete_refresh(connection: sa.Connection, table_name: str, refresh_id: int) -> None:
    """Forget a refresh that has ended; what it found stays. Raises DoesNotExist, Conflict."""
    found = get_refresh(connection, table_name, refresh_id)
    where = (refreshes.c.id == refresh_id, refreshes.c.state.not_in(UNFINISHED))
    if connection.execute(sa.delete(refreshes).where(*where)).rowcount == 0:
        raise errors.Conflict(
            f"Refresh {refresh_id} is {found.state}; only one that has ended can be deleted, "
            "so cancel it first."
        )


def queue_again(connection: sa.Connection) -> int:
    """Refreshes that a dead process left RUNNING wait again; gives how many."""
    done = connection.execute(
        sa.update(refreshes)
        .where(refreshes.c.state == "RUNNING")
        .values(state="PENDING", started_ms=None)
    )
    return done.rowcount


def lease_holder(connection: sa.Connection, name: str) -> str | None:
    """Who holds a lease."""
    where = database.leases.c.name == name
    return connection.execute(sa.select(database.leases.c.holder).where(where)).scalar()


# --- what needs a person -------------------------------------------------------------------------


def failing_monitors(connection: sa.Connection) -> list[Monitor]:
    """Monitors whose last refresh failed or reported a problem."""
    where = monitors.c.status != "MONITOR_STATUS_ACTIVE"
    found = connection.execute(sa.select(monitors).where(where).order_by(monitors.c.table_name))
    return [Monitor(**row._mapping) for row in found]


def open_recommendations(
    connection: sa.Connection, endpoint: str | None = None
) -> list[experiment_state.Recommendation]:
    """Proposals that wait, newest first."""
    return experiment_state.find_recommendations(connection, endpoint, "open")


def open_alerts(connection: sa.Connection, endpoint: str | None = None) -> list[alert_state.Alert]:
    """Causes that hold now, newest first."""
    return alert_state.find_alerts(connection, endpoint, "open")


def forget_endpoint(connection: sa.Connection, endpoint: str, now_ms: int) -> None:
    """The endpoint is gone: its experiment, ramp, rules, jobs and open proposals end. Monitors of
    its tables stay, and so do the tables."""
    experiment_state.forget_endpoint(connection, endpoint)
    alert_state.forget_endpoint(connection, endpoint, now_ms)
    job_state.forget_endpoint(connection, endpoint, now_ms)
