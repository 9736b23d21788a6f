"""Refusals of the server as classes that a page can act upon."""

from typing import Any

import pytest

from dashboard import api
from tests.dashboard import provider as standin


@pytest.fixture
def client(provider: Any) -> api.Client:
    return api.Client(provider.url, standin.TOKEN)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("error", api.Failed),
        ("denied", api.Denied),
        ("gone", api.NotFound),
        ("conflict", api.Conflict),
    ],
)
def test_a_status_is_a_class_with_the_servers_words(
    provider: Any, client: api.Client, mode: str, kind: type[api.ApiError]
) -> None:
    provider.modes["/overview"] = mode
    with pytest.raises(kind) as refused:
        api.overview(client)
    assert refused.value.message
    assert refused.value.error_code
    assert refused.value.request_id == "req-17"


def test_nobody_at_the_address_is_a_sentence() -> None:
    with pytest.raises(api.Unreachable, match="cannot be reached"):
        api.overview(api.Client("http://127.0.0.1:9", "x"))


def test_the_token_stays_out_of_texts(client: api.Client) -> None:
    assert standin.TOKEN not in repr(client)


def test_names_are_quoted_in_paths(provider: Any, client: api.Client) -> None:
    api.capture(client, "a/../b?c")
    assert provider.queries[-1][0] == "/api/1.0/endpoints/a/../b?c/capture"


def test_a_code_becomes_a_token(provider: Any) -> None:
    anonymous = api.Client(provider.url)
    assert api.sign_in(anonymous, "good")["token"] == standin.TOKEN
    with pytest.raises(api.Denied):
        api.sign_in(anonymous, "old")


def test_an_answer_of_a_model_is_an_answer_even_if_it_is_an_error(
    provider: Any, client: api.Client
) -> None:
    provider.modes["/invocations"] = "error"
    answer = api.query(client, "flight-delay", "{}")
    assert answer.status == 500
    assert "Something broke." in answer.body
    assert answer.served_by == "v2"


def test_exports_are_bytes(client: api.Client) -> None:
    assert api.export(client, "csv", {"endpoint": "flight-delay"}).startswith(b"request_time")
