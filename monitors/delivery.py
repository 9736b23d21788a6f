"""The outbox leaves the house: sign, send in order, back off, give up and show it.

1. An event becomes one delivery per webhook that wants it, in the transaction that marks the event
   as dispatched: none is lost or doubled when the process dies in between.
2. Of each webhook only the oldest waiting delivery is tried, so order per target holds; targets do
   not wait for each other.
3. 2xx is delivered. Everything else, redirects included, is tried again after 5 s, 10 s, ... up to
   an hour, under the same message id; three days after the first attempt it is dead, and shown.
Signature: Standard Webhooks, HMAC-SHA256 over `id.timestamp.body`, one per valid secret.
"""

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import orjson
import sqlalchemy as sa

from capture import database, errors, logline, outbound, outbox, sealing
from capture.settings import Settings
from monitors import alert_contract, alert_state, contract, slack

log = logline.logger(__name__)

FIRST_PAUSE_SECONDS = 5
LONGEST_PAUSE_SECONDS = 3600
GIVE_UP_AFTER_MS = 3 * 24 * 3_600_000
ATTEMPT_SECONDS = 15.0
AT_ONCE = 64
SECRET_PREFIX = "whsec_"
DEAD_TIMES = 3  # what was given up is kept so many times as long as what was delivered


def new_secret() -> str:
    """A signing secret of 256 random bits in the form of Standard Webhooks."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def new_message_id() -> str:
    return f"msg_{secrets.token_hex(16)}"


def body(event_type: str, data: dict[str, Any], event_ms: int, form: str = "standard") -> str:
    """The JSON text that is signed and sent. form: `standard` or `slack`."""
    if form == "slack":
        return slack.body(event_type, data)
    message = {"type": event_type, "timestamp": contract.rfc3339(event_ms), "data": data}
    return orjson.dumps(message).decode()


def signature(secret: str, message_id: str, timestamp: int, text: str) -> str:
    """`v1,<base64>` of a message. timestamp: whole Unix seconds."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{timestamp}.{text}".encode()
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def headers(keys: Sequence[str], message_id: str, timestamp: int, text: str) -> dict[str, str]:
    """Headers of one attempt; while a secret is rotated, a signature with each key."""
    return {
        "content-type": "application/json",
        "user-agent": "inferlake",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(key, message_id, timestamp, text) for key in keys),
    }


def pause_seconds(attempts: int) -> int:
    """Wait after the `attempts`-th failure: 5 s, doubling up to an hour."""
    return min(FIRST_PAUSE_SECONDS << min(attempts - 1, 16), LONGEST_PAUSE_SECONDS)


class Courier:
    """Delivers with up to `AT_ONCE` targets at a time. `step` is called by one loop alone."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.pool = futures.ThreadPoolExecutor(AT_ONCE, thread_name_prefix="delivery")
        self.under_way: dict[str, futures.Future[None]] = {}
        self.closing = threading.Event()

    def step(self, now_ms: int) -> None:
        """Turn new events into deliveries and start every attempt that is due."""
        for webhook_id, attempt in list(self.under_way.items()):
            if attempt.done():
                del self.under_way[webhook_id]
                attempt.result()
        with database.reading(self.engine) as connection:
            waiting = bool(outbox.waiting(connection, 1))
        if waiting:
            dispatch(self.engine)
        with database.reading(self.engine) as connection:
            heads = alert_state.heads(connection, self.under_way)
        # A receiver that answered last comes before those that did not, which would take all places
        # again and again: each holds one for the whole time of an attempt.
        for head in sorted(heads, key=lambda head: (head.attempts > 0, head.next_attempt_ms)):
            if head.next_attempt_ms <= now_ms and len(self.under_way) < AT_ONCE:
                self.under_way[head.webhook_id] = self.pool.submit(
                    deliver_waiting, self.engine, self.settings, head.webhook_id, self.closing
                )

    def close(self) -> None:
        """Wait for the attempts that are under way; what was not delivered waits in SQL."""
        self.closing.set()
        self.pool.shutdown(wait=True, cancel_futures=True)


def dispatch(engine: sa.Engine) -> None:
    """Give every waiting event to the webhooks that want it."""
    with database.transaction(engine) as connection:
        events = outbox.waiting(connection)
        receivers = alert_state.all_webhooks(connection)
        for event in events:
            for webhook in receivers:
                if alert_contract.wants(webhook.events, event.type):
                    text = body(event.type, event.data, event.created_ms, webhook.format)
                    alert_state.add_delivery(
                        connection,
                        webhook.id,
                        new_message_id(),
                        event.type,
                        text,
                        event.created_ms,
                    )
        outbox.mark_dispatched(connection, [event.id for event in events])


def forget(engine: sa.Engine, keep_days: int, now_ms: int) -> int:
    """Drop what was delivered `keep_days` ago, and what was given up that often DEAD_TIMES ago: a
    person may still look for it. Gives the number of rows."""
    day_ms = 24 * 3_600_000
    with database.transaction(engine) as connection:
        kept_ms, dead_ms = (now_ms - days * day_ms for days in (keep_days, DEAD_TIMES * keep_days))
        return (
            outbox.forget_before(connection, kept_ms)
            + alert_state.forget_deliveries(connection, "delivered", kept_ms)
            + alert_state.forget_deliveries(connection, "dead", dead_ms)
        )


def deliver_waiting(
    engine: sa.Engine, settings: Settings, webhook_id: str, closing: threading.Event
) -> None:
    """Send what waits for one webhook, oldest first, until one is not due or not taken."""
    while not closing.is_set():
        with database.reading(engine) as connection:
            head = alert_state.head_of(connection, webhook_id)
        if head is None or head.next_attempt_ms > _now_ms():
            return
        attempt_delivery(engine, settings, head)


def attempt_delivery(engine: sa.Engine, settings: Settings, delivery: alert_state.Delivery) -> None:
    """Send once and write down how it went."""
    try:
        with database.reading(engine) as connection:
            webhook = alert_state.get_webhook(connection, delivery.webhook_id)
    except errors.DoesNotExist:
        return  # deleted meanwhile, and its deliveries with it
    started_ms = _now_ms()
    status, problem = _send(settings, webhook, delivery)
    with database.transaction(engine) as connection:
        values = outcome(delivery, status, problem, started_ms, _now_ms())
        alert_state.change_delivery(connection, delivery.id, values)
    log.info(
        "webhook_attempt",
        webhook=webhook.id,
        message=delivery.message_id,
        type=delivery.event_type,
        state=values["state"],
        status=status,
    )


def _send(
    settings: Settings, webhook: alert_state.Webhook, delivery: alert_state.Delivery
) -> tuple[int | None, str | None]:
    """Status of the answer, or why there was none."""
    seconds = _now_ms() // 1000
    try:
        keys = [sealing.decrypt(settings, webhook.sealed_secret)]
        if webhook.sealed_old_secret and (webhook.old_secret_until_ms or 0) > _now_ms():
            keys.append(sealing.decrypt(settings, webhook.sealed_old_secret))
        answer = outbound.post(
            webhook.url,
            delivery.body.encode(),
            headers(keys, delivery.message_id, seconds, delivery.body),
            settings.allow_private_upstreams,
            timeout_seconds=ATTEMPT_SECONDS,
        )
    except errors.InferlakeError as error:
        return None, error.message
    if 200 <= answer.status < 300:
        return answer.status, None
    if 300 <= answer.status < 400:
        return answer.status, f"The receiver answered {answer.status}; redirects are not followed."
    return answer.status, f"The receiver answered {answer.status}."


def outcome(
    delivery: alert_state.Delivery,
    status: int | None,
    problem: str | None,
    started_ms: int,
    now_ms: int,
) -> dict[str, Any]:
    """Columns of a delivery after an attempt. Pure."""
    attempts = delivery.attempts + 1
    first = delivery.first_attempt_ms or started_ms
    values: dict[str, Any] = {
        "attempts": attempts,
        "first_attempt_ms": first,
        "last_status": status,
        "last_error": problem,
    }
    if problem is None:
        return values | {"state": "delivered", "ended_ms": now_ms}
    if now_ms - first >= GIVE_UP_AFTER_MS:
        return values | {"state": "dead", "ended_ms": now_ms}
    pause_ms = pause_seconds(attempts) * 1000
    return values | {"state": "waiting", "next_attempt_ms": now_ms + pause_ms}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
