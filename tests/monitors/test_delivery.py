import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sqlalchemy as sa
import standardwebhooks

from capture import database, names, outbox, sealing
from capture.settings import Settings
from monitors import alert_state, delivery, slack

SECOND = 1000


class Receiver:
    """A real HTTP server that answers with the statuses it is told, then 204."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.hold = threading.Event()
        self.hold.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append(
                    ({name.lower(): value for name, value in self.headers.items()}, body)
                )
                receiver.hold.wait(20)
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.requests]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


class House:
    """Settings, database and courier of one test."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        database.migrate(settings)
        self.engine = database.open_engine(settings)
        self.courier = delivery.Courier(self.engine, settings)

    def webhook(self, url: str, *events: str, form: str = "standard") -> tuple[str, str]:
        secret, webhook_id = delivery.new_secret(), names.new_id()
        webhook = alert_state.Webhook(
            webhook_id, url, list(events or ("*",)), form, None,
            sealing.encrypt(self.settings, secret), None, None, "ann", now_ms(),
        )  # fmt: skip
        with database.transaction(self.engine) as connection:
            alert_state.add_webhook(connection, webhook)
        return webhook_id, secret

    def emit(self, *types: str) -> None:
        with database.transaction(self.engine) as connection:
            for type in types:
                outbox.emit(connection, type, {"endpoint": "delay"}, now_ms())

    def deliveries(self, webhook_id: str) -> list[alert_state.Delivery]:
        with database.reading(self.engine) as connection:
            return list(reversed(alert_state.find_deliveries(connection, webhook_id)))

    def work_until(self, done, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, "not done in time"
            self.courier.step(now_ms())
            time.sleep(0.01)

    def attempt(self, webhook_id: str) -> alert_state.Delivery:
        """One attempt of the oldest waiting delivery, whenever it is due; gives it afterwards."""
        with database.reading(self.engine) as connection:
            head = alert_state.head_of(connection, webhook_id)
        delivery.attempt_delivery(self.engine, self.settings, head)
        with database.reading(self.engine) as connection:
            return alert_state.get_delivery(connection, webhook_id, head.id)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def house(tmp_path):
    made = House(Settings(data_dir=tmp_path))
    yield made
    made.courier.close()
    made.engine.dispose()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.hold.set()
    made.close()


def test_an_event_arrives_signed_as_standard_webhooks_wants_it(house, receiver):
    webhook_id, secret = house.webhook(receiver.url)
    house.emit("endpoint.promoted")
    house.work_until(lambda: house.deliveries(webhook_id)[0:1] and receiver.requests)
    headers, body = receiver.requests[0]
    verified = standardwebhooks.Webhook(secret).verify(body, headers)
    assert verified["type"] == "endpoint.promoted" and verified["data"] == {"endpoint": "delay"}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(delivery.new_secret()).verify(body, headers)


def test_slack_gets_one_text_and_the_same_signature(house, receiver):
    webhook_id, secret = house.webhook(receiver.url, form="slack")
    alert = {
        "endpoint": "delay",
        "severity": "critical",
        "message": "temp <!channel> drifted: KS 0.3 & more than 0.1 is an alert.",
    }
    with database.transaction(house.engine) as connection:
        outbox.emit(connection, "alert.opened", alert, now_ms())
    house.work_until(lambda: house.deliveries(webhook_id)[0:1] and receiver.requests)
    headers, body = receiver.requests[0]
    assert standardwebhooks.Webhook(secret).verify(body, headers) == {
        "text": "*Alert opened: delay (critical)*\n"
        "temp &lt;!channel&gt; drifted: KS 0.3 &amp; more than 0.1 is an alert."
    }
    assert headers["content-type"] == "application/json"


def test_an_event_without_a_sentence_tells_slack_its_facts():
    told = {"endpoint": "delay", "config_version": 7, "served_entity": "v2", "shares": {"v2": 100}}
    assert slack.text("endpoint.rolled_back", told) == (
        "*Endpoint rolled back: delay*\nconfig version: 7\nserved entity: v2"
    )
    assert len(slack.text("alert.opened", {"message": "x" * 9000})) == slack.MOST_CHARACTERS


def test_events_go_in_order_and_only_to_those_who_asked(house, receiver):
    webhook_id, _ = house.webhook(receiver.url, "alert.*", "endpoint.promoted")
    house.emit(
        "alert.opened", "ramp.advanced", "endpoint.promoted", "endpoint.ready", "alert.closed"
    )
    house.work_until(lambda: len(receiver.requests) == 3)
    assert receiver.types() == ["alert.opened", "endpoint.promoted", "alert.closed"]
    house.work_until(lambda: {d.state for d in house.deliveries(webhook_id)} == {"delivered"})


def test_a_retry_keeps_its_id_and_the_next_event_waits_for_it(house, receiver):
    receiver.statuses = [500, 302]
    webhook_id, _ = house.webhook(receiver.url)
    house.emit("alert.opened", "alert.closed")
    delivery.dispatch(house.engine)
    first = house.attempt(webhook_id)
    assert (first.state, first.last_status, first.attempts) == ("waiting", 500, 1)
    assert "500" in first.last_error
    second = house.attempt(webhook_id)
    assert second.last_status == 302 and "redirects are not followed" in second.last_error
    assert house.attempt(webhook_id).state == "delivered"
    house.attempt(webhook_id)
    ids = [headers["webhook-id"] for headers, _ in receiver.requests]
    assert len(set(ids[:3])) == 1 and ids[3] != ids[0]
    assert receiver.types() == ["alert.opened"] * 3 + ["alert.closed"]


def test_a_slow_target_does_not_delay_another(house, receiver):
    receiver.hold.clear()
    house.webhook(receiver.url)
    quick = Receiver()
    try:
        house.webhook(quick.url)
        house.emit("alert.opened", "alert.closed")
        house.work_until(lambda: len(quick.requests) == 2)
        assert len(receiver.requests) <= 1
    finally:
        receiver.hold.set()
        quick.close()


def test_a_dead_target_is_retried_later_and_later_and_given_up_after_three_days(house):
    webhook_id, _ = house.webhook("http://127.0.0.1:1/hook")
    house.emit("alert.opened")
    delivery.dispatch(house.engine)
    failed = house.attempt(webhook_id)
    assert failed.state == "waiting" and failed.last_status is None and failed.last_error
    pauses = [delivery.pause_seconds(n) for n in range(1, 14)]
    assert pauses[:3] == [5, 10, 20] and pauses[-1] == 3600 and pauses == sorted(pauses)
    later = failed.first_attempt_ms + delivery.GIVE_UP_AFTER_MS
    assert delivery.outcome(failed, None, "no", later, later)["state"] == "dead"
    assert delivery.outcome(failed, None, "no", later, later - 1)["state"] == "waiting"


def test_while_a_secret_is_rotated_both_keys_verify(house, receiver):
    webhook_id, old = house.webhook(receiver.url)
    new = delivery.new_secret()
    with database.transaction(house.engine) as connection:
        values = {
            "sealed_secret": sealing.encrypt(house.settings, new),
            "sealed_old_secret": sealing.encrypt(house.settings, old),
            "old_secret_until_ms": now_ms() + 60 * SECOND,
        }
        alert_state.change_webhook(connection, webhook_id, values)
    house.emit("alert.opened")
    house.work_until(lambda: receiver.requests)
    headers, body = receiver.requests[0]
    for secret in (old, new):
        assert standardwebhooks.Webhook(secret).verify(body, headers)


def test_a_metadata_address_is_not_called(house):
    webhook_id, _ = house.webhook("http://169.254.169.254/latest")
    house.emit("alert.opened")
    delivery.dispatch(house.engine)
    assert "refused" in house.attempt(webhook_id).last_error


def test_no_secret_lies_in_the_database_in_the_clear(house, tmp_path):
    _, secret = house.webhook("http://127.0.0.1:1/hook")
    house.engine.dispose()
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.glob("inferlake.db*"))


def test_what_was_delivered_is_forgotten_after_its_days_and_what_waits_never(house):
    webhook_id, _ = house.webhook("http://127.0.0.1:1/hook")
    house.emit("a.delivered", "a.dead", "a.waiting")
    delivery.dispatch(house.engine)
    house.emit("a.new")
    day_ms, now = 24 * 3_600_000, now_ms()
    with database.transaction(house.engine) as connection:
        by_type = {d.event_type: d.id for d in house.deliveries(webhook_id)}
        for state in ("delivered", "dead"):
            values = {"state": state, "ended_ms": now}
            alert_state.change_delivery(connection, by_type[f"a.{state}"], values)

    def left(days: int) -> list[str]:
        delivery.forget(house.engine, 30, now + days * day_ms)
        return [d.event_type for d in house.deliveries(webhook_id)]

    assert left(29) == ["a.delivered", "a.dead", "a.waiting"]
    assert left(31) == ["a.dead", "a.waiting"]
    assert left(91) == ["a.waiting"]
    with database.reading(house.engine) as connection:
        assert [event.type for event in outbox.waiting(connection)] == ["a.new"]
        every = connection.execute(sa.select(outbox.outbox.c.type)).scalars().all()
    assert every == ["a.new"]
