"""A newcomer's question, answered on the Requests page and by the code that the page prints:
which requests of version 3 failed yesterday with an amount over 100?"""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from capture import catalog, database, delta, names, rows, unpack
from capture.settings import Settings
from serving import state
from tests.flows.conftest import SiteOn

ENDPOINT = "shop"
TABLE = "main.shop.s_payload"
TOKEN = "a-token-for-a-test"
HOURS = (
    -1,
    0,
    9,
    23,
    24,
    33,
)  # from yesterday's midnight on; the first and the last two are not it
OUTCOMES = ((200, None), (400, "request"), (400, "model"), (503, "server"))
AMOUNTS = (99.5, 100, 100.5, 250)
# Yesterday's three hours, what failed of the outcomes, amounts that are over 100.
EXPECTED = 3 * 2 * 2


def requests() -> list[dict[str, Any]]:
    """Every hour x version x outcome x amount once."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    found = []
    cases = product(HOURS, ("v1", "v2", "v3"), OUTCOMES, AMOUNTS)
    for number, (hour, version, (status, source), amount) in enumerate(cases):
        at = midnight + timedelta(hours=hour - 24, milliseconds=number)
        body = {"dataframe_records": [{"amount": amount, "city": "graz"}]}
        found.append(
            dict.fromkeys(rows.PAYLOAD_SCHEMA.names)
            | {
                "request_date": at.date(),
                "databricks_request_id": str(names.uuid7(int(at.timestamp() * 1000), number)),
                "client_request_id": f"order-{number}",
                "request_time": at,
                "status_code": status,
                "error_source": source,
                "served_entity_name": version,
                "request": json.dumps(body),
                "response": json.dumps({"predictions": [0.5]} if status == 200 else {}),
                "endpoint_id": "e" * 32,
                "shadow": False,
                "request_encoding": "utf-8",
                "content_type": "application/json",
                "gateway_us": 900,
                "predict_us": 4_000,
            }
        )
    return found


def endpoint() -> state.Endpoint:
    """Stopped: its record is what is asked about."""
    nothing: dict[str, Any] = dict.fromkeys(state.Endpoint.__dataclass_fields__)
    given = {"id": "e" * 32, "name": ENDPOINT, "creator": "admin", "created_ms": 0}
    given |= {"updated_ms": 0, "config_update": "NOT_UPDATING", "stopped": True, "tags": []}
    return state.Endpoint(**{**nothing, **given, "route_optimized": False, "row_version": 1})


@pytest.fixture(scope="module")
def page(site_on: SiteOn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The Requests page of a running server, signed in."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("shop") / "data")
    database.migrate(settings)
    engine = database.open_engine(settings)
    with database.transaction(engine) as db:
        state.insert_endpoint(db, endpoint())
        catalog.record(db, TABLE, "e" * 32, ENDPOINT, {}, {}, 0)
    engine.dispose()
    schema, partition = rows.KINDS["payload"]
    table = delta.open_or_create(delta.path_of(settings, TABLE), schema, partition)
    table.append(pa.Table.from_pylist(requests(), schema=schema), "test", 0)
    unpack.follow(settings, TABLE)
    with site_on(settings.data_dir, TOKEN) as site:
        opened = site.open("requests")
        opened.get_by_text("rows, newest first").wait_for()
        yield opened


def test_which_requests_of_version_3_failed_yesterday_with_an_amount_over_100(
    page: Any, tmp_path: Path
) -> None:
    page.get_by_text("Yesterday", exact=True).click()
    page.wait_for_url("**range=yesterday**")
    page.get_by_text("failed", exact=True).click()
    page.wait_for_url("**status=failed**")
    page.locator('[data-testid="stSelectbox"] input').nth(1).fill("v3")
    page.keyboard.press("Enter")
    page.wait_for_url("**version=v3**")
    page.get_by_label("Features", exact=True).fill("amount > 100")
    page.keyboard.press("Enter")
    page.get_by_text(f"{EXPECTED} rows in all, newest first").wait_for()

    page.get_by_text("Take these rows elsewhere").click()
    # Of these rows: what is printed of those before stays until it is drawn anew.
    shown = page.locator('[data-testid="stCode"]').filter(has_text="scan_delta")
    printed = shown.filter(has_text="amount").inner_text()
    code = tmp_path / "rows.py"
    code.write_text(printed)
    done = subprocess.run([sys.executable, code], capture_output=True, text=True, check=True)
    assert f"shape: ({EXPECTED}, " in done.stdout
