"""The benchmark of reads runs and compares; what it finds is for a quiet machine to say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

READ = Path(__file__).parents[2] / "benchmarks" / "capture" / "read.py"


def test_each_question_prints_one_line_with_its_ratio_and_bar() -> None:
    short = ("--rows", "5000", "--files", "10", "--rounds", "1")
    done = subprocess.run([sys.executable, READ, *short], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    ratios = [float(re.search(r"ratio (\d+\.\d+), bar 2: ", line)[1]) for line in lines]
    assert len(lines) == 3, done.stderr
    assert all(ratio > 0 for ratio in ratios)
    assert done.returncode == (0 if max(ratios) <= 2 else 1)
