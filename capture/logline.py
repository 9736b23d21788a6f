"""One JSON object per event on standard error: known secrets masked, control characters escaped."""

import contextlib
import json
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

_secrets: set[str] = set()
_write_lock = threading.Lock()


LEAST_HIDDEN_CHARACTERS = 8  # a shorter value stands in too many innocent words


def hide(secret: str) -> None:
    """Mask this value in every later line of this process, as it is and as JSON or Python print it;
    of one with several lines each line, too."""
    for part in {secret, *secret.splitlines()}:
        if len(part.strip()) >= LEAST_HIDDEN_CHARACTERS:
            _secrets.update({part, json.dumps(part)[1:-1], repr(part)[1:-1]})


def mask(text: str) -> str:
    """Text without the values that this process hides."""
    # The longest first: a value may hold another one. A copy, since threads hide more meanwhile.
    for secret in sorted(_secrets.copy(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


class Logger:
    """Writes events: a snake_case name and facts. No payloads, no f-strings."""

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, event: str, **facts: Any) -> None:
        """Facts for a developer; off unless INFERLAKE_LOG_DEBUG was asked for in `enable_debug`."""
        if _debug:
            _write("debug", self.name, event, facts)

    def info(self, event: str, **facts: Any) -> None:
        _write("info", self.name, event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        _write("warning", self.name, event, facts)

    def error(self, event: str, **facts: Any) -> None:
        _write("error", self.name, event, facts)


_debug = False


def enable_debug() -> None:
    global _debug
    _debug = True


def logger(name: str) -> Logger:
    """The logger of a module: `log = logline.logger(__name__)`."""
    return Logger(name)


def _write(level: str, name: str, event: str, facts: dict[str, Any]) -> None:
    line = {
        "time": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "logger": name,
        "event": event,
        **facts,
    }
    text = mask(json.dumps(line, default=str, ensure_ascii=True))
    # A full disk behind standard error must not stop the work that the line tells of.
    with _write_lock, contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
