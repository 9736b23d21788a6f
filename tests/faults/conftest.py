"""Recorded tables to damage."""

import shutil
from pathlib import Path

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
