"""The demo's own webhook receiver: it checks each signature and keeps what came."""

import base64
import hashlib
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET_PREFIX = "whsec_"


def verified(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether a delivery was signed with this secret (Standard Webhooks, HMAC-SHA256).

    `headers`: names in lower case. Source: the Standard Webhooks specification, "Signature
    scheme"."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = b".".join(
        (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body)
    )
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    offered = [part.partition(",")[2] for part in headers["webhook-signature"].split()]
    return any(hmac.compare_digest(expected, signature) for signature in offered)


class Receiver:
    """Listens on a free port of this machine until `close`."""

    def __init__(self) -> None:
        self.secret: str | None = None
        self.events: list[dict[str, Any]] = []
        self.refused = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(204 if receiver._take(dict(self.headers), body) else 401)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """The receiver says nothing by itself; the story tells what came."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def _take(self, headers: dict[str, str], body: bytes) -> bool:
        lowered = {name.lower(): value for name, value in headers.items()}
        if self.secret is None or not verified(self.secret, lowered, body):
            self.refused += 1
            return False
        self.events.append(json.loads(body))
        return True

    def received(self, type: str) -> list[dict[str, Any]]:
        """Verified events of one type, in order of arrival."""
        return [event for event in self.events if event["type"] == type]

    def settled(self, quiet_seconds: float = 1.5, at_most_seconds: float = 15) -> int:
        """Number of verified events, once none has come for a while."""
        ends = time.monotonic() + at_most_seconds
        count, since = len(self.events), time.monotonic()
        while time.monotonic() < min(since + quiet_seconds, ends):
            time.sleep(0.05)
            if len(self.events) != count:
                count, since = len(self.events), time.monotonic()
        return count

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
