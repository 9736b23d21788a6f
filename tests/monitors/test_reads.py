import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from capture import errors, query
from monitors import contract, experiment_state, reads, tables

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
TABLE = "main.flights.p_unpacked"
LOG = {
    "timestamp_col": "event_time",
    "granularities": ["1 week"],
    "prediction_col": "prediction",
    "prediction_proba_col": "score",
    "model_id_col": "served_entity_name",
    "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
}


def arguments(**filters: str) -> dict:
    config = {"output_schema_name": "main.flights", "inference_log": LOG}
    profile_table, drift_table = contract.metric_tables(TABLE, config)
    return {
        "table": TABLE, "table_id": "t1", "profile_table": profile_table,
        "drift_table": drift_table, "filters": filters, **contract.reading_hints(config),
    }  # fmt: skip


@pytest.fixture
def judged(lake):
    """Two weeks of two versions, the second one shifted, against a baseline."""
    lake.baseline()
    lake.monitor(baseline_table_name="main.flights.p_baseline")
    for number, split in enumerate(({"v1": 80, "v2": 20}, {"v1": 20, "v2": 80})):
        start = MONDAY + timedelta(weeks=number)
        lake.write(lake.rows(start, 800, split=split, shift=9.0 * number))
    lake.done(MONDAY + timedelta(weeks=2))
    return lake


def test_no_operation_takes_the_name_of_another():
    own = set(reads.OPERATIONS) - set(query.OPERATIONS)
    assert own == {
        *(
            "table_info",
            "check_expressions",
            "check_metrics",
            "drift",
            "profiles",
            "quality",
            "decisions",
            "shadow_comparison",
            "try_rule",
        ),
    }
    assert all(reads.OPERATIONS[name] is query.OPERATIONS[name] for name in query.OPERATIONS)


def test_a_cell_of_an_answer_shows_the_version_that_answered_most(judged):
    found = reads.drift(judged.settings, arguments())
    cells = {column["name"]: column["cells"] for column in found["columns"]}
    assert [cell["served_entity"] for cell in cells["score"]] == ["v1", "v2"]
    assert [cell["served_entity"] for cell in cells["temp"]] == [None, None]
    assert [column["rank"] for column in found["columns"]] == [1, 2, 3, 4, 5]
    assert found["columns"][0]["name"] == "temp" and found["granularity"] == "1 week"
    top = found["columns"][0]
    assert top["effect"] == max(cell["effect"] for cell in top["cells"])


def test_times_of_a_question_cut_windows_that_lie_outside(judged):
    late = (MONDAY + timedelta(weeks=1)).isoformat()
    assert len(reads.drift(judged.settings, arguments(**{"from": late}))["windows"]) == 1
    assert len(reads.drift(judged.settings, arguments(to=late))["windows"]) == 1
    assert reads.drift(judged.settings, arguments(to=MONDAY.isoformat()))["columns"] == []


def test_a_histogram_adds_up_to_its_rows(judged):
    found = reads.profiles(judged.settings, arguments(column="distance"))
    for side in ("current", "previous", "baseline"):
        one = found[side]
        assert sum(b["count"] for b in one["histogram"]) == one["rows"] - one["nulls"]
    assert found["window"][0] == "2024-01-08T00:00:00Z"
    first = arguments(column="distance", window_start=MONDAY.isoformat())
    assert reads.profiles(judged.settings, first)["previous"] is None


def test_a_column_that_is_not_watched_or_not_named_is_told(judged):
    with pytest.raises(errors.DoesNotExist, match="not watched"):
        reads.profiles(judged.settings, arguments(column="mood"))
    with pytest.raises(errors.BadRequest, match="column"):
        reads.profiles(judged.settings, arguments())


def test_quality_without_labels_says_why_there_is_no_value(judged):
    found = reads.quality(judged.settings, arguments(metric="accuracy"))
    points = [point for series in found["series"] for point in series["points"]]
    assert points and all(point["value"] is None and point["reason"] for point in points)
    assert {one["value"] for one in found["coverage"]} == {0.0}
    assert found["label_delay_hours"] == {"p50": None, "p95": None}


def test_decisions_are_the_newest_per_challenger_or_all(lake):
    experiment = experiment_state.Experiment("delay", 2, True, {}, "ann", 1)
    uri = lake.uri("main.flights.p_decisions")
    for number, (challenger, of) in enumerate((("v2", 1), ("v2", 2), ("v3", 2), ("v2", 2))):
        row = {
            "decided_time": MONDAY + timedelta(days=number),
            "written_time": MONDAY + timedelta(days=number),
            "endpoint": "delay", "experiment": of, "challenger": challenger, "kind": "full",
            "action": "hold", "decision": json.dumps({"action": "hold", "challenger": challenger}),
        }  # fmt: skip
        tables.append(uri, tables.DECISIONS, [row], "x", number)
    asked = {"table": TABLE, "experiment": experiment.number, "history": False}
    newest = reads.decisions(lake.settings, asked)
    assert [(one["challenger"], one["decided_time"]) for one in newest] == [
        ("v2", "2024-01-04T00:00:00Z"),
        ("v3", "2024-01-03T00:00:00Z"),
    ]
    assert len(reads.decisions(lake.settings, {**asked, "history": True})) == 4
    other = {**asked, "table": "main.flights.other_unpacked"}
    assert reads.decisions(lake.settings, other) == []


def test_a_table_tells_its_columns(lake):
    missing = reads.table_info(lake.settings, {"table": "main.flights.none"})
    assert missing == {"exists": False, "columns": [], "commit_version": None}
    lake.write(pl.DataFrame({"x": [1.0], "tags": [["a"]]}), "main.flights.plain")
    found = reads.table_info(lake.settings, {"table": "main.flights.plain"})
    assert found["exists"] and found["commit_version"] == 0
    assert [(c["name"], c["type"].lower()) for c in found["columns"]] == [
        ("x", "double"),
        ("tags", "array"),
    ]
