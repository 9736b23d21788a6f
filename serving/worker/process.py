"""How a worker's process begins and ends: limits that libraries read at import, and an exit that
waits for nobody. Imports the standard library only."""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
HIDDEN = ("polars", "deltalake")
QUIET = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}
# Some releases of mlflow start a thread for traces with the first prediction: no parent forks then.
TRACES = ("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")


def limit() -> None:
    """One thread per library unless the environment says otherwise: a replica is one unit of
    processor, and pools of two replicas on the same cores wait for each other."""
    for name in LIMITS:
        os.environ.setdefault(name, "1")
    os.environ.setdefault(*TRACES)
    os.environ.update(QUIET)


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that forked it ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended just before
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Let these modules look as if they were not installed. mlflow imports polars where it finds
    it, and needs nothing of it: 4 threads and 0.1 s for nothing, and forks of such a process hang.
    Afterwards they can be imported as ever, by a model that uses them."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


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
