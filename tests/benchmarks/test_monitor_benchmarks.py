"""The benchmarks of monitors: those of values must meet their bars here as well; of timed ones,
that the short form runs and compares."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "monitors"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    return done


def test_every_number_of_real_data_is_that_of_scipy_and_nannyml() -> None:
    done = run("values.py")
    assert done.returncode == 0, done.stdout
    assert "california_housing, titanic" in done.stdout
    counts = {name: int(n) for name, n in re.findall(r"^(.+?): (\d+) values", done.stdout, re.M)}
    assert counts["ks"] >= 100 and counts["estimated roc_auc"] == 12 and counts["bounds"] >= 300


@pytest.mark.slow
def test_a_refresh_is_compared_with_a_rescan_and_with_a_longer_history() -> None:
    short = ("--rows-per-day", 500, "--days", 5, "--long", 2, "--new-days", 1)
    for more in ((), ("--recorded",)):
        ratios = re.findall(
            r"(\d+\.\d+) x(?: the processor time)?, bar",
            run("refresh_cost.py", *short, *more).stdout,
        )
        assert len(ratios) == 4 and all(float(ratio) > 0 for ratio in ratios)


@pytest.mark.slow
def test_a_simulated_month_has_no_false_alarm_and_no_drift_that_is_overlooked() -> None:
    done = run("false_alarms.py", "--repetitions", 1)
    assert done.returncode == 0, done.stdout
    assert len(re.findall(r"bar .+: met", done.stdout)) == 5
