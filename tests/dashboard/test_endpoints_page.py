"""The list of endpoints: filters live in the address, and one can be stopped or deleted from it."""

from typing import Any

import pytest

from tests.dashboard import provider as standin
from tests.dashboard.reading import said

LIST = "/api/2.0/serving-endpoints"


def several() -> dict[str, Any]:
    """One that serves, one that was stopped, one that starts, of two creators."""
    ready = standin.endpoint()
    stopped = ready | {"name": "archive", "stopped": True, "creator": "bob"}
    waiting = {"ready": "NOT_READY", "config_update": "IN_PROGRESS"}
    newest = ready["last_updated_timestamp"] + 60_000
    starts = ready | {"name": "brand-new", "state": waiting, "last_updated_timestamp": newest}
    return {"endpoints": [ready, stopped, starts]}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, ["archive", "brand-new", standin.NAME]),
        ({"state": "stopped"}, ["archive"]),
        ({"state": "updating"}, ["brand-new"]),
        ({"state": "ready"}, [standin.NAME]),
        ({"find": "BOB"}, ["archive"]),
        ({"order": "last change"}, ["brand-new", standin.NAME, "archive"]),
    ],
)
def test_the_address_says_which_endpoints_are_shown_in_which_order(
    opened: Any, provider: Any, query: dict[str, str], names: list[str]
) -> None:
    provider.overrides[LIST] = several()
    app = opened("endpoints", endpoint="", **query)
    assert not app.exception
    assert list(app.dataframe[0].value["name"]) == names


def test_no_more_than_a_hundred_rows_are_drawn(opened: Any, provider: Any) -> None:
    many = [standin.endpoint() | {"name": f"e{number:04}"} for number in range(300)]
    provider.overrides[LIST] = {"endpoints": many}
    app = opened("endpoints", endpoint="")
    assert len(app.dataframe[0].value) == 100
    assert "300 of 300 endpoints, the first 100 are shown" in said(app)


def test_an_endpoint_is_stopped_and_deleted_from_the_list(opened: Any, provider: Any) -> None:
    app = opened("endpoints", endpoint="")
    app.selectbox(key="endpoints_action").select(standin.NAME).run()
    next(b for b in app.button if b.label == "Stop").click().run()
    assert provider.sent[-1][1].endswith("/endpoints/flight-delay/stop")
    app.selectbox(key="endpoints_action").select(standin.NAME).run()
    assert next(b for b in app.button if b.label == "Start").help == "It is not stopped."
    field = next(t for t in app.text_input if t.label.startswith("To delete"))
    field.set_value(standin.NAME)
    next(b for b in app.button if b.label == "Delete").click().run()
    assert provider.sent[-1][:2] == ("DELETE", f"{LIST}/{standin.NAME}")


def test_a_viewer_cannot_delete_and_reads_why(opened: Any, provider: Any) -> None:
    provider.level = "CAN_VIEW"
    app = opened("endpoints", endpoint="")
    app.selectbox(key="endpoints_action").select(standin.NAME).run()
    delete = next(b for b in app.button if b.label == "Delete")
    assert delete.disabled and "Needs CAN_MANAGE" in delete.help
