"""More requests than replicas, or no replica at all."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Missed = Callable[[list[Any]], list[str]]


def test_many_requests_at_zero_cause_one_start_and_all_are_answered(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["from_zero"](house, repeats=1)) == []


def test_no_request_falls_into_the_gap_of_scaling_down(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["scaling_down"](house, requests=3)) == []


def test_a_crowd_is_refused_cleanly(matrix: ModuleType, house: Any, missed: Missed) -> None:
    assert missed(matrix.ROWS["overload"](house, clients=300, seconds=2)) == []
