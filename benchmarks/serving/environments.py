"""What benchmarks need installed besides the present environment, made once by uv and kept: virtual
environments of peers that inferlake does not depend on, and inferlake itself, compiled."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path


class NotInstalled(Exception):
    """An environment could not be made; the message tells why."""


ROOT = Path(__file__).parents[2]
PACKAGES = ("capture", "monitors", "serving", "dashboard")


def default_cache() -> Path:
    """Where environments are kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "inferlake-benchmarks"


def python(cache: Path, name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment with these packages, and with the numpy and scikit-learn
    that this one has: what is compared is servers. Raises NotInstalled."""
    shared = [f"{each}=={metadata.version(each)}" for each in ("numpy", "scikit-learn")]
    wanted = [*packages, *shared, "cloudpickle"]
    key = _key("\n".join([sys.version, *wanted]).encode())
    folder = cache / f"{name}-{key}"
    done, found = folder / "complete", folder / "bin" / "python"
    if done.exists():
        return found
    uv = _emptied(folder)
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    _run([uv, "pip", "install", "--quiet", "--python", str(found), *wanted])
    done.touch()
    return found


def compiled(cache: Path) -> Path:
    """A folder with inferlake as it stands here, compiled (hatch_build.py), to come first on the
    path of an interpreter of this version. Raises NotInstalled."""
    sources = [ROOT / "pyproject.toml", ROOT / "hatch_build.py"]
    sources += sorted(each for name in PACKAGES for each in (ROOT / name).rglob("*.py"))
    texts = [sys.version.encode(), *(each.read_bytes() for each in sources)]
    folder = cache / f"inferlake-{_key(b''.join(texts))}"
    done = folder / "complete"
    if done.exists():
        return folder
    uv = _emptied(folder)
    print("compiling the gateway, about a minute", flush=True)
    _run(
        [uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps",
         "--target", str(folder), str(ROOT)],
        INFERLAKE_COMPILE="1",
    )  # fmt: skip
    done.touch()
    return folder


def _key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _emptied(folder: Path) -> str:
    """Make room for an environment; gives the path of uv."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        raise NotInstalled("uv is not installed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return uv


def _run(command: Sequence[str], **environment: str) -> None:
    ended = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-3:]
        raise NotInstalled(
            f"{' '.join(command[1:3])} failed: {' '.join(last) or 'no reason given'}"
        )
