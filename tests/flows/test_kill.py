"""`kill -9` of everything in mid-replay: the record has what was answered, once."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import orjson
import polars as pl
import psutil
import pytest

from capture import delta
from capture.settings import Settings
from serving import processes
from serving.demo import client

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 240
CONNECTIONS = 32
KILL_AFTER = (400, 900)  # answers of the round with status 200
AFTERWARDS = 300
ENDPOINT = "killed"
TABLE = f"main.default.{ENDPOINT}_payload"
CONFIG = {
    "served_entities": [
        {
            "name": "v1",
            "entity_name": "main.flows.sum",
            "entity_version": "1",
            "workload_size": "Small",
            "scale_to_zero_enabled": False,
        }
    ],
    "auto_capture_config": {"catalog_name": "main", "schema_name": "default", "enabled": True},
}


def eventually(wanted: Callable[[], Any]) -> Any:
    """The first true value. Fails when patience ends."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not (found := wanted()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return found


class Replay:
    """Requests of one client, and which of them were answered in full."""

    def __init__(self, up: Any) -> None:
        self.up = up
        self.settings = Settings(data_dir=up.data_dir)
        self.numbers = itertools.count()
        self.sent: set[str] = set()
        self.answers: dict[str, int] = {}  # client_request_id -> status
        self.served = 0  # of them with status 200

    @property
    def token(self) -> str:
        return (self.up.data_dir / "admin-token").read_text().strip()

    def begin(self) -> None:
        """`inferlake up`, until it is ready."""
        self.up.start()
        assert self.up.ready_line() == f"ready {self.up.url}", self.up.errors.read_text()

    def create(self) -> None:
        """The endpoint, until it serves."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx2.Client(base_url=self.up.url, headers=headers, timeout=60) as api:
            body = {"name": ENDPOINT, "config": CONFIG}
            made = api.post("/api/2.0/serving-endpoints", json=body)
            assert made.status_code == 200, made.text
            path = f"/api/2.0/serving-endpoints/{ENDPOINT}"
            eventually(lambda: api.get(path).json()["state"]["ready"] == "READY")

    def answered_until(self, answered: int) -> None:
        """Send until this many more requests were answered with 200."""
        asyncio.run(self._send(self.served + answered, None))

    def killed_after(self, answered: int) -> None:
        """Send until this many more requests were answered with 200 and rows were committed
        meanwhile; then kill everything, while the connections go on sending, until each is cut."""
        tree = self._tree()
        asyncio.run(self._send(self.served + answered, tree))
        eventually(self._nothing_is_left)
        self.up.end(signal.SIGKILL)
        assert len(self.sent) > len(self.answers)

    def _nothing_is_left(self) -> bool:
        """Also of what was being started when the others were killed."""
        rest = self._tree()
        _kill(rest)
        return not rest

    async def _send(self, enough: int, tree: list[processes.Identity] | None) -> None:
        commits = self._commits()
        reached = asyncio.Event()

        async def connection(line: client.Client) -> None:
            try:
                while tree is not None or not reached.is_set():
                    await self._ask(line)
                    if self.served >= enough and self._commits() != commits:
                        reached.set()
            except (client.ConnectionLost, OSError):
                assert tree is not None, "A connection was lost, and nobody was killed."

        async with (
            client.Client("127.0.0.1", self.up.port, self.token, CONNECTIONS) as line,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(CONNECTIONS):
                group.create_task(connection(line))
            await reached.wait()
            if tree is not None:
                await asyncio.to_thread(_kill, tree)

    async def _ask(self, line: client.Client) -> None:
        number = next(self.numbers)
        name = f"r{number}"
        # One in ten is refused by the worker: it is answered, and recorded, all the same.
        value: Any = "no number" if number % 10 == 0 else number
        body = {"client_request_id": name, "dataframe_records": [{"a": value, "b": 1.0}]}
        self.sent.add(name)
        answer = await line.post(f"/serving-endpoints/{ENDPOINT}/invocations", orjson.dumps(body))
        self.answers[name] = answer.status
        self.served += answer.status == 200

    def _commits(self) -> int:
        return len(list(delta.path_of(self.settings, TABLE).glob("_delta_log/*.json")))

    def _tree(self) -> list[processes.Identity]:
        """Every process of this data directory, the supervisor first."""
        return [each for pid in _pids_of(self.up.data_dir) if (each := processes.identity(pid))]

    def segments(self) -> dict[Path, list[Path]]:
        """Files of the log by the incarnation that wrote them."""
        return {
            folder: [*folder.glob("*.seg"), *folder.glob("*.open")]
            for folder in self.settings.wal_dir.iterdir()
            if folder.is_dir()
        }


def _pids_of(data_dir: Path) -> Iterator[int]:
    wanted = str(data_dir)
    for each in psutil.process_iter():
        try:
            named = any(wanted in argument for argument in each.cmdline())
            if each.pid != os.getpid() and (
                named or each.environ().get("INFERLAKE_DATA_DIR") == wanted
            ):
                yield each.pid
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _kill(tree: list[processes.Identity]) -> None:
    for each in tree:
        with contextlib.suppress(ProcessLookupError):  # children die with the supervisor
            os.kill(each.pid, signal.SIGKILL)


@pytest.fixture
def replay(
    tmp_path: Path, up_on: type[Any], registered: Callable[[Path], None]
) -> Iterator[Replay]:
    data_dir = tmp_path / "data"
    registered(data_dir)
    replay = Replay(up_on(data_dir, "--no-dashboard"))
    replay.begin()
    try:
        yield replay
    finally:
        replay.up.end()


def test_after_kills_of_everything_each_answer_is_in_the_table_once(replay: Replay) -> None:
    replay.create()
    for answered in KILL_AFTER:
        replay.killed_after(answered)
        dead = list(replay.segments())
        replay.begin()
        eventually(lambda dead=dead: not any(replay.segments().get(each) for each in dead))
        replay.answered_until(AFTERWARDS)
    assert replay.up.end() == 0, replay.up.errors.read_text()
    assert not any(replay.segments().values())

    path = str(delta.path_of(replay.settings, TABLE))
    rows = pl.read_delta(path, columns=["client_request_id", "databricks_request_id"])
    found = Counter(rows["client_request_id"])
    assert {name for name, count in found.items() if count > 1} == set()
    assert replay.answers.keys() - found.keys() == set()
    assert found.keys() <= replay.sent
    assert rows["databricks_request_id"].is_unique().all()
    assert {200, 400} <= set(replay.answers.values())
