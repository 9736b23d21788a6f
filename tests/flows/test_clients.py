"""Real clients, unchanged, against `inferlake up` with real models: every call of each client.

Older ones, each in an environment of its own: `python benchmarks/serving/clients.py`."""

import pytest

from tests import benchmarked

NEWEST = ("databricks-sdk", "mlflow", "openai", "curl")
Said = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """client -> call -> `ok`, or how it failed: the installed clients at one server together."""
    with pytest.MonkeyPatch.context() as patch:
        clients = benchmarked.load(patch, "serving", "clients")
        said: Said = clients.measure(NEWEST, tmp_path_factory.mktemp("clients"))
    return said


@pytest.mark.parametrize("client", NEWEST)
def test_every_call_of_a_client_does_what_it_should(newest: Said, client: str) -> None:
    said = newest[client]
    assert len(said) >= 5
    assert {call: how for call, how in said.items() if how != "ok"} == {}
