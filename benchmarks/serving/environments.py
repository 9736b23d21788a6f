"""Virtual environments of peers that inferlake does not depend on, made once by uv and kept."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path


class NotInstalled(Exception):
    """A peer's environment could not be made; the message tells why."""


def default_cache() -> Path:
    """Where environments are kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "inferlake-benchmarks"


def python(cache: Path, name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment with these packages, and with the numpy and scikit-learn
    that this one has: what is compared is servers. Raises NotInstalled."""
    shared = [f"{each}=={metadata.version(each)}" for each in ("numpy", "scikit-learn")]
    wanted = [*packages, *shared, "cloudpickle"]
    key = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{key}"
    done, found = folder / "complete", folder / "bin" / "python"
    if done.exists():
        return found
    uv = shutil.which("uv")
    if uv is None:
        raise NotInstalled("uv is not installed")
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    _run(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
    _run(uv, "pip", "install", "--quiet", "--python", str(found), *wanted)
    done.touch()
    return found


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-3:]
        raise NotInstalled(
            f"{' '.join(command[1:3])} failed: {' '.join(last) or 'no reason given'}"
        )
