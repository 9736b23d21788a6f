"""Model, version or alias -> folder, signature, flavours, digest; moves aliases.

A SQLite registry is read by one read-only SQL query: milliseconds, where importing mlflow costs
seconds and megabytes that a gateway must not have. Everything else (servers, schemes and
tables that are not known here, all writes) is done by a helper process, `python -m
serving.registry`, with mlflow-skinny: a JSON request on its standard input, a JSON answer on its
standard output.
"""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import yaml

from capture import errors, logline
from capture.settings import Settings
from serving.features import spec

log = logline.logger(__name__)

HELPER_SECONDS = 300.0
MOST_HOPS = 5
_HIDDEN = (
    "INFERLAKE_ADMIN_TOKEN",
    "INFERLAKE_SERVICE_TOKEN",
    "INFERLAKE_DATABASE_URL",
    "INFERLAKE_SECRET_KEY",
    "INFERLAKE_SECRET_KEY_BEFORE",
)
# Where the files of a model may lie, beside folders of this machine: see check_source.
SCHEMES = frozenset(("mlflow-artifacts", "runs", "models", "s3", "gs", "abfss", "wasbs", "dbfs"))
_KINDS = {
    "double": "double",
    "float": "double",
    "integer": "int64",
    "long": "int64",
    "string": "string",
    "boolean": "bool",
    "datetime": "timestamp",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a signature. type: MLflow's name of it (`double`, `long`, `string`, ...)."""

    name: str
    type: str
    required: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A model version on this machine. inputs: named scalar columns of its signature, none for
    tensors or without a signature; features: its written feature definition, if it has one."""

    name: str
    version: str
    folder: Path
    flavours: tuple[str, ...]
    inputs: tuple[Column, ...]
    features: spec.Spec | None

    @property
    def request_columns(self) -> dict[str, str]:
        """Columns that a client sends: name -> double, int64, string, bool, timestamp."""
        looked_up = self.looked_up_columns
        known = {c.name: _KINDS[c.type] for c in self.inputs if c.name not in looked_up}
        return {**known, **(self.features.request_columns if self.features else {})}

    @property
    def looked_up_columns(self) -> dict[str, str]:
        """Columns that the endpoint adds: name -> double, int64, string, bool, timestamp."""
        if self.features is None:
            return {}
        typed = {column.name: _KINDS[column.type] for column in self.inputs}
        outputs = [name for lookup in self.features.lookups for name in lookup.outputs]
        kinds = self.features.looked_up_columns
        return {name: kinds.get(name) or typed.get(name, "string") for name in outputs}


def sent_columns(model: Model) -> dict[str, tuple[str, bool]]:
    """Columns that a client sends: name -> (MLflow's name of the type, required)."""
    looked_up = model.looked_up_columns
    sent = {c.name: (c.type, c.required) for c in model.inputs if c.name not in looked_up}
    named = {kind: mlflow for mlflow, kind in reversed(_KINDS.items())}
    for name, kind in (model.features.request_columns if model.features else {}).items():
        sent.setdefault(name, (named[kind], True))
    return sent


def find(settings: Settings, name: str, reference: str) -> Model:
    """The model of this name and version (digits) or alias (`@champion`).

    Raises DoesNotExist, or Unavailable if a registry server does not answer."""
    version, folder = _locate(settings, name, reference)
    return describe(name, version, folder)


def describe(name: str, version: str, folder: Path) -> Model:
    """What the files of a model version say. Raises DoesNotExist when they are not there."""
    try:
        about = yaml.load((folder / "MLmodel").read_text(), Loader=_LOADER)
    except OSError:
        raise errors.DoesNotExist(
            f"The files of model '{name}' version '{version}' do not exist."
        ) from None
    return Model(
        name,
        version,
        folder,
        tuple(about.get("flavors") or ()),
        _inputs(about.get("signature") or {}),
        _features(folder),
    )


def digest(folder: Path) -> str:
    """SHA-256 over names and contents of a model's files: fixed when a configuration is accepted,
    compared when it is loaded. Byte code is left out, since loading writes it."""
    total = hashlib.sha256()
    for path in _files(folder):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        name = str(path.relative_to(folder)).encode()
        total.update(len(name).to_bytes(4, "little") + name + content)
    return f"sha256:{total.hexdigest()}"


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if "__pycache__" not in path.parts]


class Accepted:
    """The files of a model version, which must be those that a configuration was accepted with.
    A check reads them only if one was touched since the last check."""

    def __init__(self, name: str, version: str, folder: Path, expected: str | None) -> None:
        """expected: their digest; None for a configuration older than digests."""
        self.name, self.version, self.folder, self.expected = name, version, folder, expected
        self._checked: list[tuple[str, int, int, int, int]] | None = None

    def check(self) -> None:
        """Raises Conflict when they are others by now. Reads gigabytes at the first call."""
        if self.expected is None:
            return
        try:
            # Before they are read: what is written meanwhile must be seen by the next check.
            stamps = [_stamp(path) for path in _files(self.folder)]
            if stamps == self._checked:
                return
            same = digest(self.folder) == self.expected
        except OSError:
            same = False
        self._checked = stamps if same else None
        if not same:
            raise errors.Conflict(
                f"The files of model '{self.name}' version {self.version} changed since the "
                "version was accepted, so it is not started; register them as a new version and "
                "serve that."
            )


def _stamp(path: Path) -> tuple[str, int, int, int, int]:
    # The time of the last change of the inode, too: unlike st_mtime no program can set it back.
    seen = path.stat()
    return str(path), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino


def set_alias(settings: Settings, name: str, alias: str, version: str) -> None:
    """Let an alias name this version. Takes seconds. Raises Unavailable with the reason."""
    helper(settings, {"do": "set_alias", "name": name, "alias": alias, "version": version})


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _inputs(signature: Mapping[str, Any]) -> tuple[Column, ...]:
    listed = json.loads(signature.get("inputs") or "[]")
    return tuple(
        Column(each["name"], each["type"], each.get("required", not each.get("optional", False)))
        for each in listed
        if each.get("name") and each.get("type") in _KINDS
    )


def _features(folder: Path) -> spec.Spec | None:
    path = folder / spec.FILE_NAME
    return spec.parse(json.loads(path.read_text())) if path.exists() else None


# --- where a version lies -------------------------------------------------------------------------


def _locate(settings: Settings, name: str, reference: str) -> tuple[str, Path]:
    path = sqlite_file(settings)
    if path is not None:
        found = _query(path, name, reference)
        if found is not None:
            version, location = found
            check_source(settings.mlflow_uri, name, version, location)
            if (folder := local_folder(location)) is not None:
                return version, folder
    answer = helper(settings, {"do": "find", "name": name, "reference": reference})
    return answer["version"], Path(answer["folder"])


def sqlite_file(settings: Settings) -> Path | None:
    """The file of a SQLite registry; None: it is another kind of registry."""
    parts = urlsplit(settings.mlflow_uri)
    return Path(unquote(parts.path).removeprefix("/")) if parts.scheme == "sqlite" else None


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a SQLite registry that changes nothing; rows have names."""
    uri = f"file:{quote(str(path))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def local_folder(location: str) -> Path | None:
    """The folder that an artifact location names, if it is one of this machine."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(location) if location.startswith("/") else None


def check_source(registry_uri: str, name: str, version: str, location: str) -> None:
    """Who may write to a registry names any address there: only these are read. Raises BadRequest.
    A path is one of this machine, hence only a registry of this machine may name it."""
    scheme = "file" if location.startswith("/") else urlsplit(location).scheme.lower()
    if scheme in SCHEMES:
        return
    if scheme == "file" and local_folder(location) is not None and _is_local(registry_uri):
        return
    allowed = ", ".join(sorted(SCHEMES))
    raise errors.BadRequest(
        f"The files of model '{name}' version '{version}' lie at an address of the kind "
        f"'{scheme[:20] or 'relative path'}'; allowed are {allowed}, and paths of this machine if "
        "the registry is one of this machine."
    )


def _is_local(registry_uri: str) -> bool:
    """A file or folder; Databricks is named by a plain word, too."""
    scheme = urlsplit(registry_uri).scheme.lower()
    plain = not scheme and registry_uri not in ("databricks", "databricks-uc", "uc")
    return plain or scheme in ("sqlite", "file")


def _query(path: Path, name: str, reference: str) -> tuple[str, str] | None:
    """(version, artifact location) from a SQLite registry; None: its tables are not known here."""
    if not path.exists():
        raise _missing(name, reference)
    try:
        with read_only(path) as connection:
            return _row(connection, name, reference)
    except sqlite3.DatabaseError as error:
        log.warning("registry_not_read", error=str(error))
        return None


def _row(connection: sqlite3.Connection, name: str, reference: str) -> tuple[str, str] | None:
    columns = {row["name"] for row in connection.execute("PRAGMA table_info(model_versions)")}
    # The column came with mlflow 3.10; other workspaces than the default are not ours to serve.
    here = "AND v.workspace = 'default'" if "workspace" in columns else ""
    if reference.startswith("@"):
        same = "AND a.workspace = v.workspace" if here else ""
        query = f"""SELECT v.* FROM model_versions v JOIN registered_model_aliases a
                    ON a.name = v.name AND a.version = v.version {same}
                    WHERE v.name = ? AND a.alias = ? {here}"""
        key = reference[1:]
    else:
        query = f"SELECT v.* FROM model_versions v WHERE v.name = ? AND v.version = ? {here}"
        key = str(int(reference))
    found = connection.execute(query, (name, key)).fetchone()
    if found is None or found["current_stage"] == "Deleted_Internal":
        raise _missing(name, reference)
    location = found["storage_location"] if "storage_location" in columns else None
    return str(found["version"]), location or found["source"]


def _missing(name: str, reference: str) -> errors.DoesNotExist:
    what = f"alias '{reference[1:]}'" if reference.startswith("@") else f"version '{reference}'"
    return errors.DoesNotExist(f"Model '{name}' with {what} does not exist in the registry.")


# --- the helper process ---------------------------------------------------------------------------


def helper(settings: Settings, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a helper process: seconds. Raises DoesNotExist, or Unavailable with why."""
    environment = {key: value for key, value in os.environ.items() if key not in _HIDDEN}
    environment |= {
        "MLFLOW_TRACKING_URI": settings.mlflow_uri,
        "MLFLOW_REGISTRY_URI": settings.mlflow_uri,
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }
    asked = {**request, "downloads": str(settings.data_dir.absolute() / "mlflow" / "downloads")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "serving.registry"],
            input=json.dumps(asked),
            env=environment,
            capture_output=True,
            text=True,
            timeout=HELPER_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        log.error("registry_helper_failed", request=dict(request), error=repr(error))
        raise errors.Unavailable("The model registry does not answer.") from None
    if "missing" in answer:
        raise _missing(request["name"], request.get("reference") or request["version"])
    if "refused" in answer:
        raise errors.BadRequest(answer["refused"])
    if "error" in answer:
        log.error("registry_refused", request=dict(request), error=answer["error"])
        raise errors.Unavailable("The model registry did not do what it was asked.")
    return answer


def main() -> None:
    """Helper process: one request, one answer."""
    request = json.load(sys.stdin)
    import mlflow  # seconds; only ever in this process
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow.MlflowClient()
        does = {"set_alias": _set_alias, "find": _download, "list": _list}
        answer = does[request["do"]](client, request)
    except errors.BadRequest as error:
        answer = {"refused": error.message}
    except MlflowException as error:
        code = error.error_code
        gone = code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        answer = {"missing": True} if gone else {"error": f"{code}: {error.message}"[:2000]}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _set_alias(client: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    client.set_registered_model_alias(request["name"], request["alias"], request["version"])
    return {}


def _list(client: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Models with their versions in the form of registered.py, names from `after` on."""
    found = []
    for model in client.search_registered_models(max_results=1000, order_by=["name ASC"]):
        if model.name <= request["after"] or request["part"] not in model.name.lower():
            continue
        versions = client.search_model_versions(f"name = '{model.name}'", max_results=1000)
        aliases = dict(model.aliases or {})
        listed = [
            (int(each.version), each.creation_timestamp, each.description) for each in versions
        ]
        if listed:
            found.append([model.name, listed, [(a, int(v)) for a, v in aliases.items()]])
        if len(found) >= request["limit"]:
            break
    return {"models": found}


def _download(client: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    import mlflow.artifacts

    name, reference = request["name"], request["reference"]
    if reference.startswith("@"):
        found = client.get_model_version_by_alias(name, reference[1:])
    else:
        found = client.get_model_version(name, reference)
    location = _underlying(client.get_model_version_download_uri(name, found.version))
    check_source(os.environ["MLFLOW_REGISTRY_URI"], name, str(found.version), location)
    folder = local_folder(location)
    if folder is None:
        target = Path(request["downloads"], quote(name, safe=""), str(int(found.version)))
        if not (target / "MLmodel").exists():
            target.mkdir(parents=True, exist_ok=True)
            mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=str(target))
        inner = next(target.rglob("MLmodel"), target / "MLmodel")
        folder = inner.parent
    return {"version": str(found.version), "folder": str(folder)}


def _underlying(location: str) -> str:
    """The address that a `runs:` or `models:` address stands for. Raises BadRequest."""
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
    from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

    for _ in range(MOST_HOPS):
        scheme = urlsplit(location).scheme.lower()
        if scheme not in ("models", "runs"):
            return location
        kind = ModelsArtifactRepository if scheme == "models" else RunsArtifactRepository
        found = str(kind.get_underlying_uri(location))
        if found == location:  # Unity Catalog hands out the files itself
            return location
        location = found
    raise errors.BadRequest("The address of the model's files leads from one to the next.")


if __name__ == "__main__":
    main()
