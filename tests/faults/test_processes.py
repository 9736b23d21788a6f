"""The server's own processes are killed, or asked to end."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Missed = Callable[[list[Any]], list[str]]


def test_a_killed_gateway_comes_back_to_the_same_workers(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["gateway_killed"](house)) == []


def test_a_killed_controller_is_not_noticed_and_takes_its_workers_over(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["controller_killed"](house)) == []


def test_after_a_kill_of_everything_the_state_is_as_accepted(
    matrix: ModuleType, own_house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["everything_killed"](own_house)) == []


def test_at_the_end_slow_requests_are_answered_and_nothing_is_left(
    matrix: ModuleType, own_house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["ended_politely"](own_house)) == []
