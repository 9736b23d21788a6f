"""Configurations change under load, fail and race."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Missed = Callable[[list[Any]], list[str]]


def test_new_versions_and_splits_under_load_fail_nothing_and_leave_no_old_answer(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["rollouts"](house, changes=2, shifts=4, rate=100)) == []


def test_a_version_that_cannot_start_is_told_with_its_words_and_the_old_one_serves(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["bad_versions"](house)) == []


def test_a_version_that_hangs_is_told_at_the_limit_and_can_be_deleted(
    matrix: ModuleType, registry: str, tmp_path: Path, missed: Missed
) -> None:
    limit = {"INFERLAKE_DEPLOYMENT_TIMEOUT_SECONDS": "5"}
    with matrix.House(tmp_path, registry, **limit) as house:
        assert missed(matrix.ROWS["hanging_version"](house, limit_seconds=5)) == []


def test_an_update_that_is_killed_leaves_one_configuration_whole(
    matrix: ModuleType, own_house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["update_killed"](own_house, kills=2)) == []


def test_of_many_changes_at_once_one_wins_and_the_others_are_told(
    matrix: ModuleType, house: Any, missed: Missed
) -> None:
    assert missed(matrix.ROWS["races"](house)) == []
