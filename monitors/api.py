"""The monitors' part of the HTTP API, mounted by the server: thin routers that parse, call, shape.

Loaded by the gateway, so nothing here or below loads numbers: what lies in Delta tables is asked of
the reading child. Handlers that touch SQL are plain functions, which FastAPI runs in threads: the
gateway's loop, which serves predictions, never waits for a database lock.
"""

from fastapi import APIRouter

from monitors import (
    routes_alerts,
    routes_data_quality,
    routes_experiments,
    routes_jobs,
    routes_monitors,
    routes_shadows,
    routing_context,
)


def router(context: routing_context.Context) -> APIRouter:
    """All routes of monitors, experiments, recommendations, alerts, webhooks and jobs."""
    assembled = APIRouter()
    for part in (
        routes_monitors.Monitors(context),
        routes_data_quality.DataQuality(context),
        routes_monitors.Results(context),
        routes_experiments.Experiments(context),
        routes_experiments.Recommendations(context),
        routes_alerts.Alerts(context),
        routes_alerts.Webhooks(context),
        routes_jobs.Jobs(context),
        routes_shadows.Replays(context),
    ):
        assembled.include_router(part.router())
    return assembled
