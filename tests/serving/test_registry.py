"""A model is found by version or alias, with what its files say."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capture import errors
from capture.settings import Settings
from serving import registry

Register = Callable[..., Path]
INPUTS = [
    {"type": "double", "name": "distance", "required": True},
    {"type": "long", "name": "hour", "required": False},
    {"type": "string", "name": "carrier", "optional": True},
    {"type": "double", "name": "seats", "required": True},
]
SPEC = {
    "lookups": [
        {"table": "main.f.planes", "lookup_key": ["tailnum"], "features": ["seats", "age"]}
    ],
    "request_columns": {"tailnum": "string"},
    "looked_up_columns": {"age": "double"},
}


@pytest.mark.parametrize("workspaces", [True, False])
def test_a_version_and_an_alias_are_found(
    settings: Settings, register: Register, workspaces: bool
) -> None:
    register("main.f.m", 1, INPUTS, workspaces=workspaces)
    folder = register("main.f.m", 2, INPUTS, aliases=("champion",))
    assert registry.find(settings, "main.f.m", "1").version == "1"
    found = registry.find(settings, "main.f.m", "@champion")
    assert (found.version, found.folder) == ("2", folder)
    assert found.flavours == ("python_function", "sklearn")
    assert [(c.name, c.required) for c in found.inputs] == [
        ("distance", True),
        ("hour", False),
        ("carrier", False),
        ("seats", True),
    ]


@pytest.mark.parametrize("reference", ["2", "@champion"])
def test_what_is_not_registered_does_not_exist(
    settings: Settings, register: Register, reference: str
) -> None:
    with pytest.raises(errors.DoesNotExist, match="does not exist in the registry"):
        registry.find(settings, "m", reference)
    register("m", 1)
    with pytest.raises(errors.DoesNotExist, match="does not exist in the registry"):
        registry.find(settings, "m", reference)


def test_other_workspaces_are_not_served(settings: Settings, register: Register) -> None:
    register("m", 1)
    with sqlite3.connect(settings.data_dir / "mlflow" / "mlflow.db") as db:
        db.execute("UPDATE model_versions SET workspace = 'theirs'")
    db.close()
    with pytest.raises(errors.DoesNotExist):
        registry.find(settings, "m", "1")


def test_a_version_without_its_files_does_not_exist(settings: Settings, register: Register) -> None:
    (register("m", 1) / "MLmodel").unlink()
    with pytest.raises(errors.DoesNotExist, match="The files of model 'm' version '1'"):
        registry.find(settings, "m", "1")


def test_columns_are_typed_and_looked_up_ones_told_apart(
    settings: Settings, register: Register
) -> None:
    register("m", 1, INPUTS, feature_spec=SPEC)
    found = registry.find(settings, "m", "1")
    assert found.looked_up_columns == {"seats": "double", "age": "double"}
    assert found.request_columns == {
        "distance": "double",
        "hour": "int64",
        "carrier": "string",
        "tailnum": "string",
    }


def test_a_tensor_signature_has_no_columns(settings: Settings, register: Register) -> None:
    register("m", 1, [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 3]}}])
    register("m", 2, None)
    assert registry.find(settings, "m", "1").inputs == ()
    assert registry.find(settings, "m", "2").request_columns == {}


def test_the_digest_tells_content_and_names_and_ignores_byte_code(
    settings: Settings, register: Register
) -> None:
    folder = register("m", 1)
    before = registry.digest(folder)
    (folder / "code" / "__pycache__").mkdir(parents=True)
    (folder / "code" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert registry.digest(folder) == before
    (folder / "model.bin").rename(folder / "model.bim")
    moved = registry.digest(folder)
    (folder / "model.bim").write_bytes(b"other")
    assert len({before, moved, registry.digest(folder)}) == 3


def test_accepted_files_may_be_touched_but_not_changed(
    settings: Settings, register: Register
) -> None:
    folder = register("m", 1)
    accepted = registry.Accepted("m", "1", folder, registry.digest(folder))
    accepted.check()
    weights = folder / "model.bin"
    before = weights.stat()
    os.utime(weights, ns=(0, 0))
    accepted.check()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_bytes(b"x")
    accepted.check()
    weights.write_bytes(b"x" * before.st_size)
    os.utime(weights, ns=(0, 0))  # same inode, size and time of the last write
    for _ in range(2):
        with pytest.raises(errors.Conflict, match=r"model 'm' version 1 changed .* a new version"):
            accepted.check()
    weights.write_bytes(b"m 1")
    accepted.check()
    weights.unlink()
    with pytest.raises(errors.Conflict, match="changed since"):
        accepted.check()
    registry.Accepted("m", "1", folder, None).check()


MAKE = """
import mlflow
client = mlflow.MlflowClient()
client.create_registered_model("main.f.m")
client.create_model_version("main.f.m", "file:///models/one", None)
client.create_model_version("main.f.m", "file:///models/two", None)
"""


def test_a_real_registry_is_read_by_sql_and_written_by_the_helper(settings: Settings) -> None:
    (settings.data_dir / "mlflow").mkdir()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": settings.mlflow_uri, "DO_NOT_TRACK": "1"}
    environment["MLFLOW_REGISTRY_URI"] = settings.mlflow_uri
    subprocess.run([sys.executable, "-c", MAKE], env=environment, check=True, capture_output=True)
    for version in ("1", "2"):
        with pytest.raises(errors.DoesNotExist, match=f"The files of model .* version '{version}'"):
            registry.find(settings, "main.f.m", version)
    registry.set_alias(settings, "main.f.m", "champion", "2")
    with pytest.raises(errors.DoesNotExist, match=r"The files of model .* version '2'"):
        registry.find(settings, "main.f.m", "@champion")
    with pytest.raises(errors.DoesNotExist, match="version '3' does not exist"):
        registry.set_alias(settings, "main.f.m", "champion", "3")


LOCAL, SERVER = "sqlite:////data/mlflow.db", "https://mlflow.example.com"


@pytest.mark.parametrize("location", ["s3://b/m", "mlflow-artifacts:/m", "runs:/1/m", "dbfs:/m"])
@pytest.mark.parametrize("uri", [LOCAL, SERVER, "databricks"])
def test_models_come_from_the_allowed_schemes(uri: str, location: str) -> None:
    registry.check_source(uri, "m", "1", location)


@pytest.mark.parametrize("location", ["/models/m", "file:///models/m"])
def test_only_a_registry_of_this_machine_names_its_folders(location: str) -> None:
    for uri in (LOCAL, "file:///data/mlruns", "/data/mlruns"):
        registry.check_source(uri, "m", "1", location)
    for uri in (SERVER, "databricks", "databricks-uc", "postgresql://db.example.com/mlflow"):
        with pytest.raises(errors.BadRequest, match=r"'m' version '1' lie at .* kind 'file'"):
            registry.check_source(uri, "m", "1", location)


@pytest.mark.parametrize(
    "location", ["http://h/m", "HTTPS://u:p@h/m", "ftp://h/m", "file://host/m", "m", "", "hdfs://m"]
)
def test_other_addresses_are_refused_and_not_shown(location: str) -> None:
    for uri in (LOCAL, SERVER):
        with pytest.raises(errors.BadRequest, match="allowed are abfss, dbfs, ") as told:
            registry.check_source(uri, "m", "1", location)
        assert "u:p@h" not in told.value.message


def test_a_model_whose_files_lie_elsewhere_is_not_found(
    settings: Settings, register: Register
) -> None:
    register("m", 1)
    with sqlite3.connect(settings.data_dir / "mlflow" / "mlflow.db") as db:
        db.execute("UPDATE model_versions SET storage_location = 'http://169.254.169.254/latest'")
    db.close()
    with pytest.raises(errors.BadRequest, match="of the kind 'http'"):
        registry.find(settings, "m", "1")


MAKE_RUNS = """
import sys
import mlflow
client = mlflow.MlflowClient()
client.create_registered_model("m")
for name, artifacts in (("here", sys.argv[1]), ("there", "http://127.0.0.1:9/artifacts")):
    run = client.create_run(client.create_experiment(name, artifacts)).info.run_id
    client.create_model_version("m", f"runs:/{run}/model", run)
    print(run)
"""


def test_an_address_of_a_run_is_followed_before_it_is_judged(
    settings: Settings, tmp_path: Path
) -> None:
    (settings.data_dir / "mlflow").mkdir()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": settings.mlflow_uri, "DO_NOT_TRACK": "1"}
    environment["MLFLOW_REGISTRY_URI"] = settings.mlflow_uri
    command = [sys.executable, "-c", MAKE_RUNS, (tmp_path / "runs").as_uri()]
    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    with sqlite3.connect(settings.data_dir / "mlflow" / "mlflow.db") as db:
        db.execute("UPDATE model_versions SET storage_location = source")
    db.close()
    here = made.stdout.split()[-2]
    folder = tmp_path / "runs" / here / "artifacts" / "model"
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}")
    assert registry.find(settings, "m", "1").folder == folder
    with pytest.raises(errors.BadRequest, match="of the kind 'http'"):
        registry.find(settings, "m", "2")
