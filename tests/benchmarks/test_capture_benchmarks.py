"""The short forms of benchmarks/capture: that each runs and gives a finite ratio, not which."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests import benchmarked

pytestmark = pytest.mark.slow


@pytest.fixture
def benchmark_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """benchmark_of("throughput"): the module, which finds those beside it."""
    return lambda name: benchmarked.load(monkeypatch, "capture", name)


def test_throughput_gives_a_ratio_for_each_acknowledgement(
    benchmark_of: Callable[[str], ModuleType],
) -> None:
    ratios = benchmark_of("throughput").measure(count=2_000, pairs=1)
    assert set(ratios) == {"process", "power"}
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios.values())


def test_commit_cost_gives_a_time_for_each_commit(
    benchmark_of: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERLAKE_DATA_DIR", str(tmp_path))
    commit_cost = benchmark_of("commit_cost")
    taken = commit_cost.measure(tmp_path, commits=60)
    assert len(taken) == 60
    assert math.isfinite(commit_cost.ratio(taken))


def test_added_cpu_gives_the_cost_of_each_part_and_their_ratio_to_a_write(
    benchmark_of: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    added_cpu = benchmark_of("added_cpu")
    told = added_cpu.measure(tmp_path, seconds=2)
    spent = added_cpu.between(told[0], told[-1])
    assert set(spent) == {*added_cpu.PARTS, "write"}
    assert math.isfinite(added_cpu.ratio(spent))
    assert added_cpu.ratio(dict.fromkeys(added_cpu.PARTS, 2.0) | {"write": 3.0}) == (
        pytest.approx(len(added_cpu.PARTS) * 2 / 3)
    )


def test_every_request_of_the_load_becomes_visible(
    benchmark_of: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    visible = benchmark_of("visible")
    taken = visible.measure(tmp_path, seconds=0.5)
    assert len(taken) == 250
    assert math.isfinite(visible.quantile(taken, 0.99))


def test_restart_gives_the_time_to_the_first_answer_with_and_without_a_log(
    benchmark_of: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart = benchmark_of("restart")
    monkeypatch.setattr(restart, "BACKLOG_BYTES", 1 << 20)
    taken = restart.measure(tmp_path, rounds=1)
    ((empty,), (full,)) = taken.values()
    assert math.isfinite(full / empty)
