"""The short form of benchmarks/capture/kill.py, which has the code."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

LONG_FORM = Path(__file__).parents[2] / "benchmarks" / "capture" / "kill.py"


@pytest.fixture(scope="module")
def kill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill", LONG_FORM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill"] = module
    spec.loader.exec_module(module)
    return module


def test_kills_of_writers_and_committers_lose_double_and_tear_nothing(
    kill: ModuleType, tmp_path: Path
) -> None:
    outcome = kill.run(tmp_path, kills=8)
    assert outcome.accepted > 0
    assert (outcome.lost, outcome.doubled, outcome.torn) == (0, 0, 0)
