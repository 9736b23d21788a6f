"""`python -m serving.worker --spec FILE`: one replica of one served entity.

It runs in the model's own environment, which needs mlflow, msgspec and orjson (and lmdb for models
with look-ups). Of ours it loads wire, capture.errors, capture.logline and serving.features.online,
and gives their names back before it loads the model.
"""

import argparse
import os
from pathlib import Path

from serving.worker import process


def main() -> None:
    """Serve until SIGTERM. The process ends without waiting for threads that a model left."""
    parser = argparse.ArgumentParser(prog="python -m serving.worker")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file: what to serve.")
    spec_path = parser.parse_args().spec
    process.limit()
    with process.without(*process.HIDDEN):
        # Only now: numpy and OpenMP read their limits when they are imported.
        from serving.worker import loop

    process.end(lambda: loop.serve(loop.read_spec(spec_path)), os._exit)


if __name__ == "__main__":
    main()
