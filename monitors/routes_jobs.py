"""Routes of jobs: how far one is, its result, and its cancelling; and of the reports that are made
so (inferlake-api.md)."""

from pathlib import Path
from typing import Any

import pydantic
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from capture import database, errors
from monitors import contract, job_state, jobs, operations, routing_context, state
from monitors.routing_context import Context

JOBS = "/api/1.0/jobs"
REPORTS = "/api/1.0/reports"
# Rows as they were sent are seen by those who may manage the endpoint; all else by who may view it.
LEVELS = {"replay": "CAN_MANAGE"}
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
}
# A report is shown with names and values that strangers may have sent: whatever runs in it gets no
# origin, and with it no token and no cookie of this server.
ALONE = {
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-store",
}


class ReportRequest(contract.Shape):
    """window: [start, end], by default all rows. baseline: as for `POST .../baselines`, by default
    the monitor's own. slice: a slicing expression, `=` and its value."""

    table: str
    window: list[str] | None = pydantic.Field(default=None, min_length=2, max_length=2)
    baseline: dict[str, Any] | None = None
    served_entity: str | None = pydantic.Field(default=None, max_length=63)
    slice: str | None = pydantic.Field(default=None, max_length=1024)


class Jobs:
    """`/api/1.0/jobs/{id}` and `/api/1.0/reports`."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["jobs"])
        router.add_api_route(REPORTS, self.report, methods=["POST"])
        router.add_api_route(JOBS + "/{id}", self.get, methods=["GET"])
        router.add_api_route(JOBS + "/{id}/cancel", self.cancel, methods=["POST"])
        router.add_api_route(
            JOBS + "/{id}/result", self.result, methods=["GET"], response_class=Response
        )
        return router

    def report(
        self, request: Request, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Evidently's report on a window and its baseline, as a job. It holds counts, no rows."""
        asked = contract.parse(ReportRequest, contract.body(raw))
        monitor = operations.monitor_for(self.context, request, asked.table, "CAN_VIEW")
        caller = self.context.access.require(request, monitor.endpoint, "CAN_VIEW")
        arguments: dict[str, Any] = {
            "table": monitor.table_name,
            "window": None if asked.window is None else _window(asked.window),
            "served_entity": asked.served_entity,
            "slice": None if asked.slice is None else _slice(asked.slice),
        }
        arguments["baseline"] = self._baseline(request, asked.baseline, monitor)
        with database.transaction(self.context.engine) as connection:
            job_id = job_state.create(
                connection,
                "report",
                arguments,
                monitor.endpoint,
                monitor.table_name,
                caller.user,
                routing_context.now_ms(),
            )
        return {"job_id": job_id}

    def _baseline(
        self, request: Request, given: dict[str, Any] | None, monitor: state.Monitor
    ) -> dict[str, Any]:
        """The spec of the baseline: the monitor's, or one that the caller names, of a table that
        they may see."""
        if given is None:
            with database.reading(self.context.engine) as connection:
                known = state.current_baseline(connection, monitor.table_name)
            if known is None:
                raise errors.InvalidParameter(
                    "baseline: one is needed; the monitor has none of its own."
                )
            return known.spec
        spec = contract.baseline_spec(given)
        if spec["kind"] == "training":
            spec["table"] = spec["table"] or monitor.config.get("baseline_table_name")
            if spec["table"] is None:
                raise errors.InvalidParameter("baseline.table: a table is needed.")
            with database.reading(self.context.engine) as connection:
                endpoint = state.endpoint_of(connection, spec["table"])
            self.context.access.require(request, endpoint, "CAN_VIEW")
        return spec

    def _job(self, request: Request, id: str) -> job_state.Job:
        with database.reading(self.context.engine) as connection:
            found = job_state.get(connection, id)
        self.context.access.require(request, found.endpoint, LEVELS.get(found.kind, "CAN_VIEW"))
        return found

    def get(self, request: Request, id: str) -> dict[str, Any]:
        return job_info(self._job(request, id))

    def cancel(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Ask a job to stop: by who started it, or who manages the endpoint."""
        found = self._job(request, id)
        contract.parse(contract.Shape, contract.body(raw))
        caller = self.context.access.require(request, found.endpoint, "CAN_VIEW")
        if caller.user != found.created_by:
            self.context.access.require(request, found.endpoint, "CAN_MANAGE")
        with database.transaction(self.context.engine) as connection:
            return job_info(job_state.cancel(connection, id, routing_context.now_ms()))

    def result(self, request: Request, id: str) -> Response:
        """The file that a job has made."""
        found = self._job(request, id)
        name = _file(found)
        if name is None:
            raise errors.DoesNotExist(f"Job '{id[:50]}' is {found.state} and has no file.")
        path = jobs.folder(self.context.settings, found.id) / name
        if not path.is_file():
            raise errors.DoesNotExist(
                f"The file of job '{id[:50]}' is not on this machine any more."
            )
        kind = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
        return FileResponse(
            path, media_type=kind, filename=name, content_disposition_type="inline", headers=ALONE
        )


def _window(given: list[str]) -> list[str]:
    """Both ends of a window, checked. Raises InvalidParameter."""
    start, end = (contract.moment(side, "window") for side in given)
    if start >= end:
        raise errors.InvalidParameter("window: the start must be before the end.")
    return [start.isoformat(), end.isoformat()]


def _slice(given: str) -> list[str]:
    """`expression=value`; the expression may hold equals signs, too. Raises InvalidParameter."""
    text, equals, value = given.rpartition("=")
    if not equals:
        raise errors.InvalidParameter("slice: write the slicing expression, '=' and its value.")
    return [text, value]


def _file(job: job_state.Job) -> str | None:
    """Name of the file in a result, if there is one; never a path."""
    name = (job.result or {}).get("file")
    return name if isinstance(name, str) and name == Path(name).name else None


def job_info(job: job_state.Job) -> dict[str, Any]:
    """A job as the API shows it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "stage": job.stage,
        "done": job.done,
        "total": job.total,
        "message": job.message,
        "endpoint": job.endpoint,
        "table": job.table_name,
        "result": job.result,
        "result_url": f"{JOBS}/{job.id}/result" if _file(job) else None,
        "cancel_requested": job.cancel_requested,
        "created_by": job.created_by,
        "created_time": contract.rfc3339(job.created_ms),
        "started_time": contract.rfc3339(job.started_ms),
        "finished_time": contract.rfc3339(job.ended_ms),
    }
