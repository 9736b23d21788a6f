"""Fixtures of the serving tests."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from capture.settings import Settings

# The tables as mlflow 3.17 makes them, and as versions before 3.10 did (no workspace).
TABLES = """
CREATE TABLE model_versions (name TEXT, version INTEGER, current_stage TEXT, source TEXT,
    status TEXT, storage_location TEXT {workspace});
CREATE TABLE registered_model_aliases (alias TEXT, version INTEGER, name TEXT {workspace});
"""

Register = Callable[..., Path]


@pytest.fixture
def register(settings: Settings) -> Register:
    """Writes model versions into the embedded registry of `settings`; see `registering`."""
    return _registering(settings)


@pytest.fixture(scope="session")
def registering() -> Callable[[Settings], Register]:
    """registering(settings) -> register(name, version, inputs=None, aliases=(), feature_spec=None)
    -> folder: writes a model version, files and row as mlflow would, without its seconds."""
    return _registering


def _registering(settings: Settings) -> Register:
    def write(
        name: str,
        version: int,
        inputs: list[dict[str, Any]] | None = None,
        aliases: tuple[str, ...] = (),
        feature_spec: dict[str, Any] | None = None,
        workspaces: bool = True,
    ) -> Path:
        folder = settings.mlflow_artifacts_dir / name / str(version)
        folder.mkdir(parents=True)
        about: dict[str, Any] = {"flavors": {"python_function": {}, "sklearn": {}}}
        if inputs is not None:
            about["signature"] = {"inputs": json.dumps(inputs), "outputs": None, "params": None}
        (folder / "MLmodel").write_text(json.dumps(about))  # JSON is YAML
        (folder / "model.bin").write_bytes(f"{name} {version}".encode())
        if feature_spec is not None:
            (folder / "feature_spec.json").write_text(json.dumps(feature_spec))
        path = settings.data_dir / "mlflow" / "mlflow.db"
        new = not path.exists()
        with closing(sqlite3.connect(path)) as db:
            if new:
                extra = ", workspace TEXT DEFAULT 'default'" if workspaces else ""
                db.executescript(TABLES.format(workspace=extra))
            db.execute(
                "INSERT INTO model_versions (name, version, current_stage, source, status,"
                " storage_location) VALUES (?, ?, 'None', 'models:/m-1', 'READY', ?)",
                (name, version, folder.as_uri()),
            )
            for alias in aliases:
                db.execute(
                    "INSERT INTO registered_model_aliases (alias, version, name) VALUES (?, ?, ?)",
                    (alias, version, name),
                )
            db.commit()
        return folder

    return write
