"""Promote, undo, ramp and dismiss by a real browser, with the effect seen in the answers that
clients get."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.flows.conftest import Site, SiteOn

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 240
TOKEN = "a-token-for-a-test"
ENDPOINT = "sum"
OURS = f"/api/1.0/endpoints/{ENDPOINT}"
THEIRS = f"/api/2.0/serving-endpoints/{ENDPOINT}"
ENTITIES = [
    {
        "name": f"v{version}",
        "entity_name": "main.flows.sum",  # version 2 answers ten times as much
        "entity_version": version,
        "workload_size": "Small",
        "scale_to_zero_enabled": False,
    }
    for version in "12"
]
CAPTURE = {"catalog_name": "main", "schema_name": "flows", "enabled": True}
MONITOR = {
    "output_schema_name": "main.flows",
    "assets_dir": "/flows",
    "inference_log": {
        "problem_type": "PROBLEM_TYPE_REGRESSION",
        "timestamp_col": "request_time",
        "granularities": ["1 day"],
        "prediction_col": "prediction",
        "model_id_col": "served_entity_name",
        "label_col": "label",
    },
    "schedule": {"quartz_cron_expression": "0 0 0 * * ?", "timezone_id": "UTC"},
}
POLICY = {"primary": {"name": "mse", "mde": 1.0}, "champion": "v1", "challenger": "v2"}


def eventually(wanted: Callable[[], Any]) -> Any:
    """The first true value. Fails when patience ends."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not (found := wanted()):
        assert time.monotonic() < ends
        time.sleep(0.1)
    return found


def routes(share: int) -> dict[str, Any]:
    shares = {"v1": 100 - share, "v2": share}
    found = [{"served_model_name": n, "traffic_percentage": p} for n, p in shares.items()]
    return {"routes": found}


class Shop:
    """A running server with an experiment under way, and its pages."""

    def __init__(self, site: Site) -> None:
        head = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx2.Client(base_url=site.up.url, headers=head, timeout=60, trust_env=False)
        self.site, self.sent = site, 0

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, path, json=body)
        assert answer.status_code < 400, answer.text
        return answer.json()

    def answers(self, count: int) -> Counter[float]:
        """Ask that often for 1 + 2: 3 is version 1's answer, 30 is version 2's."""
        found: Counter[float] = Counter()
        for _ in range(count):
            self.sent += 1
            body = {"client_request_id": f"r{self.sent}", "dataframe_records": [{"a": 1, "b": 2}]}
            told = self.call("POST", f"/serving-endpoints/{ENDPOINT}/invocations", body)
            found[round(told["predictions"][0])] += 1
        return found

    def begin(self) -> None:
        """The endpoint at 50/50, a few labelled requests, and the first decision."""
        where = {**CAPTURE, "table_name_prefix": ENDPOINT}
        config = {"served_entities": ENTITIES, "traffic_config": routes(50)}
        config |= {"auto_capture_config": where}
        body = {"name": ENDPOINT, "config": config}
        self.call("POST", "/api/2.0/serving-endpoints", body)
        eventually(lambda: self.call("GET", THEIRS)["state"]["ready"] == "READY")
        table = f"main.flows.{ENDPOINT}_unpacked"
        self.call("POST", f"/api/2.1/unity-catalog/tables/{table}/monitor", MONITOR)
        self.call("PUT", f"{OURS}/experiment", POLICY)
        self.answers(40)
        labels = [
            {"client_request_id": f"r{k + 1}", "row_index": 0, "label": 3} for k in range(self.sent)
        ]
        self.call("POST", f"{OURS}/labels", {"labels": labels})
        eventually(lambda: self.call("GET", f"{OURS}/experiment")["decisions"])
        eventually(self.open)

    def open(self) -> list[dict[str, Any]]:
        """Recommendations that wait for somebody."""
        found = self.call("GET", f"/api/1.0/recommendations?endpoint={ENDPOINT}&state=open")
        return list(found["recommendations"])

    def share(self) -> int:
        """Version 2's percentage."""
        found = self.call("GET", THEIRS)["config"]["traffic_config"]["routes"]
        return int(next(r["traffic_percentage"] for r in found if r["served_model_name"] == "v2"))

    def halve(self) -> None:
        """Half of the traffic for each, and no ramp."""
        self.http.delete(f"{OURS}/ramp")
        promotion = {"served_entity": "v2", "traffic_percentage": 50}
        self.call("POST", f"{OURS}/promote", promotion)
        eventually(lambda: len(self.answers(20)) == 2)

    def open_page(self, name: str) -> Any:
        """A page in a session of its own, signed in."""
        return self.site.open(f"{name}?endpoint={ENDPOINT}")


@pytest.fixture(scope="module")
def shop(
    site_on: SiteOn,
    tmp_path_factory: pytest.TempPathFactory,
    registered: Callable[[Path], None],
) -> Iterator[Shop]:
    data_dir = tmp_path_factory.mktemp("acting") / "data"
    registered(data_dir)
    with site_on(data_dir, TOKEN) as site:
        made = Shop(site)
        made.begin()
        yield made
        made.http.close()


def test_a_promotion_reaches_every_client_and_its_undo_brings_both_back(shop: Shop) -> None:
    shop.halve()
    page = shop.open_page("experiment")
    page.get_by_role("button", name="Promote v2 to 100 %").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason (kept in the history)").fill("the browser wants it")
    dialog.get_by_role("button", name="Change traffic").click()
    dialog.get_by_text("The name is not the endpoint's").wait_for()
    assert shop.share() == 50  # one version would get everything: its name is asked for
    dialog.get_by_label(re.compile("type the endpoint's name")).fill(ENDPOINT)
    dialog.get_by_role("button", name="Change traffic").click()
    page.get_by_text("sum: v2 100 %").first.wait_for()
    eventually(lambda: set(shop.answers(20)) == {30})
    [newest, *_] = shop.call("GET", f"{OURS}/versions")["versions"]
    assert (newest["reason"], newest["origin"]) == ("the browser wants it", "user")

    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Undone.").wait_for()
    assert shop.share() == 50
    eventually(lambda: len(shop.answers(20)) == 2)


def test_a_ramp_that_is_begun_takes_its_first_step(shop: Shop) -> None:
    shop.halve()
    page = shop.open_page("experiment")
    page.get_by_text("Begin a ramp").click()
    page.get_by_role("button", name="Begin", exact=True).click()
    page.get_by_text("The ramp has begun.").wait_for()
    assert shop.call("GET", f"{OURS}/ramp")["challenger"] == "v2"
    # It moves on fresh rows only.
    eventually(lambda: shop.answers(2) and shop.share() == 1)
    eventually(lambda: shop.answers(100)[30] <= 5)
    [newest, *_] = shop.call("GET", f"{OURS}/versions")["versions"]
    assert newest["origin"] == "ramp"
    page.get_by_role("button", name="End the ramp").click()
    page.get_by_text("The ramp has ended").wait_for()
    assert shop.http.get(f"{OURS}/ramp").status_code == 404 and shop.share() == 1


def test_what_is_dismissed_stays_away_and_moves_nothing(shop: Shop) -> None:
    shop.halve()
    eventually(shop.open)
    page = shop.open_page("recommendations")
    [found] = shop.open()
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_label("Reason (kept)").fill("we know")
    page.get_by_test_id("stFormSubmitButton").get_by_role("button").click()
    page.get_by_text("Dismissed.").wait_for()
    every = shop.call("GET", f"/api/1.0/recommendations?endpoint={ENDPOINT}")["recommendations"]
    mine = next(one for one in every if one["id"] == found["id"])
    assert (mine["state"], mine["outcome"]["reason"]) == ("dismissed", "we know")
    page.get_by_text("No open recommendation").wait_for()
    decided = shop.call("GET", f"{OURS}/experiment")["decisions"][0]["decided_time"]
    shop.answers(2)
    eventually(
        lambda: shop.call("GET", f"{OURS}/experiment")["decisions"][0]["decided_time"] != decided
    )
    assert shop.open() == [] and shop.share() == 50 and len(shop.answers(40)) == 2
