"""The benchmarks of experiments run and print a figure with its bar per line."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks" / "experiments"


@pytest.mark.parametrize(
    ("script", "arguments", "figures"),
    [
        ("simulate.py", ["--experiments", "20", "--days", "3"], 14),
        ("time_to_decide.py", ["--experiments", "20"], 2),
        ("canary.py", ["--runs", "3", "--days", "1"], 5),
        ("cost.py", ["--requests", "100000", "--days", "2", "--rows", "5000"], 4),
    ],
)
def test_each_figure_is_a_line_with_its_bar(
    script: str, arguments: list[str], figures: int
) -> None:
    # So few runs may miss a bar: status 1 is an answer as well.
    done = subprocess.run(
        [sys.executable, FOLDER / script, *arguments], capture_output=True, text=True, timeout=300
    )
    lines = done.stdout.splitlines()
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == figures
    assert all(", bar " in line and ("ok" in line or "MISSED" in line) for line in lines)
