"""The benchmark of starts from zero runs; what it finds is for a quiet machine to say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FROM_ZERO = Path(__file__).parents[2] / "benchmarks" / "serving" / "from_zero.py"


def test_a_start_from_a_template_is_measured_and_compared_with_its_bar() -> None:
    short = ("--repeats", "2", "--kinds", "template")
    done = subprocess.run([sys.executable, FROM_ZERO, *short], capture_output=True, text=True)
    found = re.search(r"template +p50 +(\d+\.\d+) s .* 2 starts; bar 0.15 s", done.stdout)
    assert found, done.stderr
    assert done.returncode == (0 if float(found[1]) <= 0.15 else 1)
