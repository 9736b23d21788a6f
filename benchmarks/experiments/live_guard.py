"""How long does a challenger that begins to fail keep its traffic, on a real server?

    python benchmarks/experiments/live_guard.py [--per-second 200] [--share 1] [--runs 1] [--seed 0]

`inferlake up` serves two versions of a model, 99/1; the second begins to fail 8 % of its requests
where 0.3 % were usual. Evidence is there with the answer that crosses the error guardrail: which
one is found afterwards, by the product's decision on the recorded rows up to each failure. Compared
with it: the moment from which no request goes to the challenger any more. Bar: at most 10 s between
the two. Printed beside it: requests of the challenger until the evidence and until the end, those
that failed, and requests that were answered by anything but 200 or the model's own failure (bar 0).
Exit status 1 if a bar is missed.
"""

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bars
import httpx2
import polars as pl

from monitors import experiments
from serving.demo import client

TOKEN = "benchmark-admin-token"
ENDPOINT, PREFIX = "shop", "main.bench.shop"
PATH = f"/serving-endpoints/{ENDPOINT}/invocations"
PATIENCE_SECONDS = 240
CONNECTIONS = 16
USUAL, FAILING = 0.003, 0.08
CALM_SECONDS = 10
POLICY = {
    "primary": {"name": "accuracy", "mde": 0.02},
    "guardrails": [{"name": "error_rate", "kind": "error_rate", "margin": 0.002}],
    "champion": "v1",
    "challenger": "v2",
}
# A request carries its luck and the phase of the story; a version fails the unlucky ones.
REGISTER = """
import sys
import mlflow, pandas
from mlflow.models import infer_signature
class Shop(mlflow.pyfunc.PythonModel):
    def __init__(self, rates):
        self.rates = rates
    def predict(self, context, model_input, params=None):
        luck, phase = model_input["luck"], model_input["phase"]
        if any(one < self.rates[int(now)] for one, now in zip(luck, phase)):
            raise ValueError("no luck")
        return [1.0] * len(model_input)
uri, artifacts, usual, failing = sys.argv[1:]
mlflow.set_tracking_uri(uri)
experiment = mlflow.create_experiment("bench", artifact_location=artifacts)
rows = pandas.DataFrame({"luck": [0.5], "phase": [0.0]})
for rates in ((float(usual), float(usual)), (float(usual), float(failing))):
    with mlflow.start_run(experiment_id=experiment):
        mlflow.pyfunc.log_model(
            name="model", python_model=Shop(rates), registered_model_name="main.bench.shop",
            signature=infer_signature(rows, [1.0]), pip_requirements=["mlflow"],
        )
"""


class Control:
    """The administrator's calls."""

    def __init__(self, url: str) -> None:
        head = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx2.Client(base_url=url, headers=head, timeout=60, trust_env=False)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, path, json=body)
        if answer.status_code >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def until(self, wanted: Any, what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := wanted()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {PATIENCE_SECONDS} s")
            time.sleep(0.05)
        return found

    def endpoint(self) -> dict[str, Any]:
        return dict(self.call("GET", f"/api/2.0/serving-endpoints/{ENDPOINT}"))

    def share(self) -> int:
        """The challenger's percentage now."""
        routes = self.endpoint()["config"]["traffic_config"]["routes"]
        return int(next(r["traffic_percentage"] for r in routes if r["served_model_name"] == "v2"))

    def committed(self) -> int:
        return int(self.call("GET", f"/api/1.0/endpoints/{ENDPOINT}/capture")["committed_rows"])


@contextmanager
def running(folder: Path) -> Iterator[Control]:
    """`inferlake up` on an empty folder whose registry holds both versions."""
    data = folder / "data"
    (data / "mlflow").mkdir(parents=True)
    uri, artifacts = f"sqlite:///{data}/mlflow/mlflow.db", (data / "mlflow/artifacts").as_uri()
    made = [sys.executable, "-c", REGISTER, uri, artifacts, str(USUAL), str(FAILING)]
    subprocess.run(made, check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serving.cli", "up", "--data-dir", str(data), "--no-dashboard"]
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env={**_environment(), "INFERLAKE_ADMIN_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            raise RuntimeError((folder / "up.log").read_text()[-2000:])
        yield Control(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}


def prepare(control: Control, share: int) -> None:
    """The endpoint, its monitor, the experiment, and the ramp that takes traffic away."""
    entities = [
        {
            "name": f"v{version}",
            "entity_name": "main.bench.shop",
            "entity_version": version,
            "workload_size": "Small",
            "scale_to_zero_enabled": False,
        }
        for version in ("1", "2")
    ]
    routes = [
        {"served_model_name": name, "traffic_percentage": percentage}
        for name, percentage in (("v1", 100 - share), ("v2", share))
    ]
    where = {"catalog_name": "main", "schema_name": "bench", "table_name_prefix": "shop"}
    config = {
        "served_entities": entities,
        "traffic_config": {"routes": routes},
        "auto_capture_config": {"enabled": True, **where},
    }
    control.call("POST", "/api/2.0/serving-endpoints", {"name": ENDPOINT, "config": config})
    control.until(lambda: control.endpoint()["state"]["ready"] == "READY", "endpoint")
    log = {
        "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
        "timestamp_col": "request_time",
        "granularities": ["1 day"],
        "prediction_col": "prediction",
        "model_id_col": "served_entity_name",
        "label_col": "label",
    }
    monitor = {
        "output_schema_name": "main.bench",
        "assets_dir": "/bench",
        "inference_log": log,
        "schedule": {"quartz_cron_expression": "0 0 0 * * ?", "timezone_id": "UTC"},
    }
    path = f"/api/2.1/unity-catalog/tables/{PREFIX}_unpacked/monitor"
    control.call("POST", path, monitor)
    ours = f"/api/1.0/endpoints/{ENDPOINT}"
    control.call("PUT", f"{ours}/experiment", POLICY)
    ramp = {"challenger": "v2", "steps": [share, 100], "auto": False, "on_regression": "roll_back"}
    control.call("PUT", f"{ours}/ramp", ramp)


@dataclass(slots=True)
class Load:
    """An open load; phase 1: the challenger fails."""

    control: Control
    per_second: float
    chance: random.Random
    phase: int = 0
    over: bool = False
    sent: int = 0
    odd: int = 0

    async def run(self, port: int) -> datetime:
        """Send until the challenger has no traffic; gives the moment at which it began to fail."""
        asking = client.Client("127.0.0.1", port, TOKEN, CONNECTIONS)
        watching = asyncio.create_task(self._watch())
        loop = asyncio.get_running_loop()
        at = loop.time()
        async with asking, asyncio.TaskGroup() as group:
            while not self.over:
                at += self.chance.expovariate(self.per_second)
                await asyncio.sleep(max(0.0, at - loop.time()))
                group.create_task(self._ask(asking))
        return await watching

    async def _ask(self, asking: client.Client) -> None:
        record = {"luck": self.chance.random(), "phase": float(self.phase)}
        self.sent += 1
        answer = await asking.post(PATH, json.dumps({"dataframe_records": [record]}).encode())
        if answer.status != 200 and b"no luck" not in answer.body:
            self.odd += 1

    async def _watch(self) -> datetime:
        await asyncio.sleep(CALM_SECONDS)
        began, self.phase = datetime.now(UTC), 1
        deadline = time.monotonic() + PATIENCE_SECONDS
        while await asyncio.to_thread(self.control.share):
            if time.monotonic() > deadline:
                self.over = True
                raise TimeoutError(f"The challenger has its traffic after {PATIENCE_SECONDS} s.")
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # what comes after it shows that nobody is sent there any more
        self.over = True
        return began


def recorded(control: Control, folder: Path, sent: int) -> pl.DataFrame:
    """Every request as a row that a decision takes, in the order of answers."""
    control.until(lambda: control.committed() >= sent, "commit")
    rows = pl.read_delta(str(folder / "data/tables/main/bench/shop_payload"))
    answered = pl.col("request_time") + pl.duration(milliseconds="execution_duration_ms")
    return rows.select(
        "request_time",
        "status_code",
        request_id="databricks_request_id",
        version="served_entity_name",
        route_share=pl.when(pl.col("served_entity_name") == "v2")
        .then("route_share")
        .otherwise(1 - pl.col("route_share")),
        error=pl.when(pl.col("error_source") == "model").then(True),
        answered=answered,
    ).sort("answered")


def evidence(rows: pl.DataFrame) -> int:
    """The position of the answer that crosses the guardrail."""
    failed = (rows["version"] == "v2") & rows["error"].fill_null(False)
    for at in failed.arg_true().to_list():
        seen = rows.head(at + 1)
        now = seen["answered"][-1]
        if experiments.evaluate(seen, POLICY, now).action == "roll_back":
            return int(at)
    raise RuntimeError("The recorded rows do not cross the guardrail.")


def measure(options: argparse.Namespace, seed: int, report: bars.Report) -> None:
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as control:
        prepare(control, options.share)
        load = Load(control, options.per_second, random.Random(seed))
        began = asyncio.run(load.run(int(str(control.http.base_url).rsplit(":", 1)[1].strip("/"))))
        rows = recorded(control, Path(name), load.sent)
    at = evidence(rows)
    mine = rows.filter((pl.col("version") == "v2") & (pl.col("request_time") >= began))
    until_evidence = mine.filter(pl.col("answered") <= rows["answered"][at]).height
    seconds = (mine["request_time"].max() - rows["answered"][at]).total_seconds()  # type: ignore[operator]
    failed = int(mine["error"].fill_null(False).sum())
    beside = (
        f"{until_evidence} requests of the challenger until the evidence, {mine.height} until the "
        f"last, {failed} of them failed; {rows.height:,} requests in all"
    )
    report.most("evidence to the last request of the challenger", seconds, 10, "%.1f s", beside)
    report.most("answers that were neither good nor the model's failure", load.odd, 0, "%d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--per-second", type=float, default=200)
    parser.add_argument("--share", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = bars.Report()
    for run in range(options.runs):
        measure(options, options.seed + run, report)
    report.end()


if __name__ == "__main__":
    main()
