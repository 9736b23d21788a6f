"""A real gateway and committer on a data directory of their own; tests play the controller."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from capture import database
from capture.settings import Settings
from serving import replica_state
from serving import state as sql

ADMIN = "bootstrap-admin-token"
SERVICE = "service-token-of-this-start"
START_SECONDS = 120.0


@dataclass(frozen=True)
class Server:
    """A running gateway: its address, settings, and state database."""

    url: str
    settings: Settings
    engine: sa.Engine

    def send(
        self, method: str, path: str, body: Any = None, token: str | None = ADMIN, **more: Any
    ) -> httpx2.Response:
        """One request; body: JSON."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= more.pop("headers", {})
        if body is not None:
            more["json"] = body
        return httpx2.request(
            method, self.url + path, headers=headers, timeout=60, trust_env=False, **more
        )

    def client(self) -> httpx2.Client:
        """The administrator on a connection that is kept."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The JSON of a request that must succeed."""
        response = self.send(method, path, body, **more)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
        """Status and message of a request that must be refused in the envelope."""
        response = self.send(method, path, body, **more)
        told = response.json()
        assert set(told) == {"error_code", "message"}, told
        assert response.status_code >= 400
        return response.status_code, told["message"]

    def token(self, user: str, lifetime_seconds: int | None = None) -> str:
        """A token of a user."""
        body = {"user": user, "lifetime_seconds": lifetime_seconds}
        text: str = self.ok("POST", "/api/1.0/tokens", body)["token"]
        return text

    def until(self, path: str, wanted: Callable[[Any], bool], **more: Any) -> Any:
        """The JSON of a path, read again until it is as wanted; 503 is a reason to ask again, as
        it is for any client."""
        ends = time.monotonic() + START_SECONDS
        while True:
            answer = self.send("GET", path, **more)
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200 and wanted(answer.json()):
                return answer.json()
            assert time.monotonic() < ends, answer.text
            time.sleep(0.05)

    def complete(self, name: str) -> None:
        """Do what the controller does: every entity answers, the pending configuration is live."""
        with database.transaction(self.engine) as db:
            row = sql.endpoint(db, name)
            for wanted in sql.desired(db):
                if wanted.name == name:
                    for entity in wanted.entities:
                        replica_state.set_entity_state(
                            db, row.id, entity.id, "DEPLOYMENT_READY", "Ready.", 1
                        )
            if row.pending_version is not None:
                sql.complete_update(db, row.id, row.pending_version, time.time_ns() // 1_000_000)


def _write_model(settings: Settings, register: Callable[..., Path]) -> None:
    inputs = [
        {"type": "double", "name": "distance", "required": True},
        {"type": "string", "name": "carrier", "required": False},
    ]
    for version in (1, 2, 3):
        aliases = ("champion",) if version == 2 else ()
        register("main.f.m", version, inputs, aliases)


@pytest.fixture(scope="module")
def server(gateway: Server) -> Iterator[Server]:
    """The one gateway, without the endpoints of other files: which files share a process, and in
    what order, is pytest-xdist's affair."""
    yield gateway
    for endpoint in gateway.ok("GET", "/api/2.0/serving-endpoints")["endpoints"]:
        gateway.ok("DELETE", f"/api/2.0/serving-endpoints/{endpoint['name']}")


@pytest.fixture(scope="session")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, registering: Callable[[Settings], Any]
) -> Iterator[Server]:
    """One gateway for all tests of the API: those of a file use endpoints of different names."""
    data_dir = tmp_path_factory.mktemp("gateway") / "data"
    settings = Settings(data_dir=data_dir, wal_seal_seconds=0.05)
    database.migrate(settings)
    _write_model(settings, registering(settings))
    with running(settings) as url:
        engine = database.open_engine(settings)
        yield Server(url, settings, engine)
        engine.dispose()


class running:
    """`with running(settings) as url`: gateway and committer, from ready to ended."""

    def __init__(self, settings: Settings, more: Mapping[str, str] | None = None) -> None:
        self.settings, self.more = settings, dict(more or {})

    def __enter__(self) -> str:
        environment = {
            **os.environ,
            "INFERLAKE_DATA_DIR": str(self.settings.data_dir),
            "INFERLAKE_ADMIN_TOKEN": ADMIN,
            "INFERLAKE_SERVICE_TOKEN": SERVICE,
            "INFERLAKE_PORT": "0",
            "INFERLAKE_FAILED_LOGINS_PER_MINUTE": "1000",
            "DO_NOT_TRACK": "1",
            **self.more,
        }
        self.output = (self.settings.data_dir / "gateway.out").open("wb")
        self.processes = {
            name: subprocess.Popen(
                [sys.executable, "-m", module],
                env=environment,
                stdout=self.output,
                stderr=subprocess.STDOUT,
            )
            for name, module in (("gateway", "serving.gateway"), ("committer", "capture"))
        }
        ends = time.monotonic() + START_SECONDS
        for name, process in self.processes.items():
            while not (self.settings.run_dir / f"{name}.ready").exists():
                said = Path(self.output.name).read_text()
                assert process.poll() is None and time.monotonic() < ends, said
                time.sleep(0.05)
        port = json.loads((self.settings.run_dir / "gateway.ready").read_text())["port"]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *failure: Any) -> None:
        codes = []
        for process in self.processes.values():
            process.terminate()
            codes.append(process.wait(60))
        with closing(self.output):
            assert codes == [0, 0], Path(self.output.name).read_text()
