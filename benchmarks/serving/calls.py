"""What the scripts calls_*.py share: run a client's calls in order, print a JSON line for each.

Such a script runs under the interpreter of one client, which has nothing of ours:
    python calls_sdk.py URL TOKEN PREFIX
PREFIX begins the names of all endpoints it makes. Models of the server: clients.py."""

import json
import sys
from collections.abc import Callable
from typing import Any

SUM, WILD, SLOW, BROKEN = (f"main.clients.{name}" for name in ("sum", "wild", "slow", "broken"))
ROW = {"a": 1.0, "b": 2.0}
RAISE, ODD_ANSWER, PAUSE, HANG, RAISE_ODDLY = ({"a": float(n), "b": 0.0} for n in (1, 2, 3, 4, 6))


class Absent(Exception):
    """This version of the client has no such call."""


def check(found: Any, wanted: Any, what: str = "answer") -> None:
    """Raises AssertionError, saying both."""
    if found != wanted:
        raise AssertionError(f"{what}: expected {wanted!r}, found {found!r}"[:600])


def holds(found: Any, wanted: Any, where: str = "") -> None:
    """Whether all of `wanted` came back: objects may hold more, lists may not."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            if key not in found:
                raise AssertionError(f"{where}.{key} did not come back")
            holds(found[key], value, f"{where}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            holds(one, other, f"{where}[{place}]")
    else:
        check(found, wanted, where)


def run(calls: list[tuple[str, Callable[[], Any]]]) -> int:
    """Call them all; one that fails does not stop the others. 1: one failed."""
    failed = 0
    for name, call in calls:
        try:
            call()
            said = "ok"
        except Absent:
            said = "-"
        except Exception as error:  # noqa: BLE001 - whatever it is, the next call goes on
            said = f"{type(error).__name__}: {error}"[:800]
            failed = 1
        print(json.dumps({"call": name, "said": said}), flush=True)
    return failed


def arguments() -> tuple[str, str, str]:
    """URL, token and prefix of the names of endpoints."""
    url, token, prefix = sys.argv[1:4]
    return url, token, prefix
