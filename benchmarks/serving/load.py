"""Load by wrk, and what it costs the processes that answer."""

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

TOKEN = "benchmark-admin-token"
PATIENCE_SECONDS = 180
_MS = {"us": 0.001, "ms": 1.0, "s": 1_000.0, "m": 60_000.0}


class Load(NamedTuple):
    """What wrk saw: answers per second, latencies in milliseconds, answers that were no 2xx, and
    the processor time of watched processes per answer, in microseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_us: tuple[float, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.per_second:8.1f} req/s (p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms,"
            f" failed {self.failed})"
        )


def script(path: Path, body: bytes) -> Path:
    """A wrk script that posts this body with our token."""
    path.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer {TOKEN}"\nwrk.body = [[{body.decode()}]]\n'
    )
    return path


def measure(
    url: str, query: Path, connections: int, seconds: int, watched: Sequence[int] = ()
) -> Load:
    """One run of wrk with one thread. `watched`: ids of processes whose time is counted."""
    before = [cpu_seconds(pid) for pid in watched]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(query), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = [cpu_seconds(pid) - then for pid, then in zip(watched, before, strict=True)]
    answered = re.search(r"(\d+) requests in", text)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    count = int(answered[1]) if answered else 0
    return Load(
        float(rate[1]) if rate else 0.0,
        _latency(text, 50),
        _latency(text, 99),
        int(failed[1]) if failed else 0,
        tuple(each / max(count, 1) * 1e6 for each in spent),
    )


def _latency(text: str, percent: int) -> float:
    found = re.search(rf"\n\s+{percent}%\s+([\d.]+)([a-z]+)", text)
    return float(found[1]) * _MS[found[2]] if found else float("nan")


def cpu_seconds(pid: int) -> float:
    """Processor time of one process so far, all threads, kernel included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answers(url: str, body: bytes, expected: bytes = b"predictions") -> bool:
    """Whether a query is answered 200, with this in the answer."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return expected in found.read()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def wait_for(condition: Callable[[], object]) -> None:
    """Until the condition is true. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS} s")
        time.sleep(0.05)


def records(columns: Sequence[str], rows: int) -> bytes:
    """A body with this many rows of doubles, no two values alike, of 17 digits as clients send."""
    values = [
        {name: ((7919 * (row * len(columns) + place)) % 10_007) / 3_001 - 1.5
         for place, name in enumerate(columns)}
        for row in range(rows)
    ]  # fmt: skip
    return json.dumps({"dataframe_records": values}).encode()
