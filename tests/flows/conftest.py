"""`inferlake up` on a data directory, and a registry with real models."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PATIENCE_SECONDS = 240
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
CHROMIUM_FLAGS += ("--disable-background-networking", "--disable-component-update")
CHROMIUM_FLAGS += ("--disable-sync",)

REGISTER = """
import sys
import mlflow, mlflow.sklearn, pandas
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression
uri, artifacts = sys.argv[1:]
mlflow.set_tracking_uri(uri)
experiment = mlflow.create_experiment("flows", artifact_location=artifacts)
rows = pandas.DataFrame({"a": [0.0, 1.0, 0.0, 5.0], "b": [0.0, 0.0, 1.0, 2.0]})
for factor in (1, 10):
    model = LinearRegression().fit(rows, factor * (rows.a + rows.b))
    with mlflow.start_run(experiment_id=experiment):
        signature = infer_signature(rows, model.predict(rows))
        mlflow.sklearn.log_model(
            model, name="model", signature=signature, registered_model_name="main.flows.sum"
        )
class Broken(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        raise ValueError("this model cannot be loaded")
    def predict(self, context, model_input, params=None):
        return model_input
with mlflow.start_run(experiment_id=experiment):
    mlflow.pyfunc.log_model(
        name="model", python_model=Broken(), registered_model_name="main.flows.broken",
        pip_requirements=["mlflow"],
    )
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERLAKE_")}
    return {**kept, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}


class Up:
    """A running `inferlake up` on its own data directory; may be started again."""

    def __init__(self, data_dir: Path, *arguments: str, **environment: str) -> None:
        self.data_dir, self.port = data_dir, free_port()
        self.arguments, self.environment = arguments, environment
        self.url = f"http://127.0.0.1:{self.port}"
        self.errors = data_dir.parent / "stderr.txt"

    def start(self) -> "Up":
        command = [
            *(sys.executable, "-m", "serving.cli", "up", "--data-dir", str(self.data_dir)),
            *("--port", str(self.port), "--dashboard-port", str(free_port())),
            *self.arguments,
        ]
        environment = {**clean_environment(), **self.environment}
        with self.errors.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=out, text=True
            )
        return self

    def ready_line(self) -> str:
        """The one line of the output; empty: it ended without one."""
        assert self.process.stdout is not None
        readable = select.select([self.process.stdout], [], [], PATIENCE_SECONDS)[0]
        assert readable, self.errors.read_text()
        return self.process.stdout.readline().rstrip()

    def pid(self, name: str) -> int | None:
        """Pid in a ready file, or None."""
        try:
            found = json.loads((self.data_dir / "run" / f"{name}.ready").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return int(found["pid"])

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def end(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        with self.process:
            return self.process.wait(timeout=PATIENCE_SECONDS)


@dataclass(frozen=True, slots=True)
class Site:
    """A running server with its dashboard, and a page of a real browser."""

    up: Up
    dashboard: str
    token: str
    page: Any

    def open(self, path: str) -> Any:
        """The page of this path in a session of its own, signed in: what its URL says is all that
        it knows."""
        self.page.goto(f"{self.dashboard}/{path}")
        self.page.get_by_label("Access token").fill(self.token)
        self.page.get_by_role("button", name="Sign in").click()
        return self.page


SiteOn = Callable[[Path, str], AbstractContextManager[Site]]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where the browser is."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed; the browser tests need it (apt install chromium)")
    return found


@pytest.fixture(scope="session")
def site_on(chromium: str) -> SiteOn:
    """site_on(data_dir, admin's token) -> context of a Site."""
    return lambda data_dir, token: _site(chromium, data_dir, token)


@contextmanager
def _site(chromium: str, data_dir: Path, token: str) -> Iterator[Site]:
    from playwright.sync_api import sync_playwright

    port = free_port()
    up = Up(data_dir, "--dashboard-port", str(port), INFERLAKE_ADMIN_TOKEN=token).start()
    try:
        assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=list(CHROMIUM_FLAGS)
            )
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(PATIENCE_SECONDS * 1000)
            yield Site(up, f"http://127.0.0.1:{port}", token, page)
            browser.close()
    finally:
        assert up.end() == 0, up.errors.read_text()


@pytest.fixture(scope="session")
def up_on() -> type[Up]:
    """up_on(data_dir, *arguments, **environment) -> Up."""
    return Up


@pytest.fixture(scope="session")
def registered() -> Callable[[Path], None]:
    """registered(data_dir): its embedded registry holds main.flows.sum (versions 1 and 2: a + b,
    and ten times that) and main.flows.broken, which cannot be loaded."""
    return _register


def _register(data_dir: Path) -> None:
    folder = data_dir / "mlflow"
    folder.mkdir(parents=True)
    registry = f"sqlite:///{folder / 'mlflow.db'}"
    subprocess.run(
        [sys.executable, "-c", REGISTER, registry, (folder / "artifacts").as_uri()],
        env=clean_environment(),
        check=True,
        capture_output=True,
    )
