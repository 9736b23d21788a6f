"""Fixtures that start the real thing in a temporary folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import sqlalchemy as sa

from capture import database, delta, rows
from capture.settings import Settings

# A shared machine says nothing about time; speed has its own place in benchmarks/.
hypothesis.settings.register_profile("inferlake", deadline=None, max_examples=50)
hypothesis.settings.load_profile("inferlake")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """No registry of another test: MLflow writes each address that it is given into the
    environment, for good. A hook, because it must come before fixtures of a whole module."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a data directory that exists and is empty."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    return Settings(data_dir=data_dir)


@pytest.fixture
def state(settings: Settings) -> Iterator[sa.Engine]:
    """The state database, migrated."""
    database.migrate(settings)
    engine = database.open_engine(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def table(settings: Settings) -> delta.Table:
    """An empty payload table."""
    schema, partition = rows.KINDS["payload"]
    path = delta.path_of(settings, "main.default.model_payload")
    return delta.open_or_create(path, schema, partition, time_column="request_time")
