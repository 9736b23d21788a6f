"""How a worker's process begins and ends: limits that libraries read at import, and an exit that
waits for nobody. Imports the standard library only."""

import os
import sys
import traceback
from collections.abc import Callable

LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
QUIET = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}


def limit() -> None:
    """One thread per library unless the environment says otherwise: a replica is one unit of
    processor, and pools of two replicas on the same cores wait for each other."""
    for name in LIMITS:
        os.environ.setdefault(name, "1")
    os.environ.update(QUIET)


def end(work: Callable[[], None], leave: Callable[[int], object]) -> None:
    """Do the work, then leave with 0, or with 1 and the stack on standard error. Threads that a
    model started are not waited for: they must not keep a process that has drained."""
    code = 0
    try:
        work()
    except BaseException:  # noqa: BLE001  a library may panic outside Exception
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    leave(code)
