"""`inferlake demo`: set everything up from nothing, run the story, count the rows, stay."""

import os
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path

import deltalake
import mlflow
import polars as pl

from capture import errors, names
from capture.settings import Settings
from serving import supervisor
from serving.demo import control, driver, feed, flights, models, receiver, screen, story
from serving.features import FeatureEngineeringClient

MARKER = ".inferlake-demo"
PAYLOAD = "main.flights.flight_delay_payload"


def run(data_dir: Path, every: int | None, exit: bool) -> int:
    """Run the demo in `data_dir`, made anew. 0: every answered request is exactly one row."""
    settings = Settings(
        data_dir=data_dir.absolute(),
        port=_free_port(8000),
        dashboard_port=_free_port(8501),
        tls_certificate=None,
        tls_key=None,
    )
    _make_anew(settings.data_dir)
    _use_embedded_registry(settings)
    with ExitStack() as stack:
        told = stack.enter_context(screen.Screen())
        told.title(
            "inferlake demo: will this flight arrive more than 15 minutes late?",
            "Real flights out of New York in 2013 are asked 60 minutes before departure; two "
            "models answer, one will win. Times are UTC.",
        )
        with _mlflow_lines_aside(settings):
            tale, running = _prepare(settings, every, told, stack)
        told.replaying(tale.driver.replay.flights.height)
        for chapter in (
            story.canary,
            story.comparison,
            story.hung_feed,
            story.careless_canary,
            story.end_of_weather,
        ):
            chapter(tale)
        complete = _close(tale, settings, running, exit)
        if not exit:
            _stay()
    return 0 if complete else 1


def _make_anew(data_dir: Path) -> None:
    """An empty data directory; one that no demo made is left alone."""
    if data_dir.exists() and any(data_dir.iterdir()):
        if not (data_dir / MARKER).exists():
            raise errors.InvalidParameter(
                f"'{data_dir.name}' holds files that are not of a demo; give another --data-dir."
            )
        shutil.rmtree(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    (data_dir / MARKER).touch()


def _use_embedded_registry(settings: Settings) -> None:
    (settings.data_dir / "mlflow").mkdir(exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = settings.mlflow_uri
    mlflow.set_tracking_uri(settings.mlflow_uri)
    mlflow.set_registry_uri(settings.mlflow_uri)


@contextmanager
def _mlflow_lines_aside(settings: Settings) -> Iterator[None]:
    """MLflow's log lines go to `logs/mlflow.log`, not between those of the story."""
    settings.logs_dir.mkdir(exist_ok=True)
    with (settings.logs_dir / "mlflow.log").open("w") as lines, redirect_stderr(lines):
        yield


def _free_port(wanted: int) -> int:
    """`wanted`, or a free port if another program listens there."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise errors.Unavailable("No free port on 127.0.0.1.")


def _prepare(
    settings: Settings, every: int | None, told: screen.Screen, stack: ExitStack
) -> tuple[story.Story, supervisor.Running]:
    """Server, data, models and endpoint; what can run side by side does."""
    running = supervisor.Running(settings, wait_for_dashboard=False)
    with ThreadPoolExecutor(2) as beside:
        started = beside.submit(stack.enter_context, running)
        registry = beside.submit(_make_registry, settings)
        data = flights.load()
        told.step(f"read {data.flights.height:,} flights of 2013, their weather and planes")
        client = FeatureEngineeringClient(settings)
        rows_feed = feed.Feed(client, settings, data.planes, data.airport_hour)
        rows_feed.write_until(story.FEED_HANGS)
        told.step("wrote the feature tables planes and airport_hour (what was known, and when)")
        rows = models.training_rows(client, data.flights)
        trained = models.train(rows)
        aucs = ", ".join(f"{m.version} {m.auc:.3f}" for m in trained.values())
        told.step(f"trained on {rows.height:,} flights before 1 July; AUC in training: {aucs}")
        mlflow.set_experiment(experiment_id=registry.result())
        _register(client, trained, rows)
        told.step("logged and registered three versions in MLflow")
        started.result()
    told.step(f"the server answers at {running.url}, the dashboard opens later")
    heard = receiver.Receiver()
    stack.callback(heard.close)
    desk = control.Control(running.url, running.admin_token)
    _create(desk, heard)
    told.step("endpoint flight-delay answers: v1, with every request recorded and monitored")
    replayed = flights.replayed(data.flights, every)
    requests = driver.Driver(replayed, settings.host, settings.port, running.admin_token)
    stack.callback(requests.close)
    return story.Story(desk, requests, told, heard, rows_feed, trained), running


def _make_registry(settings: Settings) -> str:
    """MLflow's tables and an experiment, which take it some seconds. Gives the experiment's id."""
    return str(
        mlflow.create_experiment(
            "flight_delay", artifact_location=settings.mlflow_artifacts_dir.as_uri()
        )
    )


def _register(
    client: FeatureEngineeringClient,
    trained: dict[str, models.Trained],
    rows: pl.DataFrame,
) -> None:
    for model in trained.values():
        models.log(client, model, rows)
    client.create_table(
        name=models.BASELINE,
        primary_keys=[],
        df=models.baseline(rows, trained["v1"], trained["v2"]),
    )


def _create(desk: control.Control, heard: receiver.Receiver) -> None:
    """The webhook, the endpoint with v1 alone, its record, its monitor without a schedule."""
    hook = {"url": heard.url, "events": ["endpoint.*", "alert.*", "ramp.*", "recommendation.*"]}
    heard.secret = desk.call("POST", "/api/1.0/webhooks", hook)["secret"]
    desk.call(
        "POST",
        "/api/2.0/serving-endpoints",
        {
            "name": control.ENDPOINT,
            "config": {
                "served_entities": [control.entity("v1")],
                "traffic_config": {
                    "routes": [{"served_model_name": "v1", "traffic_percentage": 100}],
                    "sticky": {"key": "client_request_id", "salt": "flight-delay"},
                },
                "auto_capture_config": {
                    "catalog_name": "main",
                    "schema_name": "flights",
                    "table_name_prefix": "flight_delay",
                },
            },
        },
    )
    desk.wait_until_ready()
    desk.call(
        "POST",
        f"/api/2.1/unity-catalog/tables/{control.MONITORED}/monitor",
        {
            "output_schema_name": "main.flights",
            "assets_dir": "/flight_delay",
            "baseline_table_name": models.BASELINE,
            "inference_log": {
                "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
                "timestamp_col": "event_time",
                "granularities": ["1 week"],
                "prediction_col": "prediction",
                "prediction_proba_col": "score",
                "model_id_col": "served_entity_name",
                "label_col": "label",
            },
        },
    )
    desk.call(
        "POST",
        "/api/1.0/alert-rules",
        {
            "name": "airport_hour is stale",
            "endpoint": control.ENDPOINT,
            "metric": "feature_age_hours",
            "column": "as_of",
            "condition": {"operator": ">", "threshold": 3},
            "severity": "critical",
        },
    )


def _close(tale: story.Story, settings: Settings, running: supervisor.Running, exit: bool) -> bool:
    """Count rows against answers, say what to look at. True: nothing lost, nothing doubled."""
    story.wait_until_recorded(tale)
    sent = {driver.request_id(i) for i in tale.driver.replay.flights["flight_id"]}
    table = deltalake.DeltaTable(names.table_path(settings.tables_root, names.table_name(PAYLOAD)))
    ids = pl.scan_delta(table).select("client_request_id").collect()["client_request_id"]
    lost, doubled = len(sent - set(ids)), ids.len() - ids.n_unique()
    versions = pl.Series(tale.driver.replay.versions, dtype=pl.String).value_counts(sort=True)
    shares = ", ".join(f"{name or 'none'} {count:,}" for name, count in versions.iter_rows())
    lines = [
        f"{len(sent):,} requests ({shares}), {tale.driver.replay.labels_sent:,} labels, "
        f"{tale.receiver.settled()} webhooks verified",
        f"rows in {PAYLOAD}: {ids.len():,}    [bold]lost {lost}, doubled {doubled}[/]",
        f"took {time.monotonic() - tale.screen.begun:.0f} s",
    ]
    if not exit:
        lines += [
            "",
            f"Dashboard   {running.dashboard_link()}  (signs you in once, for 10 minutes)",
            "            look first at Experiment, then Drift (temp, delay_2h), then Alerts",
            f"API         {running.url}  with the token in {settings.data_dir / 'admin-token'}",
            f"Tables      {settings.data_dir / 'tables'}  (Delta: any engine reads them)",
            "Stop        Ctrl-C;  start it again with  "
            f"inferlake up --data-dir {settings.data_dir}",
        ]
    tale.screen.closing(lines, "What was recorded" if exit else "What was recorded, what is next")
    return lost == 0 and doubled == 0


def _stay() -> None:
    """Serve until Ctrl-C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
