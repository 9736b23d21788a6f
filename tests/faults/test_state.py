"""The state database is locked, the disk is full."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Missed = Callable[[list[Any]], list[str]]


def test_a_locked_state_database_costs_no_answer(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["state_locked"](house, seconds=2)) == []


def test_a_clock_that_jumps_restarts_nothing_and_costs_no_answer(
    matrix: ModuleType, registry: str, tmp_path: Path, missed: Missed
) -> None:
    with matrix.House(tmp_path, registry, **matrix.faults_state.wrong_clock(tmp_path)) as house:
        assert missed(matrix.ROWS["clock_jumps"](house, pause_seconds=1)) == []
