"""Fixtures of tests that need the state database: a data directory with a registered table."""

import shutil
from pathlib import Path

import pytest

from capture import database
from capture.settings import Settings
from tests.capture import shop


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state database to copy: migrating one takes longer than most tests here."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("migrated"))
    database.migrate(settings)
    return settings.data_dir / "inferlake.db"


@pytest.fixture
def shop_settings(tmp_path: Path, migrated: Path) -> Settings:
    """A data directory in which the shop's table is registered, without a row."""
    shutil.copy(migrated, tmp_path)
    settings = Settings(data_dir=tmp_path)
    shop.record(settings, shop.TABLE, "shop")
    return settings
