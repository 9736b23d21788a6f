"""The short form of benchmarks/capture/kill.py, which has the code."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LONG_FORM = Path(__file__).parents[2] / "benchmarks" / "capture"


@pytest.fixture(scope="module")
def kill() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(LONG_FORM)  # its processes import it by name, too
        yield importlib.import_module("kill")


@pytest.mark.parametrize(
    ("leg", "kills"),
    [
        ("loop", 4),
        pytest.param("process", 3, marks=pytest.mark.slow),
        pytest.param("full disk", 4, marks=pytest.mark.slow),
    ],
)
def test_kills_of_writers_and_committers_lose_double_and_tear_nothing(
    kill: Any, tmp_path: Path, leg: str, kills: int
) -> None:
    said, outcome = kill.run_leg(leg, tmp_path, kills, seed=0)
    assert outcome.accepted > 0, said
    assert outcome.is_clean, outcome
