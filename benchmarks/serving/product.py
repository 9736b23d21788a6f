"""The whole product for the benchmarks beside this file: a gateway, a worker for each endpoint, the
committer; token, rate limit, grants, capture and counts are on. No controller: endpoints and their
replicas are put into the state as it would leave them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import load

COLUMNS = [f"c{number}" for number in range(30)]
TREES = 100
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
os.environ.update(QUIET)
# mlflow starts "uvicorn" by name: the one beside this interpreter, activated or not.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


class Endpoint(NamedTuple):
    """A model behind a name. `recorded`: whether its requests become rows."""

    model: Path
    recorded: bool = True


class Product(NamedTuple):
    """A running product. `workers`: process id by endpoint."""

    port: int
    gateway: int
    workers: Mapping[str, int]

    def url(self, endpoint: str) -> str:
        """Where an endpoint is asked."""
        return f"http://127.0.0.1:{self.port}/serving-endpoints/{endpoint}/invocations"

    def processes(self, endpoint: str) -> tuple[int, int]:
        """The gateway's id, the worker's."""
        return self.gateway, self.workers[endpoint]


def save_models(folder: Path) -> dict[str, Path]:
    """`lr`, a logistic regression, and `rf`, a random forest, both on 30 doubles. The estimator
    alone lies beside each model, for peers that know no MLflow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cloudpickle
        import mlflow
        import numpy as np
        import pandas as pd
        from mlflow.models import infer_signature
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression

        random = np.random.default_rng(0)
        rows = pd.DataFrame(random.normal(size=(500, len(COLUMNS))), columns=COLUMNS)
        target = (rows.c0 + rows.c1 > 0).astype(int)
        paths = {}
        for name, estimator in (
            ("lr", LogisticRegression()),
            ("rf", RandomForestClassifier(TREES, random_state=0)),
        ):
            model = estimator.fit(rows, target)
            paths[name] = folder / name
            mlflow.sklearn.save_model(
                model,
                paths[name],
                signature=infer_signature(rows, model.predict(rows)),
                pip_requirements=["mlflow", "scikit-learn"],
                serialization_format="cloudpickle",
            )
            (paths[name] / "estimator.pkl").write_bytes(cloudpickle.dumps(model))
    return paths


def mlflow(model: Path, port: int) -> list[str]:
    """The command of `mlflow models serve`."""
    return [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", str(model),
            "-p", str(port), "--env-manager", "local"]  # fmt: skip


def free_port() -> int:
    """A port that is free just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def process(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a file, ended with all it started."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)


@contextmanager
def running(
    folder: Path, endpoints: Mapping[str, Endpoint], build: Path | None = None
) -> Iterator[Product]:
    """The product on a new data directory, answering. `build`: folder of a compiled one. Raises
    TimeoutError, after its logs."""
    specs = _prepare(folder, endpoints)
    port = free_port()
    ours = {
        "INFERLAKE_DATA_DIR": str(folder),
        "INFERLAKE_ADMIN_TOKEN": load.TOKEN,
        "INFERLAKE_PORT": str(port),
    }
    if build is not None:
        ours |= {"PYTHONPATH": str(build), "PYTHONSAFEPATH": "1"}
    with ExitStack() as stack:

        def started(name: str, *command: str) -> int:
            log = folder / f"{name}.log"
            return stack.enter_context(process([sys.executable, *command], log, **ours)).pid

        workers = {
            name: started(f"worker-{name}", "-m", "serving.worker", "--spec", str(spec))
            for name, spec in specs.items()
        }
        found = Product(port, started("gateway", "-m", "serving.gateway"), workers)
        started("committer", "-m", "capture")
        try:
            body = load.records(COLUMNS, 1)
            for name in endpoints:
                load.wait_for(lambda name=name: load.answers(found.url(name), body))
        except TimeoutError:
            for log in folder.glob("*.log"):
                print(log.name, log.read_text()[-2000:], file=sys.stderr)
            raise
        yield found


def _prepare(folder: Path, endpoints: Mapping[str, Endpoint]) -> dict[str, Path]:
    """A data directory with live endpoints; gives the spec file of each one's worker."""
    from capture import catalog, database
    from capture.settings import Settings
    from serving import replica_state, state

    settings = Settings(data_dir=folder)
    folder.mkdir()
    database.migrate(settings)
    settings.run_dir.mkdir()
    engine = database.open_engine(settings)
    specs = {}
    with database.transaction(engine) as db:
        for number, (name, endpoint) in enumerate(endpoints.items(), start=1):
            path = settings.run_dir / f"w-{number}.sock"
            entity_id = f"e{number}"
            seen = _row(f"{number:032x}", name)
            state.insert_endpoint(db, seen)
            state.accept_configuration(
                db, seen, _configuration(name, entity_id, endpoint.recorded), created_by="admin",
                reason=None, origin="user", at_once=True, now_ms=1,
            )  # fmt: skip
            replica_state.add_replica(
                db,
                replica_state.Replica(
                    f"r{number}", seen.id, entity_id, str(path), None, None, "READY", None, 1, 1, 4
                ),
            )
            if endpoint.recorded:
                columns = dict.fromkeys(COLUMNS, "double")
                table = f"main.d.{name}_payload"
                catalog.record(db, table, seen.id, name, columns, {}, 1)
            specs[name] = settings.run_dir / f"w-{number}.json"
            content = {"endpoint": name, "entity": "m", "served_entity_id": entity_id,
                       "socket": str(path), "model_path": str(endpoint.model)}  # fmt: skip
            specs[name].write_text(json.dumps(content))
    engine.dispose()
    return specs


def _row(endpoint_id: str, name: str) -> Any:
    from serving import state

    # A limit that is never reached, so that each request is counted against one.
    limit = {"calls": 100_000_000, "key": "user", "renewal_period": "minute"}
    return state.Endpoint(
        endpoint_id, name, "admin", None, 1, 1, None, None, "NOT_UPDATING", None, None, False, [],
        {"rate_limits": [limit]}, None, None, None, False, None, 1,
    )  # fmt: skip


def _configuration(name: str, entity_id: str, recorded: bool) -> dict[str, object]:
    entity = {"id": entity_id, "name": "m", "entity_name": "main.d.m", "entity_version": "1"}
    route = {"served_model_name": "m", "served_entity_name": "m", "traffic_percentage": 100}
    table = {"enabled": True, "catalog_name": "main", "schema_name": "d", "table_name_prefix": name}
    return {
        "served_entities": [entity],
        "traffic_config": {"routes": [route], "sticky": None},
        "auto_capture_config": table if recorded else None,
    }
