"""The monitor is killed in a refresh while another one waits: the short form of the benchmark.

A stale holder that wakes up again: tests/monitors/test_lease.py."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLS = Path(__file__).parents[2] / "benchmarks" / "monitors" / "refresh_kills.py"


def test_no_window_is_doubled_or_missing_after_kills_in_refreshes() -> None:
    command = [sys.executable, KILLS, "--kills", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 6 kills in a refresh: 0, bar 0: met" in done.stdout
