"""Zygotes: per environment a process that has done its imports and forks on demand: 0.3 s to a
replica instead of seconds. They die with the controller; the replicas that they forked live on."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from capture import logline
from serving import logs, processes
from serving.controller import orders

log = logline.logger(__name__)

ZYGOTE_PATIENCE_SECONDS = 120.0
FORK_SECONDS = 30.0


class Refused(Exception):
    """A parent did not fork; the text says why."""


async def ask(socket_path: Path, line: Mapping[str, Any], seconds: float) -> int:
    """Pid of the fork that a parent made of this order. Raises OSError, TimeoutError, Refused."""
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    try:
        async with asyncio.timeout(seconds):
            writer.write(json.dumps(line).encode() + b"\n")
            answer = await reader.readline()
    finally:
        writer.close()
    try:
        return int(json.loads(answer)["pid"])
    except (ValueError, KeyError):
        raise Refused(answer.decode(errors="replace")[:300] or "it ended") from None


class Zygote:
    """The parent of an environment's forks. Its socket answers when its imports are done."""

    def __init__(self, python: str, path: Path | None, run_dir: Path, log_path: Path) -> None:
        """path: folder that holds our packages, where they are not installed."""
        self.socket_path = run_dir / f"z-{os.urandom(4).hex()}.sock"
        command = [python, "-m", "serving.worker.zygote", "--socket", str(self.socket_path)]
        log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with log_path.open("wb") as out:
            self.process = subprocess.Popen(
                processes.tied(command),
                env=orders.environment({}, path),
                cwd=run_dir,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.log_path = log_path
        self._patience = ZYGOTE_PATIENCE_SECONDS

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    async def fork(self, line: Mapping[str, Any]) -> int | None:
        """Pid of a new replica or template; None: this zygote is of no use, start it plainly."""
        try:
            async with asyncio.timeout(self._patience):
                await self.listening()
            return await ask(self.socket_path, line, FORK_SECONDS)
        except (OSError, TimeoutError, Refused) as error:
            log.warning("zygote_failed", reason=f"{type(error).__name__}: {error}")
            # Without patience for a second one: whoever asks next must not wait as long again.
            self._patience = 1
            return None

    async def listening(self) -> None:
        """Wait for its imports. Raises Refused with what it printed last if it ended."""
        while not self.socket_path.exists():
            if not self.alive:
                raise Refused(logs.tail(self.log_path) or "it ended")
            await asyncio.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket_path.unlink(missing_ok=True)


class Zygotes:
    """One per environment, started when first wanted."""

    def __init__(self, run_dir: Path, logs_dir: Path, packages: Path) -> None:
        self._run_dir, self._logs_dir, self._packages = run_dir, logs_dir, packages
        self._known: dict[str, Zygote] = {}
        for stale in run_dir.glob("z-*.sock"):
            stale.unlink()  # of a controller that was killed, and its zygotes with it

    def path(self, python: str) -> Path | None:
        """The folder that holds our packages, for an environment where they are not installed."""
        return None if python == sys.executable else self._packages

    def of(self, python: str) -> Zygote:
        """The zygote of an environment, on its way if it was not there."""
        known = self._known.get(python)
        if known is None or not known.alive:
            own = python == sys.executable
            name = "zygote" if own else f"zygote-{Path(python).parents[1].name}"
            made = Zygote(python, self.path(python), self._run_dir, self._logs_dir / f"{name}.log")
            self._known[python] = known = made
        return known

    async def imported(self, python: str) -> None:
        """Wait until an environment's zygote has done its imports. Raises Refused."""
        await self.of(python).listening()

    def keep(self, pythons: Collection[str]) -> None:
        """End those of environments that no entity uses, save the server's own."""
        for python in self._known.keys() - {sys.executable, *pythons}:
            self._known.pop(python).close()

    def close(self) -> None:
        for zygote in self._known.values():
            zygote.close()
        self._known.clear()
