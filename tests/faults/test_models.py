"""Models do harm, and nobody else notices."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Missed = Callable[[list[Any]], list[str]]


def test_a_request_that_ends_its_worker_costs_two_and_no_neighbour(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["request_that_kills"](house)) == []


def test_a_bad_row_fails_alone_among_63_good_ones(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["bad_row"](house)) == []


def test_a_model_that_leaks_is_replaced_before_its_limit(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["leaks"](house, piece_mib=25, limit_bytes=1 << 30, rate=6)) == []


def test_a_model_that_takes_more_than_it_may_is_ended(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["takes"](house, mib=2048, limit_bytes=1 << 30)) == []


def test_a_model_that_never_returns_is_told_and_replaced(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["loops"](house)) == []


def test_a_model_that_forks_changes_no_answer_and_leaves_nothing(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["forks"](house)) == []


def test_a_model_that_prints_fills_no_disk(matrix: ModuleType, house: Any, missed: Missed) -> None:
    assert missed(matrix.ROWS["prints"](house, mib=128)) == []
