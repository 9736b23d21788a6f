"""Logged requests asked again: which ones, what becomes of their answers, and how it ends."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from capture import errors
from capture.settings import Settings
from monitors import replays, server
from tests.capture import shop

V1 = {"model_version": "1"}


class Serves:
    """An endpoint `s` whose version v2 answers every row with its x; numbers doubled from 10
    on."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, bytes]] = []
        self.busy = 0
        self.refuses: tuple[int, str] | None = None
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        serves = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                entity = {"name": "v2", "entity_version": "2"}
                self.answer(200, {"config": {"served_entities": [entity]}})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with serves.one():
                    self.answer(*serves.answer(self.headers["Content-Type"], self.path, body))

            def answer(self, status: int, body: Any, model_us: int | None = None) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                if model_us is not None:
                    self.send_header("x-model-us", str(model_us))
                if status == 400 and model_us is not None:
                    self.send_header("x-error-source", "model")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Silent."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        yield
        with self._lock:
            self.at_once -= 1

    def answer(self, kind: str | None, path: str, body: bytes) -> tuple[Any, ...]:
        assert urlsplit(path).path == "/api/1.0/endpoints/s/served-entities/v2/try"
        with self._lock:
            self.asked.append((kind, body))
            if self.busy > 0:
                self.busy -= 1
                return 503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "Busy."}
        if self.refuses is not None:
            return self.refuses[0], {"error_code": "X", "message": self.refuses[1]}
        try:
            given = json.loads(body)["dataframe_records"]
        except ValueError:
            return 400, {"error_code": "BAD_REQUEST", "message": "The model raised."}, 10
        values = [_answer(row["x"]) for row in given]
        return 200, {"predictions": values}, 12_600

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def _answer(x: Any) -> Any:
    return x * 2 if isinstance(x, int) and x >= 10 else x


@pytest.fixture
def serves() -> Iterator[Serves]:
    made = Serves()
    yield made
    made.close()


class Told:
    """Progress as a job writes it down. end: the number of calls after which it is cancelled."""

    def __init__(self, end: int = 1_000_000) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.end = end

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        self.calls.append((stage, done, total))
        if len(self.calls) > self.end:
            raise KeyboardInterrupt


def replay(
    settings: Settings, serves: Serves, told: Told | None = None, **changed: Any
) -> dict[str, Any]:
    start = int(shop.START.timestamp() * 1000)
    arguments = {
        "endpoint": "s",
        "table": shop.TABLE,
        "served_entity": "v2",
        "from_ms": start,
        "to_ms": start + 100 * 60_000,
        "limit": 1000,
    }
    given = settings.model_copy(update={"url": serves.url})
    return replays.run(given, arguments | changed, told or Told())


def requests(n: int, **changed: Any) -> list[dict[str, Any]]:
    """Requests 0..n, answered with their x by version 1."""
    return [shop.payload(place, {"x": place}, place, **{**V1, **changed}) for place in range(n)]


def test_agreement_and_differences_are_those_of_the_answers(
    settings: Settings, state: sa.Engine, serves: Serves
) -> None:
    shop.write(settings, *requests(40))
    told = Told()
    found = replay(settings, serves, told)
    assert (found["asked"], found["answered"], found["failed"], found["dropped"]) == (40, 40, 0, 0)
    assert (found["champion_version"], found["challenger_version"]) == ("1", "2")
    assert found["agreement"] == 10 / 40
    assert found["latency_ms"] == {"v1": 3.0, "v2": 13.0}
    worst = found["differences"][0]
    assert worst["databricks_request_id"] == shop.request_id(39)
    assert (worst["champion_prediction"], worst["challenger_prediction"]) == (39.0, 78.0)
    assert len(found["differences"]) == 30
    assert told.calls[0] == ("choosing requests", 0, 0)
    assert ("asking", 40, 40) in told.calls
    assert 1 <= serves.most_at_once <= replays.CONCURRENCY
    json.dumps(found, allow_nan=False)


def test_only_live_answers_of_another_version_in_the_time_are_asked_again(
    settings: Settings, state: sa.Engine, serves: Serves
) -> None:
    refused = {"status_code": 429, "error_source": "request", "response": "{}"}
    shop.write(
        settings,
        *requests(6),
        shop.payload(6, {"x": 6}, 6, served_entity_name="v0", **V1),  # fewer than version 1 has
        shop.payload(7, {"x": 7}, 7, served_entity_name="v2", model_version="2"),
        shop.payload(8, {"x": 8}, 8, shadow=True, **V1),
        shop.payload(9, {"x": 9}, None, **{**V1, **refused}),
        shop.payload(99, {"x": 99}, 99, **V1),
    )
    found = replay(settings, serves, to_ms=int(shop.START.timestamp() * 1000) + 50 * 60_000)
    assert found["asked"] == 6
    newest = replay(settings, serves, limit=3)
    assert newest["asked"] == 3
    asked = {json.loads(body)["dataframe_records"][0]["x"] for _, body in serves.asked[6:]}
    assert asked == {4, 5, 99}


def test_bodies_are_sent_as_they_came_and_a_model_that_raises_is_counted(
    settings: Settings, state: sa.Engine, serves: Serves
) -> None:
    several = [{"x": 1}, {"x": 20}]
    binary = {"request": base64.b64encode(b"PAR1").decode(), "request_encoding": "base64"}
    shop.write(
        settings,
        shop.payload(0, several, 1, content_type="application/json", **V1),
        shop.payload(1, None, 1, content_type="application/x-parquet", **{**V1, **binary}),
        shop.payload(2, None, 1, **{**V1, "request": None}),  # over the cap: not recorded
    )
    found = replay(settings, serves)
    kinds = dict(serves.asked)
    assert kinds["application/x-parquet"] == b"PAR1"
    assert json.loads(kinds["application/json"])["dataframe_records"] == several
    assert (found["asked"], found["answered"], found["failed"]) == (2, 1, 1)
    assert found["not_recorded"] == 1
    assert found["error_rate"]["v2"] > 0
    assert found["error_rate"]["v1"] == 0


def test_a_busy_version_is_asked_again_later(
    settings: Settings, state: sa.Engine, serves: Serves
) -> None:
    shop.write(settings, *requests(8))
    serves.busy = 5
    found = replay(settings, serves)
    assert (found["answered"], found["dropped"]) == (8, 0)
    assert len(serves.asked) == 13


def test_a_refusal_ends_the_replay_with_the_servers_words(
    settings: Settings, state: sa.Engine, serves: Serves
) -> None:
    shop.write(settings, *requests(8))
    serves.refuses = 403, "The token is not valid."
    with pytest.raises(server.Refused, match="The token is not valid"):
        replay(settings, serves)


def test_an_unknown_version_or_a_time_without_requests_is_named(
    settings: Settings, state: sa.Engine, serves: Serves
) -> None:
    with pytest.raises(errors.DoesNotExist, match="Served entity 'v9' of endpoint 's'"):
        replay(settings, serves, served_entity="v9")
    with pytest.raises(errors.DoesNotExist, match="No request between 2024-03-01 12:00 and"):
        replay(settings, serves)


def test_a_cancelled_replay_asks_no_more(
    settings: Settings, state: sa.Engine, serves: Serves
) -> None:
    shop.write(settings, *requests(90))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        replay(settings, serves, Told(end=4))
    asked = len(serves.asked)
    assert asked < 60
    assert threading.active_count() < before + 20


def test_texts_are_compared_as_texts(settings: Settings, state: sa.Engine, serves: Serves) -> None:
    shop.write(settings, *(shop.payload(n, {"x": "b" if n else "a"}, "a", **V1) for n in range(4)))
    found = replay(settings, serves)
    assert found["agreement"] == 0.25
    assert found["prediction_difference"] is None
    assert found["differences"][0]["challenger_prediction"] == "b"
