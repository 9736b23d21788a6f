"""Clients that trickle, never read, or hang up."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Missed = Callable[[list[Any]], list[str]]


def test_slow_clients_are_cut_off_and_nobody_notices(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert (
        missed(matrix.ROWS["slow_clients"](house, clients=60, most_seconds=20, step_seconds=0.2))
        == []
    )


def test_what_clients_that_hang_up_held_comes_back(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["hang_ups"](house, clients=150)) == []
