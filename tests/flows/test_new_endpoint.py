"""A newcomer's first endpoint: made on the page, watched while it comes up, queried from the page,
and its request found in the record; what does not start says why."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.flows.conftest import Site, SiteOn

pytestmark = pytest.mark.slow

PATIENCE_MS = 120_000
TOKEN = "a-token-for-a-test"


class Visit:
    """A signed-in browser tab on the dashboard; what went wrong in it."""

    def __init__(self, site: Site) -> None:
        self.site, self.open = site, site.open
        self.faults: list[str] = []
        site.page.on("pageerror", lambda error: self.faults.append(f"JavaScript: {error}"))
        site.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if urlsplit(request.url).hostname not in ("127.0.0.1", None):
            self.faults.append(f"request to {request.url}")

    def call(self, path: str) -> Any:
        head = {"Authorization": f"Bearer {TOKEN}"}
        return httpx2.get(f"{self.site.up.url}{path}", headers=head, trust_env=False).json()


@pytest.fixture(scope="module")
def visit(
    site_on: SiteOn,
    tmp_path_factory: pytest.TempPathFactory,
    registered: Callable[[Path], None],
) -> Iterator[Visit]:
    data_dir = tmp_path_factory.mktemp("new") / "data"
    registered(data_dir)
    with site_on(data_dir, TOKEN) as site:
        yield Visit(site)


def choose(page: Any, label: str, value: str) -> None:
    """Type a value into a list to choose from."""
    field = page.get_by_role("combobox", name=label)
    field.click()
    field.fill(value)
    page.get_by_role("option", name=value).first.click()


def test_a_first_endpoint_is_made_watched_queried_and_recorded(visit: Visit) -> None:
    page = visit.open("endpoints")
    page.get_by_role("link", name="New endpoint").first.click()
    page.get_by_role("heading", name="New endpoint").wait_for()
    choose(page, "Registered model", "main.flows.sum")
    page.wait_for_url("**model=main.flows.sum**")
    page.get_by_text("a request sends a (double), b (double)").wait_for()
    page.get_by_text("The server has checked it").wait_for()
    assert visit.call("/api/2.0/serving-endpoints")["endpoints"] == []
    page.get_by_role("button", name="Create the endpoint").click()

    page.wait_for_url("**/endpoint?**endpoint=sum**")
    page.get_by_text("is ready after").wait_for()
    page.get_by_role("button", name="Send").click()
    page.get_by_text("status 200").wait_for()
    page.get_by_text("served by v2").wait_for()

    page.get_by_role("link", name="See it in the record").click()
    page.wait_for_url("**/requests?**request=**")
    page.get_by_text("Where the time went").wait_for()
    [row] = visit.call("/api/1.0/requests?endpoint=sum")["requests"]
    assert row["databricks_request_id"] in page.url
    assert visit.faults == []


def test_a_model_that_cannot_start_says_why_in_its_own_words(visit: Visit) -> None:
    page = visit.open("create?model=main.flows.broken&name=no-start")
    page.get_by_role("button", name="Create the endpoint").click()
    page.wait_for_url("**/endpoint?**endpoint=no-start**")
    page.get_by_text("The update failed").first.wait_for()
    page.get_by_text("this model cannot be loaded").first.wait_for()
    # Whoever closes the tab finds the same again.
    again = visit.open("endpoint?endpoint=no-start&tab=Events")
    again.get_by_text("2 events, newest first").wait_for()
    assert visit.faults == []


def test_a_change_by_json_is_checked_made_and_rolled_back(visit: Visit) -> None:
    from playwright.sync_api import expect

    page = visit.open("endpoint?endpoint=sum&tab=Configuration&edit=JSON")
    page.get_by_text("Change it").click()
    field = page.get_by_label("Configuration", exact=True)
    expect(field).not_to_have_value("", timeout=PATIENCE_MS)
    text = field.input_value()
    field.fill(text.replace('"workload_size": "Small"', '"workload_size": "Huge"'))
    field.press("Control+Enter")
    page.get_by_text("expected one of").first.wait_for()
    field.fill(text.replace('"scale_to_zero_enabled": false', '"scale_to_zero_enabled": true'))
    field.press("Control+Enter")
    page.get_by_text("The server has checked it").wait_for()
    page.get_by_role("button", name="Make the change").click()
    ends = time.monotonic() + PATIENCE_MS / 1000
    while len(visit.call("/api/1.0/endpoints/sum/versions")["versions"]) < 2:
        assert time.monotonic() < ends
        page.wait_for_timeout(100)
    assert visit.faults == []
