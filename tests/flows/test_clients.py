"""Real clients, unchanged, against `inferlake up` with real models: every call of each client.

The older ones have environments of their own, made by uv; all together:
`python benchmarks/serving/clients.py`."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import benchmarked

OLD = ("databricks-sdk==0.57.0", "databricks-sdk==0.71.0")
NEWEST = ("databricks-sdk", "mlflow", "openai", "curl")
Said = dict[str, dict[str, str]]


def measured(clients: Sequence[str], folder: Path) -> Said:
    """client -> call -> `ok`, `-` (the client has no such call), or how it failed: these clients
    at one server together."""
    with pytest.MonkeyPatch.context() as patch:
        said: Said = benchmarked.load(patch, "serving", "clients").measure(clients, folder)
    return said


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What the installed clients met."""
    return measured(NEWEST, tmp_path_factory.mktemp("clients"))


@pytest.mark.parametrize("client", NEWEST)
def test_every_call_of_a_client_does_what_it_should(newest: Said, client: str) -> None:
    said = newest[client]
    assert len(said) >= 5
    assert {call: how for call, how in said.items() if how != "ok"} == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_call_of_the_oldest_supported_sdk_does_what_it_should(tmp_path: Path) -> None:
    for client, said in measured(OLD, tmp_path).items():
        assert sum(how == "ok" for how in said.values()) >= 20, client
        assert {call: how for call, how in said.items() if how not in ("ok", "-")} == {}, client
