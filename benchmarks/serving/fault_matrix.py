"""Does each row of the fault matrix that concerns serving keep its bars (promises.md)?

    python benchmarks/serving/fault_matrix.py [--only NAME ...] [--list]

Each row is a scenario on an `inferlake up` of its own, with a real registry: something is killed,
frozen, filled, overrun or told to misbehave, and what every client met is counted. One line a row
with its figures and bars. Exit code 1 if a figure misses its bar.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import faults_clients
import faults_load
import faults_models
import faults_processes
import faults_rollouts
import faults_state
import faults_workers
from faults_ground import Figure, House, register

ROWS: dict[str, Callable[[House], list[Figure]]] = {
    **faults_workers.ROWS,
    **faults_models.ROWS,
    **faults_rollouts.ROWS,
    **faults_load.ROWS,
    **faults_clients.ROWS,
    **faults_processes.ROWS,
    **faults_state.ROWS,
}
# What a row's server needs to be told.
SETTINGS = {
    "loops": {"INFERLAKE_MODEL_TIMEOUT_SECONDS": "3"},
    "hanging_version": {"INFERLAKE_DEPLOYMENT_TIMEOUT_SECONDS": "15"},
    "from_zero": {"INFERLAKE_SCALE_TO_ZERO_AFTER_SECONDS": "1"},
    "scaling_down": {"INFERLAKE_SCALE_TO_ZERO_AFTER_SECONDS": "1"},
}


def run(name: str, folder: Path, registry: str) -> list[Figure]:
    """One row on a server of its own."""
    with ExitStack() as stack:
        if name == "disk_full":
            folder = stack.enter_context(faults_state.small_disk(folder))
        told = SETTINGS.get(name, {})
        if name == "clock_jumps":
            told = faults_state.wrong_clock(folder)
        house = stack.enter_context(House(folder, registry, **told))
        return ROWS[name](house)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return 0
    missed = []
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        registry = register(Path(place))
        for name in options.only:
            begun = time.monotonic()
            folder = Path(place) / name
            folder.mkdir()
            try:
                figures = run(name, folder, registry)
                met = all(figure.met for figure in figures)
                told = "; ".join(map(str, figures))
            except Exception as error:  # noqa: BLE001 - one row must not hide the others
                met, told = False, f"{type(error).__name__}: {error}"
            if not met:
                missed.append(name)
            seconds = time.monotonic() - begun
            print(f"{'ok' if met else 'MISSED':6} {name} ({seconds:.0f} s): {told}", flush=True)
    print(f"{len(options.only) - len(missed)} of {len(options.only)} rows met their bars")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
