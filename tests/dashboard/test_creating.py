"""The form of a new endpoint, as the request that it makes."""

import pytest

from dashboard import creating


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
