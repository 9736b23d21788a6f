"""Workers are killed; what clients meet. The long forms: benchmarks/serving/fault_matrix.py."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Missed = Callable[[list[Any]], list[str]]


def test_an_only_worker_that_is_killed_comes_back_and_nobody_gets_an_unclean_answer(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["worker_killed"](house, kills=2)) == []


def test_a_worker_that_is_frozen_is_replaced_and_nobody_beside_it_notices(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["worker_frozen"](house)) == []


def test_of_two_workers_one_may_be_killed_and_nobody_notices(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["replica_of_two_killed"](house, kills=2)) == []
