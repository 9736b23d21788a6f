"""A model that was loaded and probed, and waits: its forks answer 0.03 s after they were asked for.

Only where a fork is safe: a flavour without threads or devices of its own, one thread, no library
that cannot be forked, no file or connection that the forks would share. What does not fit says so
in its log and ends. A template dies with its zygote, and so with the controller: it serves nobody,
and the next controller makes its own.
"""

import os
import sys
from pathlib import Path

from serving.worker import forking, loop, process

FLAVOURS = ("mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm")
# polars hangs a fork and deltalake panics in it; the others hold threads or a device.
UNFORKABLE = ("polars", "deltalake", "torch", "tensorflow", "jax", "grpc", "ray", "pyspark")
HARMLESS_THREADS = ("jemalloc",)  # Arrow's allocator starts its own anew in a fork


def serve(spec: loop.Spec, path: Path) -> None:
    """Load, then fork a replica per order, until SIGTERM. Raises what loading raises."""
    process.die_with_parent()
    before = _descriptors()
    loaded = loop.load(spec)
    reason = _unfit(loaded, before)
    if reason is not None:
        print(f"no template: {reason}", file=sys.stderr, flush=True)
        return
    forking.serve(path, lambda order: loop.serve(loop.read_spec(order.spec), loaded))


def _unfit(loaded: loop.Loaded, before: set[str]) -> str | None:
    """Why this process must not be forked; None: it may."""
    if loaded.features is not None:
        return "it looks features up"
    if loaded.model.flavour not in FLAVOURS:
        return f"models of {loaded.model.flavour} may hold what a fork cannot share"
    found = [name for name in UNFORKABLE if sys.modules.get(name) is not None]
    if found:
        return f"it imported {', '.join(found)}"
    threads = [name for name in _threads() if not name.startswith(HARMLESS_THREADS)]
    if len(threads) > 1:
        return f"it has {len(threads)} threads ({', '.join(threads)})"
    opened = _descriptors() - before
    if opened:
        return f"it opened {', '.join(sorted(opened))}"
    return None


def _threads() -> list[str]:
    tasks = Path("/proc/self/task").iterdir()
    return [(task / "comm").read_text(encoding="utf-8").strip() for task in tasks]


def _descriptors() -> set[str]:
    """What is open, by number and name."""
    found = set()
    for each in os.listdir("/proc/self/fd"):  # noqa: PTH208 - its own descriptor is gone by then
        try:
            found.add(f"{each}: {os.readlink(f'/proc/self/fd/{each}')}")  # noqa: PTH115
        except FileNotFoundError:
            continue
    return found
