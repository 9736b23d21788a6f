"""A gateway, a worker and a committer for the benchmarks beside this file, and an open load on it.

Endpoints are put into the state as the controller would leave them; all are answered by one worker
with a linear model of ten columns and ten answers: about 300 bytes of JSON in, 200 out.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from capture import catalog, database
from capture.settings import Settings
from serving import replica_state, state
from serving.demo import client

COLUMNS = [f"column_{number}" for number in range(10)]
TOKEN = "benchmark-admin-token"
HOST = "127.0.0.1"
PATIENCE_SECONDS = 120
CONNECTIONS = 32
ENTITY_ID = "e" * 32


def save_model(folder: Path) -> None:
    """Ten columns in, ten numbers out."""
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    chance = np.random.default_rng(0)
    rows = pd.DataFrame(chance.normal(size=(200, len(COLUMNS))), columns=COLUMNS)
    targets = rows.to_numpy() @ chance.normal(size=(len(COLUMNS), len(COLUMNS)))
    model = LinearRegression().fit(rows, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            model,
            folder,
            signature=infer_signature(rows, model.predict(rows)),
            pip_requirements=["mlflow", "scikit-learn"],
            serialization_format="cloudpickle",
        )


def table(endpoint: str) -> str:
    """Payload table of an endpoint."""
    return f"main.bench.{endpoint}_payload"


def path(endpoint: str) -> str:
    """Where an endpoint is asked."""
    return f"/serving-endpoints/{endpoint}/invocations"


def _endpoint(number: int, name: str) -> state.Endpoint:
    return state.Endpoint(
        id=f"{number:032x}",
        name=name,
        creator="admin",
        description=None,
        created_ms=1,
        updated_ms=1,
        active_version=None,
        pending_version=None,
        config_update="NOT_UPDATING",
        update_message=None,
        update_started_ms=None,
        stopped=False,
        tags=[],
        ai_gateway=None,
        rate_limits=None,
        email_notifications=None,
        telemetry_config=None,
        route_optimized=False,
        budget_policy_id=None,
        row_version=1,
    )


def _configuration(name: str, is_recorded: bool) -> dict[str, object]:
    entity = {"id": ENTITY_ID, "name": "m", "entity_name": "main.bench.m", "entity_version": "1"}
    route = {"served_model_name": "m", "served_entity_name": "m", "traffic_percentage": 100}
    where = {"catalog_name": "main", "schema_name": "bench", "table_name_prefix": name}
    return {
        "served_entities": [entity],
        "traffic_config": {"routes": [route], "sticky": None},
        "auto_capture_config": {"enabled": True, **where} if is_recorded else None,
    }


def _prepare(settings: Settings, endpoints: dict[str, bool], socket: Path) -> None:
    database.migrate(settings)
    engine = database.open_engine(settings)
    with database.transaction(engine) as connection:
        for number, (name, is_recorded) in enumerate(endpoints.items(), start=1):
            seen = _endpoint(number, name)
            state.insert_endpoint(connection, seen)
            state.accept_configuration(
                connection,
                seen,
                _configuration(name, is_recorded),
                created_by="admin",
                reason=None,
                origin="user",
                at_once=True,
                now_ms=1,
            )
            if is_recorded:
                columns = dict.fromkeys(COLUMNS, "double")
                catalog.record(connection, table(name), seen.id, name, columns, {}, 1)
        ready = replica_state.Replica(
            "r1", f"{1:032x}", ENTITY_ID, str(socket), None, None, "READY", None, 1, 1, 4
        )
        replica_state.add_replica(connection, ready)
    engine.dispose()


@contextmanager
def _process(command: Sequence[str], log: Path, **environment: str) -> Iterator[int]:
    """A process in a group of its own, its output in a file; gives its pid."""
    quiet = {"DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **quiet, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield started.pid
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Until the condition is true. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_SECONDS} s")
        time.sleep(0.02)


class Server:
    """What runs: settings, port and pid of the gateway."""

    def __init__(self, settings: Settings, gateway: int) -> None:
        self.settings, self.gateway = settings, gateway
        ready = json.loads((settings.run_dir / "gateway.ready").read_text())
        self.port: int = ready["port"]

    def client(self) -> client.Client:
        """A client with the administrator's token."""
        return client.Client(HOST, self.port, TOKEN, CONNECTIONS)


@contextmanager
def running(
    folder: Path, endpoints: dict[str, bool], gateway: Sequence[str] = ("-m", "serving.gateway")
) -> Iterator[Server]:
    """Everything started in an empty folder. endpoints: name -> whether it is recorded.
    gateway: the arguments of Python that start it."""
    settings = Settings(data_dir=folder / "data")
    settings.run_dir.mkdir(parents=True)
    save_model(folder / "model")
    socket = settings.run_dir / "w-1.sock"
    _prepare(settings, endpoints, socket)
    spec = folder / "worker.json"
    known = {"endpoint": "bench", "entity": "m", "served_entity_id": ENTITY_ID}
    spec.write_text(
        json.dumps({**known, "socket": str(socket), "model_path": str(folder / "model")})
    )
    environment = {
        "INFERLAKE_DATA_DIR": str(settings.data_dir),
        "INFERLAKE_ADMIN_TOKEN": TOKEN,
        "INFERLAKE_PORT": "0",
    }
    with ExitStack() as started:
        worker = ("-m", "serving.worker", "--spec", str(spec))
        started.enter_context(_process(worker, folder / "worker.log"))
        started.enter_context(_process(("-m", "capture"), folder / "committer.log", **environment))
        pid = started.enter_context(_process(gateway, folder / "gateway.log", **environment))
        wait_for(socket.exists, "worker")
        for name in ("gateway", "committer"):
            wait_for((settings.run_dir / f"{name}.ready").exists, name)
        server = Server(settings, pid)
        asyncio.run(_until_answered(server, next(iter(endpoints))))
        yield server


async def _until_answered(server: Server, endpoint: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with server.client() as asking:
        while (
            reply := await asking.post(path(endpoint), body(random.Random(0), "x"))
        ).status != 200:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The endpoint answers {reply.status}: {reply.body[:300]!r}")
            await asyncio.sleep(0.05)


def body(chance: random.Random, request_id: str) -> bytes:
    """A query of one row."""
    record = {column: round(chance.gauss(0, 1), 6) for column in COLUMNS}
    return json.dumps({"client_request_id": request_id, "dataframe_records": [record]}).encode()


async def load(
    asking: client.Client,
    endpoint: str,
    bodies: Sequence[bytes],
    per_second: float,
    chance: random.Random,
) -> list[float]:
    """Send each body at its own random moment, answered or not; gives the monotonic times of the
    replies. Raises RuntimeError if a reply is not 200."""
    loop = asyncio.get_running_loop()
    replied = [0.0] * len(bodies)

    async def ask(number: int) -> None:
        reply = await asking.post(path(endpoint), bodies[number])
        replied[number] = time.monotonic()
        if reply.status != 200:
            raise RuntimeError(f"A request was answered {reply.status}: {reply.body[:300]!r}")

    at = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(len(bodies)):
            at += chance.expovariate(per_second)
            await asyncio.sleep(max(0.0, at - loop.time()))
            group.create_task(ask(number))
    return replied
