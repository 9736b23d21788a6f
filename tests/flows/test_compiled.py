"""The wheel that `INFERLAKE_COMPILE=1` makes (hatch_build.py) keeps the same promises, compiled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import benchmarked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

ROOT = Path(__file__).parents[2]
# What tests the compiled modules: requests over real connections, and the log read back into rows.
SUITES = ["tests/capture/test_exchanges.py", "tests/capture/test_wal.py", "tests/serving/gateway"]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inferlake as such a wheel has it."""
    if shutil.which("cc") is None and "INFERLAKE_REQUIRE_TOOLS" not in os.environ:
        pytest.skip("The gateway is compiled with a C compiler.")
    with pytest.MonkeyPatch.context() as patch:
        environments = benchmarked.load(patch, "serving", "environments")
        found: Path = environments.compiled(tmp_path_factory.mktemp("compiled"))
    return found


def run(build: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds inferlake there, and so do the processes that it starts."""
    environment = os.environ | {"PYTHONPATH": str(build), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_a_request_passes_is_compiled_and_what_a_worker_imports_is_not(build: Path) -> None:
    names = [
        "capture.exchanges",
        "capture.wal",
        "serving.gateway.invoke",
        "serving.gateway.protocol",
        "serving.gateway.replicas",
        "serving.wire",
    ]
    told = run(build, "-c", f"import {', '.join(names)}\nfor n in {names}: "
               "print(__import__('sys').modules[n].__file__)")  # fmt: skip
    files = [Path(line) for line in told.stdout.split()]
    assert [file.suffix for file in files] == [".so"] * 5 + [".py"], told.stderr
    assert all(file.is_relative_to(build) for file in files)


def test_the_compiled_gateway_keeps_the_same_promises(build: Path) -> None:
    told = run(build, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITES)
    assert told.returncode == 0, told.stdout[-8_000:]
