"""The comparison with other servers runs and judges; a quiet machine has to tell its figures."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed"),
]

PEERS = Path(__file__).parents[2] / "benchmarks" / "serving" / "peers.py"


def test_a_peer_is_compared_and_each_figure_has_its_bar() -> None:
    short = (
        "--interpreted",
        "--peer",
        "echo",
        "--cell",
        "lr x1 c16",
        "--seconds",
        "1",
        "--pairs",
        "1",
    )
    done = subprocess.run([sys.executable, PEERS, *short], capture_output=True, text=True)
    ratio = re.search(r"lr x1 c16 +echo .*ratio +(\d+\.\d+) +bar +0\.50", done.stdout)
    assert ratio is not None, done.stdout + done.stderr
    assert float(ratio[1]) > 0
    for figure in ("CPU of the gateway", "CPU of the worker", "p99 / p50", "capture on / off"):
        assert re.search(rf"{figure}.* (\d+\.\d+)  bar [<>]= ", done.stdout), figure
    assert done.returncode == (1 if "MISSED" in done.stdout else 0)
