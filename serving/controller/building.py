"""Building a model's Python environment with uv: stage by stage, into a folder and a build log."""

import contextlib
import importlib.metadata
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from packaging.utils import canonicalize_name

from serving import processes
from serving.controller import stages

# What a worker of ours imports beside mlflow, wherever it runs.
WORKER_NEEDS = ("lmdb", "msgspec", "numpy", "orjson", "pandas")
KEPT_LINES = 15
TICK_SECONDS = 0.5


# Has the interpreter of a new environment import what a worker does; its exception says what does
# not load.
Prove = Callable[[str], Future[None]]


class BuildFailed(Exception):
    """The environment cannot be built; the text is the last lines of what was run."""


class Build:
    """One environment being built. say: takes the stage and the seconds, for people to read."""

    def __init__(
        self,
        folder: Path,
        deadline_seconds: float,
        say: Callable[[str], None],
        log: IO[str],
        prove: Prove,
    ) -> None:
        self._folder, self._say, self._log, self._prove = folder, say, log, prove
        self._began = time.monotonic()
        self._deadline = self._began + deadline_seconds
        self._progress = stages.Progress()
        self._told = ""
        self._environment = _environment(folder.parent / "uv-cache")
        self._archives = Path(self._environment["UV_CACHE_DIR"]) / "archive-v0"
        self._archives_before = self._cached()

    def run(self, python_version: str | None, requirements: Iterable[str]) -> None:
        """Build it, from nothing. Raises BuildFailed."""
        shutil.rmtree(self._folder, ignore_errors=True)
        python = str(self._folder / "bin" / "python")
        listed = self._folder.with_suffix(".txt")
        listed.write_text("\n".join(with_ours(requirements)) + "\n", encoding="utf-8")
        base = self._base_python(python_version)
        self._uv("venv", "--no-project", "--python", base, str(self._folder))
        self._enter("resolving")
        install = ("--verbose", "--python", python, "--requirement", str(listed))
        self._uv("pip", "install", *install)
        self._enter("importing")
        self._import(python)
        (self._folder / "ready").touch()
        self._enter("ready")

    def _import(self, python: str) -> None:
        proof = self._prove(python)
        while time.monotonic() < self._deadline:
            done, _ = futures.wait([proof], timeout=TICK_SECONDS)
            self._tell()
            if done:
                break
        else:
            proof.cancel()
            raise BuildFailed("Its Python environment did not import its packages in time.")
        error = proof.exception()
        if error is not None:
            self._write(str(error))
            raise BuildFailed(f"Its packages cannot be imported. {error}")

    def _base_python(self, asked: str | None) -> str:
        """An interpreter of the asked minor version, else the server's own: a model that was
        logged under 3.10 mostly runs under 3.11, and where it does not its own error says so."""
        if not asked:
            return sys.executable
        minor = ".".join(asked.split(".")[:2])
        if minor == ".".join(platform.python_version_tuple()[:2]):
            return sys.executable
        try:
            return self._uv("python", "find", "--no-project", minor)[-1]
        except BuildFailed:
            used = platform.python_version()
            self._write(f"Python {minor} is not on this machine; {used} is used")
            return sys.executable

    def _uv(self, *arguments: str) -> list[str]:
        return self._command([*_uv_command(), *arguments])

    def _command(self, command: list[str]) -> list[str]:
        """Lines of interest that a command printed. Raises BuildFailed."""
        lines: list[str] = []
        with subprocess.Popen(
            processes.tied(command),
            env=self._environment,
            cwd=self._folder.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            for line in self._lines(process):
                self._progress.feed(line)
                if stages.of_interest(line):
                    lines.append(line)
                    self._write(line)
                self._tell()
            code = process.wait()
        if code != 0:
            text = "\n".join(lines[-KEPT_LINES:])
            raise BuildFailed(f"Its Python environment could not be built. {text}")
        return lines

    def _lines(self, process: "subprocess.Popen[bytes]") -> Iterable[str]:
        """What it prints, line by line; between lines the stage is told again, for its seconds."""
        assert process.stdout is not None
        rest = b""
        while True:
            ready, _, _ = select.select([process.stdout], [], [], TICK_SECONDS)
            if time.monotonic() > self._deadline:
                os.killpg(process.pid, 9)
                raise BuildFailed(
                    f"Its Python environment was not built in time ({self._progress.stage})."
                )
            if not ready:
                self._tell()
                continue
            data = os.read(process.stdout.fileno(), 65_536)
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode(errors="replace").rstrip() for line in whole)
        if rest:
            yield rest.decode(errors="replace").rstrip()

    def _enter(self, stage: str) -> None:
        self._progress.enter(stage)
        self._tell()

    def _tell(self) -> None:
        """Say the stage with the seconds so far; a new one stands in the build log, too, and how
        many packages were downloaded."""
        stage = self._progress.told(self._cached() - self._archives_before)
        seconds = time.monotonic() - self._began
        word, before = stage.split(" ")[0], self._told.split(" ")[0]
        if word != before:
            if before == "downloading":
                self._write(f"[{seconds:5.1f} s] {self._told}")
            self._write(f"[{seconds:5.1f} s] {word}")
        self._told = stage
        self._say(f"Building its Python environment, {seconds:.0f} s: {stage}")

    def _write(self, line: str) -> None:
        self._log.write(line + "\n")
        self._log.flush()

    def _cached(self) -> int:
        """Packages that lie unpacked in uv's cache."""
        with contextlib.suppress(FileNotFoundError):
            return sum(1 for _ in self._archives.iterdir())
        return 0


def with_ours(requirements: Iterable[str]) -> list[str]:
    """The model's requirements, mlflow if it forgot it, and what our worker imports."""
    lines = list(requirements)
    named = {canonicalize_name(re.split(r"[\s\[<>=!~;@]", line, maxsplit=1)[0]) for line in lines}
    if not named & {"mlflow", "mlflow-skinny"}:
        lines.append(f"mlflow-skinny=={importlib.metadata.version('mlflow-skinny')}")
    return [*lines, *(name for name in WORKER_NEEDS if name not in named)]


def _environment(cache: Path) -> Mapping[str, str]:
    """What uv sees: the server's own secrets are no business of a package's build script."""
    fixed = {"UV_NO_PROGRESS": "1", "NO_COLOR": "1", "UV_PYTHON_DOWNLOADS": "never"}
    dropped = ("INFERLAKE_", "PYTHONPATH", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {"UV_CACHE_DIR": str(cache), **kept, **fixed, "DO_NOT_TRACK": "1"}


def _uv_command() -> list[str]:
    beside = Path(sys.executable).parent / "uv"
    return [str(beside)] if beside.is_file() else [sys.executable, "-m", "uv"]
