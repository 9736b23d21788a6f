"""How long from the decision to start a replica until its model answers: fresh process or zygote?

    python benchmarks/serving/cold_start.py [--pairs 5]

Peer: a fresh process of the same worker with the same model (what every server without a zygote
does). Pairs are interleaved in one run, so that a busy machine slows both. Prints medians and the
ratio of each pair; exits 1 if the median ratio is under the bar.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

from capture.settings import Settings
from serving import processes
from serving.controller import local, orders, replicas

BAR_RATIO = 4.0
ENTITY_ID = "e" * 32


def save_model(folder: Path) -> None:
    """A logistic regression on 30 columns, with its signature."""
    import mlflow.sklearn
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(7)
    rows = pd.DataFrame(draw.normal(size=(1_000, 30)), columns=[f"x{i}" for i in range(30)])
    target = (rows["x0"] > 0).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            LogisticRegression().fit(rows, target),
            folder,
            signature=infer_signature(rows, target),
            pip_requirements=["mlflow", "scikit-learn"],
            serialization_format="cloudpickle",
        )


def order(settings: Settings, model: Path, number: int, fresh: bool) -> orders.Order:
    """An order for one more replica."""
    replica_id = f"{number:012x}"
    log = orders.log_path(settings, "bench", "lr", replica_id)
    spec = {
        "endpoint": "bench",
        "entity": "lr",
        "served_entity_id": ENTITY_ID,
        "socket": str(settings.run_dir / f"w-{replica_id}.sock"),
        "model_path": str(model),
        "snapshots_dir": str(settings.snapshots_dir),
        "log": str(log),
    }
    return orders.Order(replica_id, sys.executable, spec, {}, log, fresh)


async def seconds_to_answer(backend: local.Local, asked: orders.Order) -> float:
    """From the order to the first answered probe; the replica is ended."""
    begun = time.perf_counter()
    process = await backend.start(asked)
    answered = asyncio.Event()
    pulse = replicas.Pulse(process, asked.spec["socket"], ENTITY_ID)
    task = asyncio.create_task(replicas.follow(pulse, answered.set))
    async with asyncio.timeout(120):
        await answered.wait()
    taken = time.perf_counter() - begun
    task.cancel()
    backend.stop(process, 0, now=0)
    while processes.alive(process):
        backend.expire(now=1)
        await asyncio.sleep(0.01)
    return taken


async def measure(settings: Settings, model: Path, pairs: int) -> list[tuple[float, float]]:
    """(fresh, zygote) seconds per pair; the first, which pays for cold caches, is not counted."""
    backend = local.Local(settings)
    try:
        backend.warm()
        found = []
        for pair in range(pairs + 1):
            fresh = await seconds_to_answer(backend, order(settings, model, 2 * pair, True))
            forked = await seconds_to_answer(backend, order(settings, model, 2 * pair + 1, False))
            found.append((fresh, forked))
        return found[1:]
    finally:
        backend.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(data_dir=Path(place))
        settings.run_dir.mkdir()
        save_model(Path(place) / "model")
        found = asyncio.run(measure(settings, Path(place) / "model", pairs))
    fresh, forked = zip(*found, strict=True)
    ratio = statistics.median(a / b for a, b in found)
    for name, values in (("fresh process", fresh), ("zygote", forked)):
        spread = f"({min(values):.2f} - {max(values):.2f})"
        print(f"{name:<14} median {statistics.median(values):6.2f} s  {spread}")
    print(f"{'ratio':<14} median {ratio:6.1f}    (bar {BAR_RATIO:g}, {pairs} pairs)")
    return 0 if ratio >= BAR_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
