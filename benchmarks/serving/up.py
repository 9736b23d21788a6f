"""`inferlake up` on a folder of its own, with the models that a script registers."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOKEN = "benchmark-admin-token"
PATIENCE_SECONDS = 240
ENVIRONMENT = {
    "INFERLAKE_ADMIN_TOKEN": TOKEN,
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
}
PRELUDE = """
import sys, time, warnings
warnings.simplefilter("ignore")
import mlflow, mlflow.sklearn, pandas
from mlflow.models import infer_signature
mlflow.set_tracking_uri(sys.argv[1])
experiment = mlflow.create_experiment("benchmarks", artifact_location=sys.argv[2])
def register(log, name, model, **more):
    with mlflow.start_run(experiment_id=experiment):
        log(model, name="model", registered_model_name=name, pip_requirements=["mlflow"], **more)
def register_python(name, model, **more):
    register(lambda model, **rest: mlflow.pyfunc.log_model(python_model=model, **rest),
             name, model, **more)
"""


def _register(data_dir: Path, script: str) -> None:
    folder = data_dir / "mlflow"
    folder.mkdir(parents=True)
    uris = [f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()]
    command = [sys.executable, "-c", PRELUDE + script, *uris]
    subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=True, capture_output=True)


def free_port() -> int:
    """A port that is free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(folder: Path, models: str, **environment: str) -> Iterator[str]:
    """URL of a running server. models: a script that registers them, after PRELUDE."""
    _register(folder / "data", models)
    command = [sys.executable, "-m", "serving.cli", "up", "--data-dir", str(folder / "data")]
    command += ["--port", str(free_port()), "--no-dashboard"]
    log = folder / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT, **environment},
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    with up:
        assert up.stdout is not None
        try:
            readable = select.select([up.stdout], [], [], PATIENCE_SECONDS)[0]
            line = up.stdout.readline() if readable else ""
            if not line.startswith("ready "):
                raise RuntimeError(f"The server did not start: {log.read_text()[-2000:]}")
            yield line.split()[1]
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(PATIENCE_SECONDS)
