"""The form of a new endpoint, as the request that it makes."""

import pytest

from dashboard import creating
from serving import contract


def test_one_version_gets_everything_and_two_share_by_construction() -> None:
    one = creating.Wish("shop", "main.s.m", ("3",))
    assert creating.body(one) == {
        "name": "shop",
        "config": {
            "served_entities": [
                {
                    "name": "v3",
                    "entity_name": "main.s.m",
                    "entity_version": "3",
                    "workload_size": "Small",
                    "scale_to_zero_enabled": False,
                }
            ]
        },
    }
    two = creating.Wish("shop", "main.s.m", ("3", "2"), share=15)
    assert creating.body(two)["config"]["traffic_config"]["routes"] == [
        {"served_model_name": "v3", "traffic_percentage": 85},
        {"served_model_name": "v2", "traffic_percentage": 15},
    ]


def test_what_stands_under_more_is_sent_and_the_rest_left_to_the_server() -> None:
    extra = creating.Extra(
        workload_type="GPU_SMALL",
        concurrency=(2, 16),
        variables="A=1\n\n URL = http://x/?a=b \nKEY={{secrets/s/k}}",
        tags="team=pricing\nempty=",
        calls=600,
    )
    body = creating.body(creating.Wish("shop", "m", ("1", "2"), extra=extra))
    for entity in body["config"]["served_entities"]:
        assert entity["workload_type"] == "GPU_SMALL"
        assert "workload_size" not in entity
        assert entity["min_provisioned_concurrency"] == 2
        assert entity["max_provisioned_concurrency"] == 16
        assert entity["environment_vars"] == {
            "A": "1",
            "URL": "http://x/?a=b",
            "KEY": "{{secrets/s/k}}",
        }
    assert body["tags"] == [{"key": "team", "value": "pricing"}, {"key": "empty", "value": ""}]
    limit = {"key": "endpoint", "calls": 600, "renewal_period": "minute"}
    assert body["ai_gateway"] == {"rate_limits": [limit]}


def test_machines_are_those_of_the_contract() -> None:
    assert tuple(creating.TYPES) == contract.WORKLOAD_TYPES


def test_a_limit_of_no_calls_is_a_limit() -> None:
    body = creating.body(creating.Wish("shop", "m", ("1",), extra=creating.Extra(calls=0)))
    assert body["ai_gateway"]["rate_limits"][0]["calls"] == 0


@pytest.mark.parametrize("text", ["A=1\nhunter2", "A=1\n=hunter2", "A=1\nA=hunter2"])
def test_a_wrong_line_is_told_by_its_number_and_not_repeated(text: str) -> None:
    for extra in (creating.Extra(variables=text), creating.Extra(tags=text)):
        told = str(creating.missing(creating.Wish("shop", "m", ("1",), extra=extra)))
        assert "line 2" in told and "hunter2" not in told


def test_a_monitor_watches_the_typed_table_of_the_record() -> None:
    wish = creating.Wish("shop", "m", ("1",), recorded=("main", "s"))
    assert creating.body(wish)["config"]["auto_capture_config"]["table_name_prefix"] == "shop"
    assert creating.monitor(wish) is None
    watched = creating.Wish("shop", "m", ("1",), recorded=("main", "s"), watched="P")
    found = creating.monitor(watched)
    assert found is not None
    assert found[0] == "main.s.shop_unpacked"
    assert found[1]["output_schema_name"] == "main.s"
    assert found[1]["inference_log"]["problem_type"] == "P"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (creating.Wish("shop", "", ()), "Choose a model"),
        (creating.Wish("", "m", ("1",)), "a name"),
        (creating.Wish("my shop", "m", ("1",)), "1 to 63 letters"),
        (creating.Wish("shop", "m", ("1",), recorded=("main", "a b")), "Catalog and schema"),
        (creating.Wish("shop", "m", ("1",), extra=creating.Extra(concurrency=(9, 8))), "fewest"),
    ],
)
def test_what_is_missing_is_said_before_the_server_is_asked(wish: creating.Wish, said: str) -> None:
    assert said in str(creating.missing(wish))


def test_a_name_is_suggested_that_is_free_and_allowed() -> None:
    assert creating.suggested_name("main.shop.churn", []) == "churn"
    assert creating.suggested_name("main.shop.churn", ["churn", "churn-2"]) == "churn-3"
    assert creating.suggested_name("a b.grün é", []) == "gr-n--"
    assert creating.NAME.fullmatch(creating.suggested_name("x" * 200, []))


def test_the_record_lies_with_the_model_where_that_has_a_home() -> None:
    assert creating.home("main.shop.churn") == ("main", "shop")
    assert creating.home("churn") == creating.home("system.a.b") == ("main", "default")


def test_a_version_says_what_it_asks_for() -> None:
    columns = [{"name": f"c{n}", "type": "double"} for n in range(8)]
    about = {"flavours": ["python_function", "sklearn"], "columns": columns}
    told = creating.asks_for(about)
    assert told.startswith("sklearn model; a request sends c0 (double)")
    assert told.endswith("c5 (double) and 2 more.")
    assert "any input" in creating.asks_for({"flavours": ["python_function"]})


def test_the_model_that_was_registered_last_is_offered_first() -> None:
    old, new = {"created_time": "2026-01-01T00:00:00Z"}, {"created_time": "2026-02-01T00:00:00Z"}
    assert creating.newest({"a": [old], "b": [old, new], "c": [{}]}) == "b"
    assert creating.newest({"a": [{}], "b": []}) == "a"
