"""The short form of benchmarks/capture/faults.py: the proofs of the record see planted faults."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

LONG_FORM = Path(__file__).parents[2] / "benchmarks" / "capture"


@pytest.fixture(scope="module")
def faults() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(LONG_FORM)  # its processes import it by name, too
        yield importlib.import_module("faults")


@pytest.mark.parametrize(
    "name",
    [
        "a row that is kept in memory only",
        "no check of the transaction",
        "no check of the checksum",
        "blocks signed alike",
        "a reply before the append",
    ],
)
def test_a_planted_fault_is_found(faults: Any, tmp_path: Path, name: str) -> None:
    if (
        name.startswith("a reply")
        and not faults.order_audit.can_trace()
        and "INFERLAKE_REQUIRE_TOOLS" not in os.environ
    ):
        pytest.skip("The order of system calls is seen with strace.")
    (fault,) = (one for one in faults.FAULTS if one.name == name)
    assert faults.look_for(fault, tmp_path, kills=6) != ""
