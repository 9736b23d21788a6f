"""Recorded tables to damage, and servers to mistreat."""

import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from capture import database
from capture.settings import Settings
from tests.faults.record import Record


@pytest.fixture(scope="session")
def three_commits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory to copy: rows a, b and c, each in a commit of its own, unpacked."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("record") / "data")
    database.migrate(settings)
    settings.data_dir.chmod(0o700)
    record = Record(settings)
    for name in "abc":
        record.commit(name)
    return settings.data_dir


@pytest.fixture
def record(three_commits: Path, tmp_path: Path) -> Record:
    """Rows a, b and c, each in a commit of its own, unpacked."""
    shutil.copytree(three_commits, tmp_path / "data")
    return Record(Settings(data_dir=tmp_path / "data", port=0, dashboard_port=0))


# --- rows of the fault matrix on a running server ------------------------------------------------

MATRIX = Path(__file__).parents[2] / "benchmarks" / "serving"
GIB = 1 << 30
# Limits as short as the rows allow, so that one server serves for all of them.
SHORT = {
    "INFERLAKE_MODEL_TIMEOUT_SECONDS": "3",
    "INFERLAKE_SCALE_TO_ZERO_AFTER_SECONDS": "1",
    "INFERLAKE_HEADER_TIMEOUT_SECONDS": "1",
    "INFERLAKE_BODY_TIMEOUT_SECONDS": "2",
    "INFERLAKE_WORKER_MEMORY_BYTES": str(GIB),
}


@pytest.fixture(scope="session")
def matrix() -> Iterator[ModuleType]:
    """benchmarks/serving/fault_matrix.py: the tests run its rows in a short form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(MATRIX))
        yield importlib.import_module("fault_matrix")


@pytest.fixture(scope="session")
def registry(matrix: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with models that do what they are told."""
    return str(matrix.register(tmp_path_factory.mktemp("registry")))


@pytest.fixture(scope="session")
def house(
    matrix: ModuleType, registry: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A running server, for rows that leave it running."""
    with matrix.House(tmp_path_factory.mktemp("h"), registry, **SHORT) as house:
        yield house


@pytest.fixture
def own_house(matrix: ModuleType, registry: str, tmp_path: Path) -> Iterator[Any]:
    """A running server, for a row that kills it."""
    with matrix.House(tmp_path, registry) as house:
        yield house


@pytest.fixture
def missed() -> Callable[[list[Any]], list[str]]:
    """missed(figures): those that miss their bar; not what is read by the clock, which a busy
    machine cannot judge: benchmarks/serving/fault_matrix.py does."""

    def told(figures: list[Any]) -> list[str]:
        return [str(each) for each in figures if not each.met and not each.clocked]

    return told
