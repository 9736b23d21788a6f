"""One request, how far the record is, and the child process that answers."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from capture import errors, query, reading
from tests.capture import shop

# One request


def test_a_request_is_shown_as_received_with_what_became_of_it(shop_settings):
    shop.write(shop_settings, shop.payload(0))
    shop.write(
        shop_settings,
        shop.payload(
            1,
            [{"x": 1}, {"x": 2}],
            looked_up='{"seats": [100, null]}',
            usage_context=[("team", "a")],
        ),
    )
    shop.label(shop_settings, "late", 9, databricks_request_id=shop.request_id(1))
    found = query.request_detail(shop_settings, {"id": shop.request_id(1)})
    assert found["request"] == '{"dataframe_records": [{"x": 1}, {"x": 2}]}'
    assert found["looked_up"] == {"seats": [100, None]}
    assert found["usage_context"] == {"team": "a"}
    assert found["parts"] == {
        "gateway_ms": 1.0,
        "queue_ms": 0.5,
        "features_ms": 0.0,
        "predict_ms": 3.5,
    }
    assert (found["endpoint"], found["table"], found["duration_ms"]) == ("shop", shop.TABLE, 5.0)
    assert [(row["row_index"], row["x"], row["seats"]) for row in found["rows"]] == [
        (0, 1, 100),
        (1, 2, None),
    ]
    assert found["label"] == "late"
    assert found["labels"] == [
        {"row_index": 0, "label": "late", "label_time": shop.START + timedelta(minutes=9)}
    ]


@pytest.mark.parametrize("unknown", [shop.request_id(7), "no-uuid", "", "../../etc"])
def test_a_request_that_was_not_recorded_does_not_exist(shop_settings, unknown):
    shop.write(shop_settings, shop.payload(0))
    with pytest.raises(errors.DoesNotExist):
        query.request_detail(shop_settings, {"id": unknown, "endpoint": "shop"})


# Facts


def test_the_state_of_a_record_is_what_the_committer_told(shop_settings):
    shop.write(shop_settings, shop.payload(0), shop.payload(1))
    asked = {"table": shop.TABLE, "now_ms": 10_000}
    counted = query.capture_status(shop_settings, asked)
    assert (counted["committed_rows"], counted["lag_seconds"]) == (2, 0.0)
    shop_settings.run_dir.mkdir()
    told = {"rows": 7, "last_commit_ms": 8_500, "commit_version": 3}
    for backlog, lag in ((0, 0.0), (100, 1.5)):
        committed = {"tables": {shop.TABLE: told}, "backlog_bytes": backlog}
        (shop_settings.run_dir / "committed.json").write_text(json.dumps(committed))
        found = query.capture_status(shop_settings, asked)
        assert (found["committed_rows"], found["lag_seconds"]) == (7, lag)
        assert (found["wal_bytes"], found["commit_version"]) == (backlog, 3)
        assert found["last_commit_time"] == datetime.fromtimestamp(8.5, UTC)


def test_labels_of_requests_that_are_not_recorded_are_counted(shop_settings):
    ids = [
        {"databricks_request_id": shop.request_id(0)},
        {"databricks_request_id": shop.request_id(9)},
        {"databricks_request_id": "no-uuid"},
        {"client_request_id": "client-1"},
        {"client_request_id": "nobody", "databricks_request_id": None},
        {"client_request_id": "nobody", "databricks_request_id": shop.request_id(1)},
    ]
    asked = {"table": shop.TABLE, "ids": ids}
    assert query.unmatched(shop_settings, asked) == {"unmatched": 6}
    shop.write(shop_settings, shop.payload(0), shop.payload(1))
    assert query.unmatched(shop_settings, asked) == {"unmatched": 3}


# The child


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_operations_answer_from_a_child_process(shop_settings, anyio_backend):
    shop.write(shop_settings, shop.payload(0))
    environment = {**os.environ, "INFERLAKE_DATA_DIR": str(shop_settings.data_dir)}
    reader = reading.Reader([sys.executable, "-m", "capture.query"], environment)
    try:
        found = await reader.ask("requests_page", {"endpoint": "shop"}, 60)
        assert found["requests"][0]["request_time"] == "2024-03-01T12:00:00Z"
        assert set(found["requests"][0]) >= {"databricks_request_id", "prediction", "label", "x"}
        detail = await reader.ask("request_detail", {"id": shop.request_id(0)}, 60)
        assert detail["parts"]["predict_ms"] == 3.5
        with pytest.raises(errors.DoesNotExist):
            await reader.ask("requests_page", {"endpoint": "nobody"}, 60)
    finally:
        await reader.close()


def test_the_parent_of_reads_loads_neither_polars_nor_delta():
    code = (
        "import sys, capture.reading; print({'polars', 'deltalake', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
