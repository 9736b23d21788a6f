"""Settings by a real browser: a token made on the page works in a client until it is revoked there,
a secret can be read nowhere, a price changes what usage costs."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pyarrow as pa
import pytest

from capture import catalog, database, delta, lives, names, rows
from capture.settings import Settings
from serving import state
from tests.flows.conftest import Site, SiteOn

pytestmark = pytest.mark.slow

ENDPOINT, TABLE, ENDPOINT_ID = "shop", "main.shop.s_payload", "e" * 32
TOKEN = "a-token-for-a-test"
SECRET = "nobody-may-read-this-4711"
REVOKED_SECONDS = 5.0
HOURS, REQUESTS = 4, 40


def requests(now: datetime) -> list[dict[str, Any]]:
    """Of two users and two versions, one failed and one over a limit."""
    found = []
    for number in range(REQUESTS):
        at = now - timedelta(minutes=number)
        status = {3: 500, 5: 429}.get(number, 200)
        found.append(
            dict.fromkeys(rows.PAYLOAD_SCHEMA.names)
            | {
                "request_date": at.date(),
                "databricks_request_id": str(names.uuid7(int(at.timestamp() * 1000), number)),
                "request_time": at,
                "status_code": status,
                "served_entity_name": "v1" if number % 4 else "v2",
                "requester": "ann" if number % 3 else "bob",
                "endpoint_id": ENDPOINT_ID,
                "shadow": False,
                "request_encoding": "utf-8",
                "execution_duration_ms": 20,
            }
        )
    return found


def endpoint() -> state.Endpoint:
    """Stopped: its usage is what is asked about."""
    nothing: dict[str, Any] = dict.fromkeys(state.Endpoint.__dataclass_fields__)
    given = {"id": ENDPOINT_ID, "name": ENDPOINT, "creator": "admin", "created_ms": 0}
    given |= {"updated_ms": 0, "config_update": "NOT_UPDATING", "stopped": True, "tags": []}
    return state.Endpoint(**{**nothing, **given, "route_optimized": False, "row_version": 1})


def used(settings: Settings) -> None:
    """Requests that were recorded, and two replicas that lived for two hours each."""
    now = datetime.now(UTC)
    engine = database.open_engine(settings)
    until_ms = int(now.timestamp() * 1000)
    from_ms = until_ms - HOURS // 2 * 3_600_000
    with database.transaction(engine) as db:
        state.insert_endpoint(db, endpoint())
        catalog.record(db, TABLE, ENDPOINT_ID, ENDPOINT, {}, {}, 0)
        for version in ("v1", "v2"):
            life = lives.Life(version, ENDPOINT, version, "CPU", "Small", from_ms, until_ms)
            lives.begin(db, life)
    engine.dispose()
    schema, partition = rows.KINDS["payload"]
    table = delta.open_or_create(delta.path_of(settings, TABLE), schema, partition)
    table.append(pa.Table.from_pylist(requests(now), schema=schema), "test", 0)


class Office:
    """A running server and its pages, signed in as its administrator."""

    def __init__(self, site: Site) -> None:
        self.site, self.page = site, site.page

    def send(self, method: str, path: str, token: str = TOKEN, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.request(
            method, self.site.up.url + path, headers=headers, timeout=60, trust_env=False, **more
        )

    def open(self, path: str, awaited: str) -> None:
        """A page by its address, in a new session: what the URL says is all that it knows."""
        self.site.open(path).get_by_text(awaited).first.wait_for()

    def pick(self, label: str, value: str) -> None:
        self.page.get_by_label(label, exact=True).click()
        self.page.keyboard.type(value)
        self.page.keyboard.press("Enter")


@pytest.fixture(scope="module")
def office(site_on: SiteOn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("office") / "data")
    database.migrate(settings)
    used(settings)
    with site_on(settings.data_dir, TOKEN) as site:
        yield Office(site)


def test_a_token_made_on_the_page_works_until_it_is_revoked_there(office: Office) -> None:
    office.open("settings?section=tokens", "Its text is shown once")
    office.page.get_by_label("What it is for").fill("ci of the shop")
    office.page.get_by_role("button", name="Create token").click()
    office.page.get_by_text("Copy it now").wait_for()
    shown = office.page.locator('[data-testid="stCode"]').filter(has_text="il_").inner_text()
    made = re.search(r"il_([0-9a-f]{16})_[\w-]{43}", shown)
    assert made is not None
    assert office.send("GET", "/api/1.0/me", made[0]).json()["token_id"] == made[1]
    office.page.get_by_role("button", name="I have copied it").click()
    office.page.get_by_text("Copy it now").wait_for(state="hidden")
    assert made[0] not in office.page.content()

    office.pick("Revoke a token", made[1])
    office.page.get_by_role("button", name="Revoke", exact=True).click()
    office.page.get_by_text("The token is revoked.").wait_for()
    ends = time.monotonic() + REVOKED_SECONDS
    while (status := office.send("GET", "/api/1.0/me", made[0]).status_code) == 200:
        assert time.monotonic() < ends
        time.sleep(0.1)
    assert status == 403


def test_a_secret_written_on_the_page_is_read_nowhere(office: Office) -> None:
    office.open("settings?section=secrets", "New scope")
    office.page.get_by_label("New scope").fill("models")
    office.page.get_by_role("button", name="Create scope").click()
    office.page.get_by_text("Scope models is created.").wait_for()
    office.page.get_by_label("Key", exact=True).fill("api-key")
    office.page.get_by_label("Value (write-only)").fill(SECRET)
    office.page.get_by_role("button", name="Save", exact=True).click()
    office.page.get_by_text("Secret models/api-key is saved.").wait_for()
    assert SECRET not in office.page.content()
    values = [field.input_value() for field in office.page.locator("input").all()]
    assert SECRET not in "".join(values)
    for path in ("secrets/list?scope=models", "secrets/scopes/list"):
        assert SECRET not in office.send("GET", f"/api/2.0/{path}").text
    audit = office.send("GET", "/api/1.0/audit?action=secrets.*").text
    assert "api-key" in audit and SECRET not in audit


def test_a_price_set_on_the_page_changes_the_cost(office: Office) -> None:
    office.open(f"usage?endpoint={ENDPOINT}", "The cost is not known: no price is set")
    office.open("settings?section=prices", "No price is set")
    office.page.get_by_label("Price of a replica-hour (empty: remove)").fill("0.25")
    office.page.get_by_role("button", name="Set", exact=True).click()
    office.page.get_by_text("The prices are saved").wait_for()
    office.open(f"usage?endpoint={ENDPOINT}", "Replica-hours")
    office.page.get_by_text("1.00 USD").first.wait_for()
    total = office.send("GET", f"/api/1.0/usage?endpoint={ENDPOINT}").json()["total"]
    assert (total["requests"], total["errors"], total["limited"]) == (REQUESTS, 1, 1)
    assert total["cost"] == pytest.approx(0.25 * HOURS)
    office.open("audit", "newest first")
    entry = office.send("GET", "/api/1.0/audit?action=prices.put").json()["audit"][0]
    assert entry["before"] is None and entry["after"]["replica_hours"][0]["price"] == 0.25
