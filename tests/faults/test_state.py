"""The state database is locked or gone, the disk is full, the clock jumps."""

import contextlib
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


def test_a_state_database_that_is_gone_for_a_while_costs_no_answer(
    matrix: ModuleType, own_house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["state_gone"](own_house, seconds=5)) == []


def test_a_full_disk_costs_no_unclean_answer_and_the_server_starts_on_it(
    matrix: ModuleType, registry: str, tmp_path: Path, missed: Missed
) -> None:
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(matrix.faults_state.small_disk(tmp_path))
        except PermissionError as error:
            pytest.skip(str(error))
        house = stack.enter_context(matrix.House(place, registry))
        assert missed(matrix.ROWS["disk_full"](house)) == []


def test_a_clock_that_jumps_restarts_nothing_and_costs_no_answer(
    matrix: ModuleType, registry: str, tmp_path: Path, missed: Missed
) -> None:
    with matrix.House(tmp_path, registry, **matrix.faults_state.wrong_clock(tmp_path)) as house:
        assert missed(matrix.ROWS["clock_jumps"](house, pause_seconds=1)) == []
