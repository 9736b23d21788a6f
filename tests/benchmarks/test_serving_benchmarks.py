"""The short form of benchmarks/serving/fuzz.py."""

from pathlib import Path
from types import ModuleType

import pytest

from tests import benchmarked

pytestmark = pytest.mark.slow


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, which finds the modules beside it."""
    return benchmarked.load(monkeypatch, "serving", "fuzz")


@pytest.mark.parametrize("way", ["the gateway's short way", "plain ASGI"])
def test_every_bad_input_is_told_what_and_where(fuzz: ModuleType, tmp_path: Path, way: str) -> None:
    with fuzz.up.served(tmp_path, fuzz.MODELS, **fuzz.WAYS[way]) as url:
        found = fuzz.measure(url, seed=11, mutations=200, sample=0.05)
    assert {leg: seen.misses for leg, seen in found.items() if seen.misses} == {}
    assert sum(found["bad kinds"].statuses.values()) >= 76
