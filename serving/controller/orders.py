"""What a process of a model is started with: interpreter, spec, environment, log."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capture.settings import Settings
from serving import registry

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# What an interpreter or a numeric library reads once, at its start: too late in a fork.
READ_AT_START = (*THREADS, "LD_", "PYTHON", "MALLOC_", "GLIBC_", "KMP_", "GOTO_", "BLIS_")


@dataclass(frozen=True, slots=True)
class Order:
    """What to start. `python`: interpreter of the model's environment; `spec`: content of the
    worker's spec file; `variables`: the entity's own, secrets resolved; `fresh`: not as a fork;
    `gpus`: numbers of the devices that it alone may use; `model`: the files to check first."""

    replica_id: str
    python: str
    spec: Mapping[str, Any]
    variables: Mapping[str, str]
    log: Path
    fresh: bool
    gpus: tuple[int, ...] = ()
    model: registry.Accepted | None = None

    async def check_model(self) -> None:
        """Before a process that loads the model is started. Raises Conflict: its files changed."""
        if self.model is not None:
            await asyncio.to_thread(self.model.check)

    @property
    def entity_id(self) -> str:
        return str(self.spec["served_entity_id"])

    @property
    def forkable(self) -> bool:
        """Whether a fork comes out the same as a fresh process would."""
        return not self.fresh and not any(name.startswith(READ_AT_START) for name in self.variables)


def environment(
    variables: Mapping[str, str], path: Path | None, gpus: tuple[int, ...] = ()
) -> dict[str, str]:
    """Environment of a replica. `path`: folder that holds our packages, where they are not
    installed. The entity's own variables come last, but cannot take ours away."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    # One thread each: a replica is one unit of processor, and two pools on two busy cores were
    # twelve times slower than one (demo.md).
    threads = dict.fromkeys(THREADS, "1")
    quiet = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    ours = {} if path is None else {"PYTHONPATH": str(path)}
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    return {**kept, **threads, **quiet, **variables, **ours, **devices}


def log_path(settings: Settings, endpoint: str, entity: str, replica_id: str) -> Path:
    """Where a replica's output goes."""
    return settings.logs_dir / endpoint / entity / f"replica-{replica_id}.log"


def template_log_path(settings: Settings, endpoint: str, entity: str) -> Path:
    """Where the output of an entity's template goes."""
    return settings.logs_dir / endpoint / entity / "template.log"


def write_spec(path: Path, spec: Mapping[str, Any]) -> Path:
    """Write a spec file that only this user can read; gives its path."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(spec))
    return path
