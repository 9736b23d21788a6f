"""A real gateway process and real replicas; the tests play the controller in SQL."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest

from capture import blocks, database, decoding
from capture.settings import Settings
from serving import access, access_state, replica_state
from serving import state as sql

# The models and the zygote of the worker's tests.
_path = Path(__file__).parents[1] / "worker" / "conftest.py"
_spec = importlib.util.spec_from_file_location("worker_fixtures", _path)
workers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(workers)
models, zygote, quiet, eventually = (
    workers.models,
    workers.zygote,
    workers.quiet,
    workers.eventually,
)

ADMIN = "bootstrap-admin-token"
START_SECONDS = 120


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Gateway:
    """A gateway process on a data directory of its own."""

    def __init__(self, data_dir, models, zygote, **environment):
        data_dir.mkdir(mode=0o700)
        self.settings = Settings(data_dir=data_dir)
        self.engine = None
        self.replicas = []
        self._models, self._zygote = models, zygote
        self._environment = environment
        database.migrate(self.settings)
        self.engine = database.open_engine(self.settings)
        self.settings.run_dir.mkdir(exist_ok=True)
        self._numbers = iter(range(10_000))

    # -- process

    def start(self):
        ready = self.settings.run_dir / "gateway.ready"
        ready.unlink(missing_ok=True)
        self.output = self.settings.data_dir / "gateway.log"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving.gateway"],
                env={
                    **os.environ,
                    "INFERLAKE_DATA_DIR": str(self.settings.data_dir),
                    "INFERLAKE_ADMIN_TOKEN": ADMIN,
                    "INFERLAKE_SERVICE_TOKEN": "the-service-token",
                    "INFERLAKE_PORT": "0",
                    "INFERLAKE_FAILED_LOGINS_PER_MINUTE": "100000",
                    "DO_NOT_TRACK": "1",
                    **self._environment,
                },
                stdout=output,
                stderr=output,
            )
        workers.wait_for(lambda: ready.exists() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.output.read_text()
        self.port = json.loads(ready.read_text())["port"]
        return self

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def end(self):
        self.process.kill()
        self.process.wait()
        for replica in self.replicas:
            replica.end()
        self.engine.dispose()

    # -- what the controller and the API would do

    def endpoint(
        self, name, entities, sticky=None, capture=True, rate_limits=None, stopped=False, grants=()
    ):
        """An endpoint with a live configuration. entities: (name, model or None, percentage)."""
        config = {
            "served_entities": [
                {"id": self.entity_id(name, entity), "name": entity, "entity_name": "main.d.m",
                 "entity_version": str(number + 1), "workload_size": "Small"}
                for number, (entity, _, _) in enumerate(entities)
            ],
            "traffic_config": {
                "routes": [
                    {"served_model_name": entity, "served_entity_name": entity,
                     "traffic_percentage": percentage}
                    for entity, _, percentage in entities
                ],
                "sticky": sticky,
            },
            "auto_capture_config": {
                "enabled": True, "catalog_name": "main", "schema_name": "d",
                "table_name_prefix": name,
            } if capture else None,
        }  # fmt: skip
        with database.transaction(self.engine) as db:
            seen = sql.find_endpoint(db, name)
            if seen is None:
                seen = _endpoint(name, stopped, rate_limits)
                sql.insert_endpoint(db, seen)
            sql.accept_configuration(
                db, seen, config, created_by="admin", reason=None, origin="user", at_once=True,
                now_ms=1,
            )  # fmt: skip
            access_state.put_grants(
                db,
                seen.id,
                [access_state.Grant(seen.id, user, "user", level) for user, level in grants],
            )
        for entity, model, _ in entities:
            if model is not None:
                self.replica(name, entity, model)
        self.taken_over()

    def entity_id(self, endpoint, entity):
        return f"{endpoint}-{entity}"

    def replica(self, endpoint, entity, model, **spec):
        """One more replica, ready and in the route table."""
        number = next(self._numbers)
        folder = self.settings.data_dir / f"r{number}"
        folder.mkdir()
        more = {"served_entity_id": self.entity_id(endpoint, entity), "entity": entity, **spec}
        replica = workers.Process(folder, self._models / model, **more)
        self._zygote.fork(replica)
        replica.connect()
        replica.id = f"replica{number}"
        self.replicas.append(replica)
        with database.transaction(self.engine) as db:
            replica_state.add_replica(
                db,
                replica_state.Replica(
                    replica.id, sql.find_endpoint(db, endpoint).id, more["served_entity_id"],
                    str(replica.socket), replica.pid, 0.0, "READY", None, 1, 1, 4,
                ),
            )  # fmt: skip
        return replica

    def withdraw(self, replica):
        """Take a replica out of the route table."""
        with database.transaction(self.engine) as db:
            replica_state.remove_replica(db, replica.id)

    def token(self, user):
        """A token of a user; when it is known, so is every earlier change."""
        text = access.token_text(os.urandom(8).hex(), "x" * 43)
        with database.transaction(self.engine) as db:
            access_state.add_token(
                db,
                access_state.Token(text[3:19], user, None, access.token_hash(text), 1, None, None),
            )
        workers.wait_for(lambda: self.get("/api/1.0/me", text).status == 200)
        return text

    def taken_over(self):
        """Wait until the gateway has the present route table."""
        self.token("somebody")

    # -- what a client does

    def ask(self, name, rows=None, *, token=ADMIN, entity=None, headers=None, body=None):
        """One query; `rows`: records."""
        path = f"/serving-endpoints/{name}"
        path += f"/served-models/{entity}/invocations" if entity else "/invocations"
        if body is None:
            body = json.dumps({"dataframe_records": rows}).encode()
        found = httpx2.request(
            "POST",
            f"http://127.0.0.1:{self.port}{path}",
            content=body,
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {token}"} if token else {}),
                **(headers or {}),
            },
            timeout=120,
            trust_env=False,
        )
        return Answer(found.status_code, dict(found.headers), found.content)

    def get(self, path, token=ADMIN):
        found = httpx2.get(
            f"http://127.0.0.1:{self.port}{path}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
            trust_env=False,
        )
        return Answer(found.status_code, dict(found.headers), found.content)

    def post(self, path, body, token=ADMIN):
        found = httpx2.post(
            f"http://127.0.0.1:{self.port}{path}",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
            trust_env=False,
        )
        return Answer(found.status_code, dict(found.headers), found.content)

    def connect(self):
        """A bare connection, for what no client library sends."""
        found = socket.create_connection(("127.0.0.1", self.port), 60)
        return Bare(found)

    # -- what the committer would read

    def logged(self, endpoint):
        """Rows of an endpoint's log, by request id."""
        while True:
            try:
                return self._logged(f"main.d.{endpoint}_payload")
            except FileNotFoundError:
                continue  # sealed, and so renamed, since the folder was listed

    def _logged(self, table):
        tables = []
        for path in sorted(self.settings.wal_dir.glob("*/*.*")):
            if path.suffix in (".seg", ".open"):
                data = path.read_bytes()
                found = blocks.read_segment(data)[1].blocks
                mine = [one for one in found if one.table == table]
                if mine:
                    tables.append(decoding.decode(data, mine))
        rows = pa.concat_tables(tables).to_pylist() if tables else []
        return {row["databricks_request_id"]: row for row in rows}


def _endpoint(name, stopped, rate_limits):
    return sql.Endpoint(
        name.ljust(32, "0"), name, "admin", None, 1, 1, None, None, "NOT_UPDATING", None, None,
        stopped, [], None, rate_limits, None, None, False, None, 1,
    )  # fmt: skip


class Bare:
    """Bytes to and from a gateway."""

    def __init__(self, connected):
        self.socket = connected
        self.socket.settimeout(60)
        self._rest = b""

    def send(self, data):
        self.socket.sendall(data)

    def receive(self):
        """(status, headers, body) of the next reply; None at the end of the connection."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                return None
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            if not self._more():
                return None
        body, self._rest = self._rest[:length], self._rest[length:]
        return int(status.split()[1]), headers, body

    def closed(self):
        """Whether the other side ends the connection, with nothing more to say."""
        return not self._more()

    def _more(self):
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        self._rest += data
        return bool(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def query(name="wild", body=b"", more=(), version="1.1"):
    """The bytes of a query."""
    lines = [
        f"POST /serving-endpoints/{name}/invocations HTTP/{version}",
        "host: test",
        f"authorization: Bearer {ADMIN}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture(scope="session")
def asking():
    """asking(name, body, more headers) -> the bytes of a query."""
    return query


@pytest.fixture(scope="session")
def start(models, zygote):
    """start(data directory, environment...) -> a running gateway; ended after all tests."""
    started = []

    def begin(data_dir, **environment):
        started.append(Gateway(data_dir, models, zygote, **environment))
        return started[-1].start()

    yield begin
    for one in started:
        one.end()


@pytest.fixture
def gateway(tmp_path, models, zygote):
    """gateway(environment...) -> a running gateway of its own; ended after the test."""
    started = []

    def begin(**environment):
        folder = tmp_path / f"g{len(started)}"
        started.append(Gateway(folder, models, zygote, **environment))
        return started[-1].start()

    yield begin
    for one in started:
        one.end()


@pytest.fixture(scope="session", params=["direct", "plain ASGI"])
def shared(request, tmp_path_factory, models, zygote):
    """One gateway for many tests, which use endpoints of different names: the short way from the
    parser, and its twin."""
    folder = tmp_path_factory.mktemp("gateway") / "data"
    plain = {"INFERLAKE_PLAIN_ASGI": "true"} if request.param != "direct" else {}
    one = Gateway(folder, models, zygote, **plain)
    one.start()
    one.endpoint("wild", [("m", "wild", 100)], grants=[("viewer", "CAN_VIEW"), ("u", "CAN_QUERY")])
    yield one
    one.end()
