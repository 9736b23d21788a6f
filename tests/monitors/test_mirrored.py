"""Copies beside their originals: which rows are pairs, and what is said of them."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from capture import database, names
from capture.settings import Settings
from monitors import contract, experiment_state, mirrored
from tests.capture import shop

V1, V2 = {"model_version": "1"}, {"served_entity_name": "v2", "model_version": "2"}


def copy(place: int, *more: Any, **changed: Any) -> dict[str, Any]:
    """What version 2 answered in the shadow to the request of this place."""
    id = names.copy_of(shop.request_id(place))
    return shop.payload(place, *more, databricks_request_id=id, shadow=True, **{**V2, **changed})


def compare(settings: Settings, hours: int = 100, **changed: Any) -> dict[str, Any]:
    start = int(shop.START.timestamp() * 1000)
    return mirrored.comparison(
        settings,
        {
            "table": shop.TABLE,
            "endpoint": "s",
            "champion": {"name": "v1", "version": "1"},
            "challenger": {"name": "v2", "version": "2"},
            "since_ms": start,
            "now_ms": start + hours * 3_600_000,
            "dropped": 0,
            **changed,
        },
    )


def test_only_what_both_versions_answered_is_compared(settings: Settings, state: sa.Engine) -> None:
    shop.write(
        settings,
        *(shop.payload(n, None, n % 2, **V1) for n in range(10)),
        *(copy(n, None, 1) for n in range(6)),
        copy(6, None, 0, model_version="1"),  # of another model under the same name
        shop.payload(20, None, 1, **V2),  # version 2, asked by name
    )
    found = compare(settings, dropped=4)
    assert (found["requests"], found["dropped"]) == (6, 4)
    assert found["agreement"] == 0.5
    assert found["prediction_difference"]["mean"] == 0.5
    assert (found["champion"], found["challenger"]) == ("v1", "v2")
    assert (found["action"], found["reasons"]) == ("keep_collecting", ["no_labels"])
    assert found["latency_ms"] == {"v1": 3.0, "v2": 3.0}


def test_a_request_of_several_rows_is_a_pair_a_row_and_one_unit(
    settings: Settings, state: sa.Engine
) -> None:
    three = [{"x": 1}, {"x": 2}, {"x": 3}]
    shop.write(settings, shop.payload(0, three, 1, **V1), copy(0, three, 1))
    shop.label(settings, 1, 5, databricks_request_id=shop.request_id(0), row_index=2)
    found = compare(settings)
    assert (found["requests"], found["agreement"]) == (3, 1.0)
    assert (found["metric"]["n"], found["metric"]["units"]) == (1, 1)


def test_a_version_that_fails_or_refuses_what_the_other_answers_has_failed(
    settings: Settings, state: sa.Engine
) -> None:
    raised = {"status_code": 400, "error_source": "model", "response": "{}"}
    refused = {"status_code": 400, "error_source": "request", "response": "{}"}
    shop.write(
        settings,
        *(shop.payload(n, None, 1, **V1) for n in range(3)),
        shop.payload(3, None, 1, **{**V1, **refused}),
        copy(0, None, 1),
        copy(1, None, None, **raised),
        copy(2, None, None, **refused),
        copy(3, None, None, **refused),  # what nobody can answer is nobody's fault
    )
    assert compare(settings)["error_rate"] == {"v1": 0.0, "v2": 0.5}


def test_labels_decide_by_the_experiments_metric_else_by_one_that_fits(
    settings: Settings, state: sa.Engine
) -> None:
    n = 400
    shop.write(
        settings,
        *(shop.payload(place, None, 0 if place % 4 else 1, **V1) for place in range(n)),
        *(copy(place, None, 1) for place in range(n)),
    )
    for place in range(0, n, 40):
        shop.label(settings, 1, place + 5, databricks_request_id=shop.request_id(place))
    found = compare(settings)
    assert (found["primary"]["name"], found["policy_from"]) == ("accuracy", "default")
    assert found["metric"]["value"] == {"v1": 1.0, "v2": 1.0}
    body = contract.experiment({"primary": {"name": "mae", "mde": 0.5}, "min_labels": 5})
    with database.transaction(state) as connection:
        experiment_state.begin_experiment(connection, "s", body, "ann", 1)
    found = compare(settings)
    assert (found["primary"]["name"], found["policy_from"]) == ("mae", "experiment")
    body = contract.experiment({"primary": {"name": "auc", "mde": 0.01}})
    with database.transaction(state) as connection:
        experiment_state.begin_experiment(connection, "s", body, "ann", 2)
    assert compare(settings)["policy_from"] == "default"


@pytest.mark.parametrize(
    ("answer", "truth", "metric"), [(0.75, 1, "brier"), (3.5, 4.25, "mae"), ("x", "x", "accuracy")]
)
def test_the_metric_fits_the_labels(
    settings: Settings, state: sa.Engine, answer: Any, truth: Any, metric: str
) -> None:
    shop.write(settings, shop.payload(0, None, answer, **V1), copy(0, None, answer))
    shop.label(settings, truth, 5, databricks_request_id=shop.request_id(0))
    found = compare(settings)
    assert (found["primary"]["name"], found["metric"]["n"]) == (metric, 1)
    assert found["agreement"] == 1.0


def test_the_last_digits_of_a_number_are_no_difference(
    settings: Settings, state: sa.Engine
) -> None:
    answers = [0.1, 0.1 + 1e-14, 0.1 + 1e-6]
    shop.write(
        settings,
        *(shop.payload(n, None, 0.1, **V1) for n in range(3)),
        *(copy(n, None, answer) for n, answer in enumerate(answers)),
    )
    assert compare(settings)["agreement"] == pytest.approx(2 / 3)


def test_nothing_copied_is_nothing_known(settings: Settings, state: sa.Engine) -> None:
    found = compare(settings)
    assert (found["action"], found["reasons"]) == ("keep_collecting", ["no_data"])
    assert (found["requests"], found["agreement"], found["metric"]) == (0, None, None)
    assert found["prediction_difference"] is None
    shop.write(settings, shop.payload(0, **V1), copy(0))
    late = int((shop.START + timedelta(hours=1)).timestamp() * 1000)
    assert compare(settings, since_ms=late)["requests"] == 0
