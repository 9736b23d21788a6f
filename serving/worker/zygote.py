"""`python -m serving.worker.zygote --socket PATH`: imports once, then forks replicas and templates.

A fresh process needs seconds for its imports, a fork of one that did them 0.3 s. The parent has one
thread, loads no model but a small one of its own (rehearsal.py), and never imports polars or
deltalake (mlflow would, see process.without): a parent that ran polars hangs its children,
deltalake makes them panic.
"""

import argparse
import importlib
import sys
import threading
from pathlib import Path

from serving.worker import forking, process, rehearsal

NEEDED = ("mlflow.pyfunc", "mlflow.pyfunc.scoring_server", "serving.worker.template")
# What most models import; an environment of a model's own need not have it.
USUAL = (
    "mlflow.sklearn",
    "sklearn.compose",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "pyarrow",
    "serving.features.online",
)


def main() -> None:
    """Import, listen, fork, reap; SIGTERM ends it, its replicas live on."""
    parser = argparse.ArgumentParser(prog="python -m serving.worker.zygote")
    parser.add_argument("--socket", type=Path, required=True, help="Where to listen.")
    path = parser.parse_args().socket
    process.limit()
    with process.without(*process.HIDDEN):
        for name in NEEDED:
            importlib.import_module(name)
        for name in USUAL:
            _import_if_there(name)
        _rehearse()
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        print(f"threads before a fork: {names}", file=sys.stderr, flush=True)
    forking.serve(path, _become)


def _import_if_there(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"not preloaded: {name}: {error}", file=sys.stderr, flush=True)


def _rehearse() -> None:
    try:
        rehearsal.run()
    except Exception as error:  # noqa: BLE001 - it only saves memory and time
        print(f"not rehearsed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _become(order: forking.Order) -> None:
    """What a child does: serve, or wait as a template."""
    from serving.worker import loop, template

    spec = loop.read_spec(order.spec)
    if order.template is None:
        loop.serve(spec)
    else:
        template.serve(spec, order.template)


if __name__ == "__main__":
    main()
