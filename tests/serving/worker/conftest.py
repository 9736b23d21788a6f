"""Real models, saved once, and worker processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from serving import wire

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mlflow warns of its own type hints when it is imported
    import mlflow.pyfunc  # noqa: F401

PATIENCE_SECONDS = 120
COLUMNS = [f"c{number}" for number in range(8)]


def wait_for(condition, seconds=PATIENCE_SECONDS):
    """The first true value of the condition. Fails when patience ends."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def eventually():
    return wait_for


CODE = '''
import os, sys, time
import mlflow
import pandas as pd

class Model(mlflow.pyfunc.PythonModel):
    """Answers c0 doubled; c1 tells it to misbehave."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        for what in model_input["c1"]:
            if what == 1: raise ValueError("c1 is one")
            if what == 2: os._exit(3)
            if what == 3: time.sleep(1.5)
            if what == 4: return [object()]
            if what == 5: sys.exit("no more")
            if what == 7: time.sleep(0.3)
            if what == 6: return model_input["c0"].tolist()[:-1]
        return (model_input["c0"] * 2).tolist()

mlflow.models.set_model(Model())
'''

OWN_MODULES = """
import mlflow
import serving.here, capture, wire, features

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [serving.here.NAME, capture.NAME, wire.NAME, features.NAME]

mlflow.models.set_model(Model())
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder with the models linear, proba, forest, mixed, wild, bare, own_modules."""
    folder = tmp_path_factory.mktemp("models")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # Saving with an example opens MLflow's store, by default one in the present folder.
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        _save_all(folder)
    return folder


def _save_all(folder):
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    random = np.random.default_rng(1)
    numbers = pd.DataFrame(random.normal(size=(200, len(COLUMNS))), columns=COLUMNS)
    target = (numbers.c0 + numbers.c1 > 0).astype(int)

    def save(name, model, rows, **more):
        more.setdefault("signature", infer_signature(rows, model.predict(rows)))
        mlflow.sklearn.save_model(
            model,
            folder / name,
            pip_requirements=["mlflow"],
            serialization_format="cloudpickle",
            **more,
        )

    linear = LogisticRegression().fit(numbers, target)
    save("linear", linear, numbers)
    save("proba", linear, numbers, pyfunc_predict_fn="predict_proba")
    save("bare", linear, numbers, signature=False)
    save("forest", RandomForestClassifier(5, n_jobs=1).fit(numbers, target), numbers)
    mixed = pd.DataFrame(
        {
            "carrier": random.choice(["UA", "AA"], 200),
            "hour": random.normal(size=200),
            "seats": random.integers(0, 300, 200),
            "late": random.integers(0, 2, 200) == 1,
        }
    )
    pipeline = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
            (StandardScaler(), ["hour", "seats"]),
            ("passthrough", ["late"]),
        ),
        LogisticRegression(),
    ).fit(mixed, target)
    save("mixed", pipeline, mixed, pyfunc_predict_fn="predict_proba", input_example=mixed.head(5))

    wild = folder / "wild.py"
    wild.write_text(CODE)
    mlflow.pyfunc.save_model(
        folder / "wild",
        python_model=str(wild),
        signature=infer_signature(numbers[["c0", "c1"]], [1.0]),
        pip_requirements=["mlflow"],
    )
    environment = folder / "environment.py"
    environment.write_text(
        "import os\nimport mlflow\n\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def load_context(self, context):\n"
        "        print('NAMES', *sorted(os.environ), flush=True)\n\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return [1.0] * len(model_input)\n\n"
        "mlflow.models.set_model(Model())\n"
    )
    mlflow.pyfunc.save_model(
        folder / "environment",
        python_model=str(environment),
        signature=infer_signature(numbers[["c0"]], [1.0]),
        pip_requirements=["mlflow"],
    )
    own = folder / "code"
    for package in ("serving", "capture", "features"):
        (own / package).mkdir(parents=True)
        (own / package / "__init__.py").write_text(f"NAME = 'my {package}'")
    (own / "serving" / "here.py").write_text("NAME = 'my serving.here'")
    (own / "wire.py").write_text("NAME = 'my wire'")
    (folder / "own_modules.py").write_text(OWN_MODULES)
    import sys

    before, path = dict(sys.modules), list(sys.path)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("serving", "capture")]:
        del sys.modules[name]  # save_model runs the model's file, which imports its own
    sys.path.insert(0, str(own))
    try:
        mlflow.pyfunc.save_model(
            folder / "own_modules",
            python_model=str(folder / "own_modules.py"),
            code_paths=[str(own / name) for name in ("serving", "capture", "features", "wire.py")],
            pip_requirements=["mlflow"],
        )
    finally:
        sys.path[:] = path
        for name in [n for n in sys.modules if n.partition(".")[0] in ("serving", "capture")]:
            del sys.modules[name]
        sys.modules.update(before)


class Client:
    """A connection to a worker."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_SECONDS)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._reader = wire.answer_reader()
        self._found = []

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def next(self):
        """The next answer; None when the worker closed the connection."""
        while not self._found:
            data = self.socket.recv(1 << 20)
            if not data:
                return None
            self._found = self._reader.feed(data)
        return self._found.pop(0)

    def ask(self, *frames):
        """One answer per frame, in the order of arrival."""
        self.send(*frames)
        return [self.next() for _ in frames]

    def report(self):
        """What the worker says of itself."""
        return json.loads(self.ask(wire.pack_probe(1))[0].body)

    def close(self):
        self.socket.close()


class Process:
    """A worker that was started; `connect` waits until it is ready."""

    def __init__(self, folder, model, **more):
        self.socket = folder / "w.sock"
        self.log = folder / "worker.log"
        self.pid = None
        spec = {
            "endpoint": "e",
            "entity": "m",
            "served_entity_id": "s1",
            "socket": str(self.socket),
            "model_path": str(model),
            "snapshots_dir": str(folder / "snapshots"),
            **more,
        }
        self.spec = folder / "spec.json"
        self.spec.write_text(json.dumps(spec))
        self.clients = []

    def alive(self):
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state not in "ZX"

    def connect(self):
        def connected():
            assert self.alive(), self.log.read_text()
            try:
                return Client(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                return None

        client = wait_for(connected)
        self.clients.append(client)
        return client

    def end(self):
        for client in self.clients:
            client.close()
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)


class Zygote:
    """A running zygote."""

    def __init__(self, folder):
        self.path = folder / "z.sock"
        self.log = folder / "zygote.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "serving.worker.zygote", "--socket", str(self.path)],
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: self.path.exists() or self.popen.poll() is not None)
        assert self.popen.poll() is None, self.log.read_text()

    def order(self, line):
        """What it answers to one line of an order."""
        with socket.socket(socket.AF_UNIX) as order:
            order.settimeout(PATIENCE_SECONDS)
            order.connect(str(self.path))
            order.sendall(line)
            order.shutdown(socket.SHUT_WR)
            answer = b""
            while part := order.recv(65_536):
                answer += part
        return json.loads(answer)

    def fork(self, process, environment=None):
        """Start a replica as a fork."""
        environment = {"PATH": os.environ["PATH"], **(environment or {})}
        order = {"spec": str(process.spec), "env": environment, "log": str(process.log)}
        process.pid = self.order(json.dumps(order).encode() + b"\n")["pid"]
        return process


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """One zygote for all tests: replicas start in a fraction of a second."""
    started = Zygote(tmp_path_factory.mktemp("zygote"))
    yield started
    started.popen.terminate()
    assert started.popen.wait(60) == 0


@pytest.fixture
def worker(tmp_path, models, zygote):
    """worker(name of a model, more of its spec) -> a replica; ended after the test."""
    started = []

    def start(name, **more):
        folder = tmp_path / f"worker{len(started)}"
        folder.mkdir()
        started.append(Process(folder, Path(models) / name, **more))
        return zygote.fork(started[-1])

    yield start
    for process in started:
        process.end()


@pytest.fixture
def unstarted(tmp_path, models):
    """unstarted(name of a model, name of its folder) -> its spec and log, for a parent to fork."""
    made = []

    def make(name, place="one"):
        (tmp_path / place).mkdir()
        made.append(Process(tmp_path / place, Path(models) / name))
        return made[-1]

    yield make
    for process in made:
        if process.pid is not None:
            process.end()


@pytest.fixture
def fresh(tmp_path, models):
    """fresh(name of a model) -> (replica, its Popen): started by the plain command."""
    started = []

    def start(name):
        process = Process(tmp_path, Path(models) / name)
        with process.log.open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "serving.worker", "--spec", str(process.spec)],
                cwd=tmp_path,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.pid = popen.pid
        started.append((process, popen))
        return process, popen

    yield start
    for process, popen in started:
        process.end()
        popen.wait()


@pytest.fixture(scope="session")
def records():
    """records(columns...) -> the bytes of a request, one row per dict."""

    def encode(*rows, **more):
        return json.dumps({"dataframe_records": list(rows), **more}).encode()

    return encode


@pytest.fixture(autouse=True, scope="session")
def quiet():
    """No library of this process calls anybody."""
    os.environ.update(DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true")
