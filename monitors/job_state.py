"""SQL of jobs: work that a person starts and watches, done in a process of its own (`jobs.py`).

A job is `queued`, `running`, and then one of `succeeded`, `failed`, `cancelled`, for good. Times
are Unix milliseconds. Each function is one intent and runs in the caller's transaction.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from capture import database, errors, names

UNFINISHED = ("queued", "running")
MOST_WAITING = 50
STAGE_CHARACTERS, MESSAGE_CHARACTERS = 256, 2000

jobs = sa.Table(
    "jobs",
    database.metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("arguments", sa.JSON, nullable=False),
    sa.Column("endpoint", sa.String(63), index=True),
    sa.Column("table_name", sa.String(400)),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("stage", sa.String(256), nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("message", sa.Text),
    sa.Column("result", sa.JSON),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("ended_ms", sa.BigInteger),
)


class Job(NamedTuple):
    """endpoint: name of the one whose rights guard the job; None: those of the server as a whole.
    done of total: pieces of the present stage, total 0 where it is not known."""

    id: str
    kind: str
    arguments: dict[str, Any]
    endpoint: str | None
    table_name: str | None
    created_by: str
    created_ms: int
    state: str
    stage: str
    done: int
    total: int
    message: str | None
    result: dict[str, Any] | None
    cancel_requested: bool
    started_ms: int | None
    ended_ms: int | None


def create(
    connection: sa.Connection,
    kind: str,
    arguments: Mapping[str, Any],
    endpoint: str | None,
    table_name: str | None,
    user: str,
    now_ms: int,
) -> str:
    """Queue a job; gives its id. Raises QueueFull."""
    where = jobs.c.state == "queued"
    waiting = connection.execute(sa.select(sa.func.count()).where(where)).scalar_one()
    if waiting >= MOST_WAITING:
        raise errors.QueueFull(f"{waiting} jobs wait already; try again when some are done.")
    job = Job(
        id=names.new_id(),
        kind=kind,
        arguments=dict(arguments),
        endpoint=endpoint,
        table_name=table_name,
        created_by=user,
        created_ms=now_ms,
        state="queued",
        stage="",
        done=0,
        total=0,
        message=None,
        result=None,
        cancel_requested=False,
        started_ms=None,
        ended_ms=None,
    )
    connection.execute(sa.insert(jobs).values(**job._asdict()))
    return job.id


def get(connection: sa.Connection, job_id: str) -> Job:
    """Raises DoesNotExist."""
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise errors.DoesNotExist(f"Job '{job_id[:50]}' does not exist.")
    return Job(**row._mapping)


def next_waiting(connection: sa.Connection) -> Job | None:
    """The job that waits longest."""
    query = sa.select(jobs).where(jobs.c.state == "queued").order_by(jobs.c.created_ms, jobs.c.id)
    row = connection.execute(query.limit(1)).first()
    return Job(**row._mapping) if row else None


def start(connection: sa.Connection, job_id: str, now_ms: int) -> bool:
    """queued -> running; False: it was cancelled meanwhile."""
    done = connection.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == "queued")
        .values(state="running", started_ms=now_ms)
    )
    return done.rowcount == 1


def tell(connection: sa.Connection, job_id: str, stage: str, done: int, total: int) -> bool:
    """Write how far a running job is; False: it is not wanted any more."""
    told = connection.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == "running", sa.not_(jobs.c.cancel_requested))
        .values(stage=stage[:STAGE_CHARACTERS], done=done, total=total)
    )
    return told.rowcount == 1


def end(
    connection: sa.Connection,
    job_id: str,
    state: str,
    message: str | None,
    now_ms: int,
    result: Mapping[str, Any] | None = None,
) -> bool:
    """running -> succeeded, failed or cancelled; False: it had ended before."""
    done = connection.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == "running")
        .values(
            state=state,
            message=message and message[:MESSAGE_CHARACTERS],
            result=sa.null() if result is None else dict(result),
            ended_ms=now_ms,
        )
    )
    return done.rowcount == 1


def cancel(connection: sa.Connection, job_id: str, now_ms: int) -> Job:
    """A waiting job ends at once, a running one soon; an ended one stays as it is. Raises
    DoesNotExist."""
    where = jobs.c.id == job_id
    ended = {"state": "cancelled", "cancel_requested": True, "ended_ms": now_ms}
    connection.execute(sa.update(jobs).where(where, jobs.c.state == "queued").values(**ended))
    running = sa.update(jobs).where(where, jobs.c.state == "running")
    connection.execute(running.values(cancel_requested=True))
    return get(connection, job_id)


def fail_unfinished(connection: sa.Connection, message: str, now_ms: int) -> int:
    """What a dead process left running has failed; gives how many."""
    done = connection.execute(
        sa.update(jobs)
        .where(jobs.c.state == "running")
        .values(state="failed", message=message, ended_ms=now_ms)
    )
    return done.rowcount


def forget_before(connection: sa.Connection, ended_ms: int) -> list[str]:
    """Forget jobs that ended before; gives their ids."""
    where = jobs.c.ended_ms < ended_ms
    found = list(connection.execute(sa.select(jobs.c.id).where(where)).scalars())
    connection.execute(sa.delete(jobs).where(where))
    return found


def forget_endpoint(connection: sa.Connection, endpoint: str, now_ms: int) -> None:
    """The endpoint is gone, and its name may come again for others: its jobs end, and none of them
    can be seen under that name."""
    ours = jobs.c.endpoint == endpoint
    ended = {"state": "cancelled", "cancel_requested": True, "ended_ms": now_ms}
    connection.execute(sa.update(jobs).where(ours, jobs.c.state == "queued").values(**ended))
    connection.execute(sa.update(jobs).where(ours).values(cancel_requested=True, endpoint=""))
