"""Webhook receivers in trouble, and a monitor process that dies in the middle of a delivery.

Real receivers, a real process (`python -m monitors`), a real outbox. What a receiver is owed: every
event, in order, a retry under the id of the first attempt."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import standardwebhooks

from capture import database, names, outbox, sealing
from capture.settings import Settings
from monitors import alert_state, delivery

pytestmark = pytest.mark.slow

ENOUGH_BYTES = 64 << 20  # what nobody should read of an answer that has no end


class Receiver:
    """An HTTP server in one of the moods below; `well` answers 204."""

    def __init__(self, mood: str, port: int = 0) -> None:
        self.mood = mood
        self.ids: list[str] = []  # of every attempt, in order
        self.events: list[int] = []
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self.answered: list[str] = []
        self.sent_bytes = 0
        self.closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.take(self)

            def log_message(self, *_: object) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/hook"

    def take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.ids.append(headers["webhook-id"])
        self.events.append(json.loads(body)["data"]["number"])
        self.messages.append((headers, body))
        try:
            getattr(self, self.mood)(request)
            self.answered.append(headers["webhook-id"])
        except OSError:
            pass  # the other side hung up

    def well(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(204)
        request.end_headers()

    def failing(self, request: BaseHTTPRequestHandler) -> None:
        request.send_error(500)

    def redirecting(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(307)
        request.send_header("Location", f"http://127.0.0.1:{self.port}/elsewhere")
        request.end_headers()

    def endless(self, request: BaseHTTPRequestHandler) -> None:
        """A gigabyte, if anybody would read it."""
        request.send_response(200)
        request.end_headers()
        while self.sent_bytes < 1 << 30 and not self.closing.is_set():
            self.sent_bytes += request.wfile.write(b"x" * 65_536)

    def trickling(self, request: BaseHTTPRequestHandler) -> None:
        """A first line without an end, a byte at a time."""
        while self.mood == "trickling" and not self.closing.wait(0.2):
            request.wfile.write(b"x")
        raise ConnectionError("no answer came of this")

    def silent(self, request: BaseHTTPRequestHandler) -> None:
        while self.mood == "silent" and not self.closing.wait(0.02):
            pass
        raise ConnectionError("no answer came of this")

    def first_attempts(self) -> list[str]:
        """Message ids in the order in which they first came."""
        return list(dict.fromkeys(self.ids))

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


class House:
    """A data directory with webhooks; `emit` numbers the events."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        database.migrate(settings)
        self.engine = database.open_engine(settings)
        self.numbers = itertools.count()
        self.receivers: list[Receiver] = []
        self.webhooks: dict[Receiver, str] = {}

    def receiver(self, mood: str) -> Receiver:
        made = Receiver(mood)
        self.receivers.append(made)
        self.webhooks[made] = self.webhook(made.url)
        return made

    def webhook(self, url: str) -> str:
        webhook_id = names.new_id()
        sealed = sealing.encrypt(self.settings, delivery.new_secret())
        webhook = alert_state.Webhook(
            webhook_id, url, ["*"], "standard", None, sealed, None, None, "ann", 1
        )
        with database.transaction(self.engine) as connection:
            alert_state.add_webhook(connection, webhook)
        return webhook_id

    def secret(self, receiver: Receiver) -> str:
        with database.reading(self.engine) as connection:
            webhook = alert_state.get_webhook(connection, self.webhooks[receiver])
        return sealing.decrypt(self.settings, webhook.sealed_secret)

    def emit(self, count: int) -> None:
        with database.transaction(self.engine) as connection:
            for _ in range(count):
                data = {"endpoint": "delay", "number": next(self.numbers)}
                outbox.emit(connection, "alert.opened", data, time.time_ns() // 1_000_000)

    def delivered(self, webhook_id: str) -> int:
        with database.reading(self.engine) as connection:
            found = alert_state.find_deliveries(connection, webhook_id, limit=1_000)
        return sum(one.state == "delivered" for one in found)

    @contextmanager
    def monitor(self) -> Iterator[subprocess.Popen[bytes]]:
        given = {"INFERLAKE_DATA_DIR": str(self.settings.data_dir)}
        process = subprocess.Popen([sys.executable, "-m", "monitors"], env={**os.environ, **given})
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    made = House(settings)
    yield made
    for receiver in made.receivers:
        receiver.close()
    made.engine.dispose()


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_troubled_receivers_get_everything_once_they_are_well_and_delay_nobody(
    house: House,
) -> None:
    moods = ("failing", "redirecting", "trickling", "silent")
    troubled = [house.receiver(mood) for mood in moods]
    endless, well = house.receiver("endless"), house.receiver("well")
    down_port = free_port()
    down_webhook = house.webhook(f"http://127.0.0.1:{down_port}/hook")
    house.emit(20)
    with house.monitor():
        wait_for(lambda: house.delivered(house.webhooks[well]) == 20)
        assert well.events == list(range(20))
        # The others have not got beyond their first event, and two still hang in it.
        assert all(set(receiver.events) == {0} for receiver in troubled)
        assert not any(receiver.answered for receiver in troubled[2:])
        wait_for(lambda: house.delivered(house.webhooks[endless]) == 20)
        assert endless.sent_bytes < ENOUGH_BYTES

        for receiver in troubled:
            receiver.mood = "well"
        risen = Receiver("well", down_port)
        house.receivers.append(risen)
        house.webhooks[risen] = down_webhook
        for receiver in (*troubled, risen):
            wait_for(lambda r=receiver: house.delivered(house.webhooks[r]) == 20)  # type: ignore[misc]
    for receiver in (*troubled, risen, endless, well):
        assert list(dict.fromkeys(receiver.events)) == list(range(20))
        assert len(receiver.first_attempts()) == 20
        # A retry comes right after the attempt that it repeats, under its id.
        assert [i for i, _ in itertools.groupby(receiver.ids)] == receiver.first_attempts()
        headers, body = receiver.messages[-1]
        standardwebhooks.Webhook(house.secret(receiver)).verify(body, headers)
    assert all(len(receiver.ids) > 20 for receiver in troubled)
    assert len(well.ids) == 20


def test_many_hanging_receivers_do_not_delay_the_one_that_answers(house: House) -> None:
    hanging = [house.receiver("silent") for _ in range(20)]
    house.emit(1)
    with house.monitor():
        wait_for(lambda: all(one.ids for one in hanging))
        well = house.receiver("well")
        house.emit(5)
        wait_for(lambda: house.delivered(house.webhooks[well]) == 5)
        assert not any(len(receiver.ids) > 1 for receiver in hanging), "they were waited for"


def test_a_process_killed_in_mid_delivery_loses_nothing_and_keeps_the_id(house: House) -> None:
    holding, well = house.receiver("silent"), house.receiver("well")
    for _ in range(5):
        seen, had = len(holding.ids), len(set(well.ids))
        house.emit(2)
        with house.monitor() as process:
            wait_for(lambda: len(holding.ids) > seen)  # noqa: B023 - it ends in this turn
            wait_for(lambda: len(set(well.ids)) == had + 2)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    assert set(holding.ids) == {holding.ids[0]} and len(holding.ids) == 5
    holding.mood = "well"
    with house.monitor():
        wait_for(lambda: house.delivered(house.webhooks[holding]) == 10)
        wait_for(lambda: house.delivered(house.webhooks[well]) == 10)
    for receiver in (holding, well):
        assert list(dict.fromkeys(receiver.events)) == list(range(10))
        assert len(receiver.first_attempts()) == 10
        assert [i for i, _ in itertools.groupby(receiver.ids)] == receiver.first_attempts()
