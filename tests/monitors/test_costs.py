"""A challenger that costs much more and shows no advantage; what is not known proposes nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from capture import database, lives, prices
from capture.settings import Settings
from monitors import contract, cost_reads, costs, experiment_state, recommendations, state
from tests.capture import shop

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
SMALL = costs.Cost(5_000, 20.0, ("CPU", "Small"), 0.3, "EUR")
KNOWN = {"v2": SMALL, "v3": replace(SMALL, execution_ms=40.0)}
SHARES = {"v2": 90, "v3": 10}


def decision(action: str, reason: str) -> dict[str, Any]:
    shown = {"value": {"v2": 0.81, "v3": 0.811}, "effect": 0.001, "interval": [-0.01, 0.012]}
    return {
        "action": action,
        "reasons": [reason],
        "summary": "A sentence.",
        "champion": "v2",
        "challenger": "v3",
        "primary": "accuracy",
        "metrics": {"accuracy": shown},
    }


def proposed(
    given: dict[str, Any], known: dict[str, costs.Cost], shares: dict[str, int] | None = None
) -> dict[str, dict[str, Any]]:
    found = recommendations.recommend([given], shares or SHARES, 0, [], NOW, known)
    return {one.action["kind"]: one.to_dict() for one in found}


def test_a_dear_challenger_without_advantage_is_looked_into_with_three_numbers() -> None:
    found = proposed(decision("keep_collecting", "undecided"), KNOWN)["investigate"]
    assert found["action"]["served_entity"] == "v3" and found["action"]["routes"] is None
    cost, times, primary = found["evidence"]
    assert cost["text"] == (
        "v3 costs 2.0 times as much as v2: 1,000 requests 0.00333 against 0.00167 EUR"
    )
    assert (cost["value"], cost["link"]) == (2.0, "/usage")
    assert times["text"] == (
        "time in the model: v3 40 ms from 5,000 requests, v2 20 ms from 5,000 requests"
    )
    assert primary["interval"] == [-0.01, 0.012] and primary["link"] == "/experiment"
    assert found["expires_time"] == "2026-03-04T12:00:00Z"


def test_where_a_gain_is_ruled_out_the_cost_stands_with_the_proposal_to_shift() -> None:
    found = proposed(decision("hold", "below_mde"), KNOWN)
    assert set(found) == {"shift"}
    texts = [str(item["text"]) for item in found["shift"]["evidence"]]
    assert any("costs 2.0 times" in text for text in texts)
    assert found["shift"]["action"]["routes"] == [
        {"served_entity_name": "v2", "traffic_percentage": 100},
        {"served_entity_name": "v3", "traffic_percentage": 0},
    ]


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("keep_collecting", "min_hours"),
        ("keep_collecting", "min_labels"),
        ("keep_collecting", "no_data"),
        ("promote", "better"),
        ("roll_back", "worse"),
        ("hold", "sample_ratio"),
    ],
)
def test_nothing_is_said_before_there_is_enough_or_where_there_is_an_advantage(
    action: str, reason: str
) -> None:
    assert costs.dearer(decision(action, reason), KNOWN) is None


@pytest.mark.parametrize(
    "known",
    [
        {},
        {"v3": KNOWN["v3"]},
        {**KNOWN, "v2": replace(SMALL, requests=199)},
        {**KNOWN, "v3": replace(SMALL, execution_ms=29.0)},
        {**KNOWN, "v2": replace(SMALL, hour_price=None, replica=("GPU_SMALL", "Small"))},
    ],
    ids=["nothing", "one version", "few requests", "hardly dearer", "not comparable"],
)
def test_nothing_is_said_from_what_is_missing(known: dict[str, costs.Cost]) -> None:
    assert costs.dearer(decision("keep_collecting", "undecided"), known) is None


def test_without_prices_equal_replicas_are_compared_by_time() -> None:
    known = {name: replace(each, hour_price=None) for name, each in KNOWN.items()}
    found = costs.dearer(decision("promote", "not_worse"), known)
    assert found is not None and found.ratio == 2.0
    assert found.text.endswith("1,000 requests 40 against 20 ms each")


def test_the_price_of_the_replica_counts() -> None:
    dear = {**KNOWN, "v3": replace(SMALL, replica=("GPU_SMALL", "Small"), hour_price=3.0)}
    found = costs.dearer(decision("keep_collecting", "undecided"), dear)
    assert found is not None and found.ratio == pytest.approx(10.0)


def test_costs_are_read_of_versions_whose_requests_and_replicas_are_known(tmp_path: Any) -> None:
    settings = Settings(data_dir=tmp_path)
    database.migrate(settings)
    shop.record(settings, shop.TABLE, "shop")
    shop.write_requests(
        settings,
        {"after": 0, "execution_duration_ms": 10},
        {"after": 1, "execution_duration_ms": 30},
        {"after": 2, "served_entity_name": "v2"},
    )
    start_ms = int(shop.START.timestamp() * 1000)
    table = {
        "currency": "EUR",
        "replica_hours": [{"workload_type": "CPU", "workload_size": None, "price": 0.5}],
    }
    engine = database.open_engine(settings)
    with database.transaction(engine) as connection:
        life = lives.Life("a", "shop", "v1", "CPU", "Small", start_ms, start_ms + 1000)
        lives.begin(connection, life)
        prices.put(connection, table, "admin", 1)
    found = cost_reads.read(settings, engine, "shop", start_ms)
    engine.dispose()
    assert found == {"v1": costs.Cost(2, 20.0, ("CPU", "Small"), 0.5, "EUR")}


def test_a_monitor_proposes_it_once_costs_are_known_and_not_before(lake: Any) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    policy = {
        "primary": {"name": "accuracy", "kind": "binary", "mode": "superiority", "mde": 0.1},
        "champion": "v1",
        "challenger": "v2",
        "min_hours": 12,
        "stratum_hours": 24,
        "label_window_hours": 6,
        "start_time": start.isoformat(),
    }
    lake.gateway.configure(v1=50, v2=50)
    lake.monitor()
    with database.transaction(lake.engine) as connection:
        body = contract.experiment(policy)
        experiment_state.begin_experiment(connection, "delay", body, "ann", 1)
    frame = lake.rows(start, 1500, 48, split={"v1": 50, "v2": 50}, config_version=2)
    lake.write(frame)
    lake.label(frame)

    def said() -> list[str]:
        with database.reading(lake.engine) as connection:
            found = state.open_recommendations(connection, "delay")
        return [str(item["text"]) for one in found for item in one.evidence]

    lake.done(start + timedelta(days=2))
    assert [text for text in said() if "times as much" in text] == []
    for version, milliseconds in (("v1", 10), ("v2", 40)):
        requests = [
            {"after": n, "served_entity_name": version, "execution_duration_ms": milliseconds}
            for n in range(costs.LEAST_REQUESTS)
        ]
        shop.write_requests(lake.settings, *requests, table="main.flights.p_payload")
        with database.transaction(lake.engine) as connection:
            life = lives.Life(version, "delay", version, "CPU", "Small", 1, 2)
            lives.begin(connection, life)
    lake.restart()
    lake.done(start + timedelta(days=2.1))
    assert "v2 costs 4.0 times as much as v1: 1,000 requests 40 against 10 ms each" in said()
