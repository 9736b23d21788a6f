"""The short forms of benchmarks/capture: that each runs and gives a finite ratio, not which."""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks" / "capture"


@pytest.fixture
def benchmark_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """benchmark_of("throughput"): the module, which finds those beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


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


def test_added_cpu_gives_a_ratio_with_its_interval(
    benchmark_of: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    added_cpu = benchmark_of("added_cpu")
    append, write = added_cpu.in_a_loop(tmp_path, count=50, repeats=1)
    assert math.isfinite(append / write)
    rounds = [{"off": 10.0, "write": 12.0, "on": 16.0}, {"off": 11.0, "write": 13.0, "on": 16.0}]
    assert added_cpu.ratio(rounds) == pytest.approx(2.75)
    assert added_cpu.interval(rounds) == pytest.approx((2.5, 3.0))


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
