"""What the rows of the fault matrix stand on: a real `inferlake up` with models that misbehave when
told to, clients that note what each request met, and the figures of a row with their bars.

"Clean" is what promises.md calls so: a JSON envelope, status 429, 503 or 504, and a whole number in
`Retry-After` on 429 and 503.
"""

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import httptools
import httpx2
import sqlalchemy as sa

from capture import database
from capture.settings import Settings
from serving import processes, replica_state, state

PATIENCE_SECONDS = 120
WILD = "main.faults.wild"
SUM = "main.faults.sum"
GOOD, TENFOLD, RAISES, DIES, HANGS, MISSING = "1", "2", "3", "4", "5", "99"
# What the versions of WILD, which are files of one model, are told by their environment.
VERSIONS = {
    TENFOLD: {"WILD_FACTOR": "10"},
    RAISES: {"WILD_LOAD": "raise"},
    DIES: {"WILD_LOAD": "die"},
    HANGS: {"WILD_LOAD": "hang"},
}

REGISTER = """
import sys
import mlflow, mlflow.sklearn, pandas
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression
uri, artifacts, code = sys.argv[1:]
mlflow.set_tracking_uri(uri)
experiment = mlflow.create_experiment("faults", artifact_location=artifacts)
mlflow.set_experiment(experiment_id=experiment)
rows = pandas.DataFrame({"x": [1.0, 2.0], "act": ["", ""]})
numbers = pandas.DataFrame({"a": [0.0, 1.0, 0.0, 5.0], "b": [0.0, 0.0, 1.0, 2.0]})
with mlflow.start_run():
    made = mlflow.pyfunc.log_model(
        name="model", python_model=code, signature=infer_signature(rows, [1.0, 2.0]),
        pip_requirements=["mlflow"], registered_model_name="main.faults.wild",
    )
for _ in range(4):
    mlflow.register_model(made.model_uri, "main.faults.wild")
for factor in (1, 10):
    fitted = LinearRegression().fit(numbers, factor * (numbers.a + numbers.b))
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            fitted, name="model", signature=infer_signature(numbers, fitted.predict(numbers)),
            registered_model_name="main.faults.sum", pip_requirements=["mlflow", "scikit-learn"],
            serialization_format="cloudpickle",
        )
"""


class Figure(NamedTuple):
    """One number of a row. `most`, `least`: its bar; None: none on that side, only told. `clocked`:
    it says something of the machine as well, so that only a quiet one can judge it."""

    what: str
    value: float
    most: float | None = None
    least: float | None = None
    clocked: bool = False

    @property
    def met(self) -> bool:
        over = self.most is not None and not self.value <= self.most
        return not (over or (self.least is not None and not self.value >= self.least))

    def __str__(self) -> str:
        bars = [f"<= {self.most:g}"] if self.most is not None else []
        bars += [f">= {self.least:g}"] if self.least is not None else []
        told = f" (bar {', '.join(bars)}){'' if self.met else ' MISSED'}" if bars else ""
        return f"{self.what} {self.value:.4g}{told}"


def clocked(
    what: str, value: float, most: float | None = None, least: float | None = None
) -> Figure:
    """A figure that a busy machine makes worse."""
    return Figure(what, value, most, least, clocked=True)


def until(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """The first true value. Raises TimeoutError when patience ends."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"Not within {seconds:g} s.")
        time.sleep(0.01)
    return found


def register(place: Path) -> str:
    """A registry with both models; gives its URI."""
    uri = f"sqlite:///{place / 'mlflow.db'}"
    code = Path(__file__).with_name("faults_wild.py")
    command = [sys.executable, "-c", REGISTER, uri, (place / "artifacts").as_uri(), str(code)]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return uri


# --- clients --------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a request met. `sent`: monotonic; `status` 0: the connection was refused or lost."""

    sent: float
    seconds: float
    status: int
    entity: str | None
    retry_after: str | None
    body: bytes

    @property
    def clean(self) -> bool:
        """An answer as promised to one that cannot be served now."""
        if self.status not in (429, 503, 504):
            return False
        told = self.status == 504 or (self.retry_after or "").isdigit()
        try:
            return told and {"error_code", "message"} <= json.loads(self.body).keys()
        except ValueError:
            return False

    @property
    def values(self) -> list[float]:
        """The predictions."""
        found: list[float] = json.loads(self.body)["predictions"]
        return found


class _Connection(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[bool] | None = None
        self._reset()

    def _reset(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[bytes, str] = {}
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(False)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(True)

    async def exchange(self, request: bytes) -> bool:
        """Whether a whole answer came."""
        self._reset()
        if self.transport is None:
            return False
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiter


class Clients:
    """Any number of clients of one endpoint, in the running loop."""

    def __init__(self, port: int, token: str, endpoint: str) -> None:
        self._port = port
        self._head = (
            f"POST /serving-endpoints/{endpoint}/invocations HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        ).encode()
        self._free: list[_Connection] = []
        self._made: list[_Connection] = []

    def request(self, body: bytes) -> bytes:
        """The bytes of a query."""
        return self._head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    async def ask(self, body: bytes) -> Answer:
        """One request; sent once, whatever happens."""
        sent = time.monotonic()
        connection = await self._connection()
        whole = connection is not None and await connection.exchange(self.request(body))
        seconds = time.monotonic() - sent
        if connection is None or not whole:
            return Answer(sent, seconds, 0, None, None, b"")
        status, headers = connection.parser.get_status_code(), connection.headers
        found = Answer(
            sent, seconds, status, headers.get(b"served-model-name"), headers.get(b"retry-after"),
            connection.body,
        )  # fmt: skip
        if connection.transport is not None and headers.get(b"connection") != "close":
            self._free.append(connection)
        return found

    async def connect(self, count: int) -> None:
        """Have so many connections open before they are needed, as clients in use do."""
        for _ in range(count - len(self._free)):
            made = await self._connected()
            if made is not None:
                self._free.append(made)

    async def _connection(self) -> _Connection | None:
        while self._free:
            known = self._free.pop()
            if known.transport is not None and not known.transport.is_closing():
                return known
        return await self._connected()

    async def _connected(self) -> _Connection | None:
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        except OSError:
            return None
        self._made.append(made)
        return made

    async def close(self) -> None:
        """Every connection, those too that the server is about to close."""
        for connection in self._made:
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)  # for the loop to close what is behind them


class Load:
    """Requests at an even rate, whatever becomes of them, from a thread of its own."""

    def __init__(
        self, port: int, token: str, endpoint: str, rate: float, body: Callable[[int], bytes]
    ) -> None:
        self.answers: list[Answer] = []
        self._clients = Clients(port, token, endpoint)
        self._rate, self._body = rate, body
        self._stopped = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join()

    async def _run(self) -> None:
        started, number = time.monotonic(), 0
        asked: set[asyncio.Task[None]] = set()
        while not self._stopped:
            due = int((time.monotonic() - started) * self._rate)
            for index in range(number, due):
                task = asyncio.create_task(self._ask(self._body(index)))
                asked.add(task)
                task.add_done_callback(asked.discard)
            number = max(number, due)
            await asyncio.sleep(min(0.005, 1 / self._rate))
        await asyncio.gather(*asked)
        await self._clients.close()

    async def _ask(self, body: bytes) -> None:
        self.answers.append(await self._clients.ask(body))

    def first_good_after(self, moment: float) -> Answer | None:
        """The first request sent after a moment that was answered with 200."""
        good = [one for one in self.answers if one.sent >= moment and one.status == 200]
        return min(good, key=lambda one: one.sent + one.seconds) if good else None


def failed(answers: Sequence[Answer]) -> int:
    """How many were not answered with 200."""
    return sum(one.status != 200 for one in answers)


def unclean(answers: Sequence[Answer]) -> int:
    """How many were neither answered nor told cleanly why not."""
    return sum(one.status != 200 and not one.clean for one in answers)


def p99(answers: Sequence[Answer]) -> float:
    """Seconds within which 99 of 100 were answered."""
    times = sorted(one.seconds for one in answers)
    return times[int(len(times) * 0.99)] if times else float("nan")


def wild(act: str = "", x: float = 1.0) -> bytes:
    """A query of one row of the wild model."""
    return json.dumps({"dataframe_records": [{"x": x, "act": act}]}).encode()


def plus(a: float, b: float = 0.0) -> bytes:
    """A query of one row of the sum."""
    return json.dumps({"dataframe_records": [{"a": a, "b": b}]}).encode()


# --- the server -----------------------------------------------------------------------------------


class House:
    """`inferlake up` on a data directory of its own, with a registry that may be others' too."""

    def __init__(
        self, folder: Path, registry: str, dashboard: bool = False, **environment: str
    ) -> None:
        self.settings = Settings(data_dir=folder / "data", mlflow_tracking_uri=registry)
        self.port, self.token = _free_port(), "the-administrator-of-the-faults"
        self.url = f"http://127.0.0.1:{self.port}"
        self.errors = folder / "stderr.txt"
        self._pages = ["--dashboard-port", str(_free_port())] if dashboard else ["--no-dashboard"]
        self._environment = {
            **{name: v for name, v in os.environ.items() if not name.startswith("INFERLAKE_")},
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": registry,
            "INFERLAKE_ADMIN_TOKEN": self.token,
            **environment,
        }
        headers = {"Authorization": f"Bearer {self.token}"}
        self.api = httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
        self._engine: sa.Engine | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()
        if self._engine is not None:
            self._engine.dispose()
        if self.process.poll() is None:
            self.end()

    def start(self, patience: float = PATIENCE_SECONDS) -> float:
        """Start it; gives the seconds until it said that it is ready."""
        command = [
            *(sys.executable, "-m", "serving.cli", "up", "--data-dir", str(self.settings.data_dir)),
            *("--port", str(self.port), *self._pages),
        ]
        started = time.monotonic()
        with self.errors.open("ab") as out:
            self.process = subprocess.Popen(
                command, env=self._environment, stdout=subprocess.PIPE, stderr=out, text=True
            )
        assert self.process.stdout is not None
        readable = select.select([self.process.stdout], [], [], patience)[0]
        if not readable or not self.process.stdout.readline().startswith("ready "):
            raise TimeoutError(f"It did not start: {self.errors.read_text()[-2000:]}")
        return time.monotonic() - started

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        with self.process:
            return self.process.wait(timeout=PATIENCE_SECONDS)

    # -- endpoints

    def create(self, name: str, *entities: dict[str, Any], **config: Any) -> None:
        """An endpoint, until it serves; nothing, if there is one of this name."""
        if self.api.get(f"/api/2.0/serving-endpoints/{name}").status_code == 200:
            return
        body = {"name": name, "config": {"served_entities": list(entities), **config}}
        _accepted(self.api.post("/api/2.0/serving-endpoints", json=body))
        until(lambda: self.endpoint(name)["state"]["ready"] == "READY")

    def update(self, name: str, *entities: dict[str, Any], **config: Any) -> float:
        """A new configuration, until it is live; gives the moment when that was known."""
        path = f"/api/2.0/serving-endpoints/{name}/config"
        _accepted(self.api.put(path, json={"served_entities": list(entities), **config}))
        said = until(lambda: _settled(self.endpoint(name)))
        if said != "NOT_UPDATING":
            raise RuntimeError(f"The update of '{name}' ended as {said}.")
        return time.monotonic()

    def endpoint(self, name: str) -> dict[str, Any]:
        """The endpoint object."""
        reply = self.api.get(f"/api/2.0/serving-endpoints/{name}")
        found: dict[str, Any] = _accepted(reply).json()
        return found

    def delete(self, name: str) -> None:
        """The endpoint, and wait until its processes are gone."""
        _accepted(self.api.delete(f"/api/2.0/serving-endpoints/{name}"))

    # -- asking

    def clients(self, endpoint: str) -> Clients:
        """Clients of an endpoint, for the running loop."""
        return Clients(self.port, self.token, endpoint)

    def load(self, endpoint: str, rate: float, body: Callable[[int], bytes] | bytes) -> Load:
        """A load of so many requests a second."""
        made = body if callable(body) else (lambda _: body)
        return Load(self.port, self.token, endpoint, rate, made)

    def ask(self, endpoint: str, *bodies: bytes) -> list[Answer]:
        """All of these at once, each on a connection of its own that is open already; their
        answers in order."""

        async def run() -> list[Answer]:
            clients = self.clients(endpoint)
            await clients.connect(len(bodies))
            found = await asyncio.gather(*map(clients.ask, bodies))
            await clients.close()
            return list(found)

        return asyncio.run(run())

    def busy(self) -> float:
        """Requests that the gateway says are in line or in a model."""
        text = self.api.get("/metrics").text
        names = "inferlake_(?:waiting|in_flight)_requests"
        return sum(float(found) for found in re.findall(rf"^{names}{{[^}}]*}} (\S+)$", text, re.M))

    # -- processes

    def pid(self, name: str) -> int | None:
        """Pid in a ready file, or None."""
        try:
            found = json.loads((self.settings.run_dir / f"{name}.ready").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return int(found["pid"])

    @property
    def engine(self) -> sa.Engine:
        """The state database, to look at."""
        if self._engine is None:
            self._engine = database.open_engine(self.settings)
        return self._engine

    def replicas(self, endpoint: str) -> list[replica_state.Replica]:
        """READY replicas of an endpoint whose process lives."""
        return [one for one in self._living(endpoint) if one.state == "READY"]

    def worker(self, endpoint: str) -> int:
        """Pid of the first READY replica, once there is one."""
        pid = until(lambda: self.replicas(endpoint))[0].pid
        assert pid is not None
        return int(pid)

    def worker_pids(self, endpoint: str | None = None) -> set[int]:
        """Pids of all replicas that live, whatever their state; None: of all endpoints."""
        return {one.pid for one in self._living(endpoint) if one.pid is not None}

    def _living(self, endpoint: str | None) -> list[replica_state.Replica]:
        with database.reading(self.engine) as db:
            row = None if endpoint is None else state.find_endpoint(db, endpoint)
            known = replica_state.all_replicas(db)
        return [
            one
            for one in known
            if (endpoint is None or (row is not None and one.endpoint_id == row.id))
            and one.pid is not None
            and processes.alive(processes.Identity(one.pid, one.pid_start or 0))
        ]

    def tree(self) -> list[processes.Identity]:
        """Every process of this server, the supervisor first, workers left out."""
        found = [self.process.pid]
        for parent in found:
            found += _children(parent)
        workers = self.worker_pids()
        return [each for pid in found if pid not in workers and (each := processes.identity(pid))]

    def kill(self, pid: int | None) -> float:
        """SIGKILL; gives the moment."""
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return time.monotonic()

    def kill_everything(self) -> None:
        """SIGKILL to all processes but the workers."""
        for each in self.tree():
            with contextlib.suppress(ProcessLookupError):  # children die with the supervisor
                os.kill(each.pid, signal.SIGKILL)
        with self.process:
            self.process.wait()

    def left(self) -> list[int]:
        """Pids of processes that still have to do with this data directory."""
        wanted, found = str(self.settings.data_dir).encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                # An ended process shows neither.
                if wanted in seen and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found


class Watched:
    """The most that a number reached while the context lasted, looked at 50 times a second."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.most = 0.0
        self._read = read
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.02):
            with contextlib.suppress(OSError):
                self.most = max(self.most, self._read())


def entity(model: str, version: str = "1", **more: Any) -> dict[str, Any]:
    """A served entity; its name tells the version."""
    told = VERSIONS.get(version) if model == WILD else None
    return {
        **({} if told is None else {"environment_vars": told}),
        "name": f"v{version}",
        "entity_name": model,
        "entity_version": version,
        "workload_size": "Small",
        "scale_to_zero_enabled": False,
        **more,
    }


def split(**shares: int) -> dict[str, Any]:
    """A traffic_config."""
    routes = [{"served_model_name": k, "traffic_percentage": v} for k, v in shares.items()]
    return {"routes": routes}


def _settled(endpoint: dict[str, Any]) -> str | None:
    said = str(endpoint["state"]["config_update"])
    return None if said == "IN_PROGRESS" else said


def _accepted(reply: httpx2.Response) -> httpx2.Response:
    if reply.status_code != 200:
        raise RuntimeError(f"{reply.status_code}: {reply.text[:500]}")
    return reply


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]
    return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
