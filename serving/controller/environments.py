"""In which Python environment a model runs: the server's own, or one built by uv for it.

`auto`: if the server's own packages meet what the model pinned, its own; else a virtual environment
below `environments/<key>`, where the key is a hash of the Python version and the requirements, so
that models with the same needs share one. It is whole when its `ready` file is there; half a one,
left by a crash, is built again. `local` and `isolated` leave no choice.
"""

import functools
import hashlib
import importlib.metadata
import platform
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from capture import errors
from serving.controller import building

Mode = Literal["auto", "local", "isolated"]
MODES: tuple[Mode, ...] = ("auto", "local", "isolated")
MODE_VARIABLE = "INFERLAKE_ENVIRONMENT"

# One builder per environment, so that two models with the same needs do not tread on each other.
_building: dict[str, threading.Lock] = {}


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model says it needs. python_version: `3.11.4`, or None if it does not say."""

    python_version: str | None
    requirements: tuple[str, ...]


def mode(text: str) -> Mode:
    """Parse a mode. Raises InvalidParameter."""
    for each in MODES:
        if text.lower() == each:
            return each
    raise errors.InvalidParameter(
        f"{MODE_VARIABLE}: expected auto, local or isolated, found '{text[:100]}'."
    )


def needs(model_folder: Path) -> Needs:
    """Read requirements.txt and python_env.yaml of a model folder, or its conda.yaml."""
    python_env = _yaml(model_folder / "python_env.yaml")
    conda = _yaml(model_folder / "conda.yaml")
    python_version = python_env.get("python") or _conda_python(conda)
    listed = model_folder / "requirements.txt"
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
    else:
        lines = _conda_pip(conda)
    stripped = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return Needs(
        str(python_version) if python_version else None, tuple(line for line in stripped if line)
    )


def unmet(wanted: Needs, python_version: str, installed: Mapping[str, str]) -> list[str]:
    """What of `wanted` an environment does not hold, each as a few words; empty: it fits. Pure.

    installed: version by normalised package name. A requirement without a version is met by any.
    Python must have the same minor version. mlflow and mlflow-skinny of one version are equal."""
    missing: list[str] = []
    if wanted.python_version:
        asked, present = (v.split(".")[:2] for v in (wanted.python_version, python_version))
        if asked != present:
            missing.append(f"python {'.'.join(asked)} (here {'.'.join(present)})")
    for line in wanted.requirements:
        reason = _unmet(line, installed)
        if reason is not None:
            missing.append(reason)
    return missing


def _unmet(line: str, installed: Mapping[str, str]) -> str | None:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return line  # an option, a path or an address: only an installer can tell
    if requirement.url:
        return line
    if requirement.marker is not None and not requirement.marker.evaluate():
        return None
    name = canonicalize_name(requirement.name)
    names = ("mlflow", "mlflow-skinny") if name in ("mlflow", "mlflow-skinny") else (name,)
    found = next((installed[n] for n in names if n in installed), None)
    if found is None:
        return f"{line} (not installed)"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{line} (here {found})"
    return None


@functools.cache
def own_packages() -> dict[str, str]:
    """Version by normalised name of every package in this process's environment."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def interpreter(
    model_folder: Path,
    mode: Mode,
    environments_dir: Path,
    deadline_seconds: float,
    say: Callable[[str], None],
    prove: building.Prove,
) -> str:
    """The Python that runs this model; builds its environment if need be (minutes, in a thread).

    say: takes each stage, for the entity's message. prove: has a new environment import.
    Raises building.BuildFailed."""
    if mode == "local":
        return sys.executable
    wanted, why = needs(model_folder), "It asked for an environment of its own"
    if mode == "auto":
        missing = unmet(wanted, platform.python_version(), own_packages())
        if not missing:
            return sys.executable
        why = f"The server's environment lacks {_few(missing)}"
        say(why)
    with _building.setdefault(key(wanted), threading.Lock()):
        return str(_built(wanted, environments_dir, deadline_seconds, say, prove, why))


def key(wanted: Needs) -> str:
    """Name of the environment that meets these needs. Pure."""
    text = "\n".join([wanted.python_version or "", *sorted(wanted.requirements)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_log(environments_dir: Path, model_folder: Path) -> str:
    """What building this model's environment printed; empty if it needed none."""
    path = environments_dir / f"{key(needs(model_folder))}.log"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _built(
    wanted: Needs,
    environments_dir: Path,
    deadline_seconds: float,
    say: Callable[[str], None],
    prove: building.Prove,
    why: str,
) -> Path:
    name = key(wanted)
    folder = environments_dir / name
    if not (folder / "ready").is_file():
        environments_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (environments_dir / f"{name}.log").open("w", encoding="utf-8") as build_log:
            build_log.write(f"{why}.\n")
            build = building.Build(folder, deadline_seconds, say, build_log, prove)
            build.run(wanted.python_version, wanted.requirements)
    return folder / "bin" / "python"


def _few(words: list[str]) -> str:
    rest = len(words) - 3
    return ", ".join(words[:3]) + (f" and {rest} more" if rest > 0 else "")


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _conda_python(conda: Mapping[str, Any]) -> str | None:
    for each in conda.get("dependencies") or ():
        found = re.fullmatch(r"python\s*=+\s*([\d.]+)", each) if isinstance(each, str) else None
        if found:
            return found.group(1)
    return None


def _conda_pip(conda: Mapping[str, Any]) -> list[str]:
    for each in conda.get("dependencies") or ():
        if isinstance(each, dict) and isinstance(each.get("pip"), list):
            return [str(line) for line in each["pip"]]
    return []
