"""Each page in its four states: normal, empty, error, denied; and what each is for."""

import json
from typing import Any

import pytest

from tests.dashboard import provider as standin
from tests.dashboard.reading import said

# page -> (part of the path it lives from, what it says, what it says when there is nothing)
PAGES = {
    "overview": ("/overview", "airport_hour older than 3 h", "inferlake demo"),
    "alerts": ("/alert", "as_of is 5.2 h behind", "A rule compares"),
    "endpoint": ("/serving-endpoints/flight-delay", "configuration 2", "Give this endpoint a"),
    "requests": ("/requests", "100 rows, newest first", "Send one"),
    "drift": ("/drift", "columns drifted: temp", "Press Refresh now"),
    "quality": ("/quality", "Log loss per version", "/api/1.0/endpoints/flight-delay/labels"),
    "experiment": ("/experiment", "v2 against v1 on log loss", "mde"),
    "recommendations": ("/recommendations", "v2 90 %, v1 10 %", "Nothing has to be done now"),
}
EMPTIES: dict[str, dict[str, Any]] = {
    "endpoint": {"config": {"served_entities": []}},
}


@pytest.mark.parametrize("page", [*PAGES, "endpoints"])
def test_a_page_answers_its_question_without_an_error(opened: Any, page: str) -> None:
    app = opened(page)
    assert not app.exception
    assert not app.error
    assert PAGES.get(page, ("", "1 of 1 endpoints", ""))[1] in said(app)


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_page_offers_the_next_step(opened: Any, provider: Any, page: str) -> None:
    part, _, next_step = PAGES[page]
    provider.modes[part] = "empty"
    if page in EMPTIES:
        provider.modes.clear()
        empty = standin.endpoint() | EMPTIES[page]
        provider.overrides["/serving-endpoints/flight-delay"] = empty
    app = opened(page)
    assert not app.exception
    assert not app.error
    assert next_step in said(app)


@pytest.mark.parametrize("page", PAGES)
def test_an_error_says_what_failed_and_offers_another_try(
    opened: Any, provider: Any, page: str
) -> None:
    provider.modes[PAGES[page][0]] = "error"
    app = opened(page)
    assert not app.exception
    told = "\n".join(str(error.value) for error in app.error).replace("\\", "")
    assert "Could not read" in told
    assert "Something broke." in told
    assert "INTERNAL_ERROR (500)" in told
    assert "request id req-17" in told
    assert "UTC" in told
    assert any(button.label == "Try again" for button in app.button)


@pytest.mark.parametrize("page", PAGES)
def test_a_denied_page_says_what_is_missing_and_who_grants_it(
    opened: Any, provider: Any, page: str
) -> None:
    provider.modes[PAGES[page][0]] = "denied"
    app = opened(page)
    assert not app.exception
    told = "\n".join(str(warning.value) for warning in app.warning).replace("\\", "")
    assert "needs CAN_MANAGE on 'flight-delay'" in told
    assert "administrator, can grant it" in told


@pytest.mark.parametrize("page", ["overview", "endpoints", "drift"])
def test_a_new_server_leads_to_a_first_endpoint(opened: Any, provider: Any, page: str) -> None:
    provider.overrides["/api/2.0/serving-endpoints"] = {"endpoints": []}
    provider.modes["/overview"] = "empty"
    app = opened(page, endpoint="")
    assert "inferlake demo --data-dir ./inferlake-demo" in said(app)


def test_the_endpoint_list_that_fails_is_a_banner_and_an_error(opened: Any, provider: Any) -> None:
    provider.modes["/api/2.0/serving-endpoints"] = "error"
    app = opened("endpoints")
    assert len(app.error) == 2
    assert not app.exception


def test_an_unknown_endpoint_is_named(opened: Any, provider: Any) -> None:
    provider.modes["/serving-endpoints/nobody"] = "gone"
    app = opened("endpoint", endpoint="nobody")
    assert "It is not there." in said(app)
    assert not app.exception


def test_an_action_without_the_right_is_disabled_with_the_reason(
    opened: Any, provider: Any
) -> None:
    provider.level = "CAN_VIEW"
    app = opened("experiment")
    promote = next(b for b in app.button if b.label.startswith("Promote"))
    assert promote.disabled
    assert "Needs CAN_MANAGE" in promote.help
    assert "admin" in promote.help


# requests


def test_filters_of_requests_are_sent_as_the_api_takes_them(opened: Any, provider: Any) -> None:
    app = opened("requests", version="v2")
    app.text_input(key="url_client").set_value("flight-7")
    app.text_input(key="url_where").set_value("distance=100..500").run()
    assert provider.asked("/requests")["served_entity"] == "v2"
    assert provider.asked("/requests")["client_request_id"] == "flight-7"
    assert provider.asked("/requests")["feature.distance"] == "100..500"
    assert app.query_params["client"] == "flight-7"
    assert app.query_params["where"] == "distance=100..500"


def test_a_link_shows_the_same_requests_to_everybody(opened: Any, provider: Any) -> None:
    filters = {"status": "failed", "text": "grün", "where": "amount > 100; city = a b"}
    app = opened("requests", version="v3", **filters)
    asked = provider.asked("/requests")
    assert (asked["status"], asked["served_entity"], asked["text"]) == ("failed", "v3", "grün")
    assert (asked["feature.amount"], asked["feature.city"]) == (">100", "a b")
    code = next(str(code.value) for code in app.code if "scan_delta" in str(code.value))
    assert "pl.col('amount') > 100" in code
    assert "/data/tables/main/flights/flight_delay_unpacked" in code


def test_a_condition_that_is_none_is_explained(opened: Any) -> None:
    app = opened("requests")
    app.text_input(key="url_where").set_value("distance 100").run()
    assert "column > 100" in said(app)


def test_the_requests_page_makes_only_the_calls_that_it_needs(opened: Any, provider: Any) -> None:
    app = opened("requests", request=f"{4:032x}")
    provider.queries.clear()
    app.run()
    paths = sorted(path.rpartition("1.0/")[2] or path for path, _ in provider.queries)
    detail = f"requests/{4:032x}"
    needed = ["/api/2.0/serving-endpoints", "requests", detail]
    assert [path for path in paths if not path.endswith("/capture")] == sorted(needed)
    assert len(paths) <= len(needed) + 1


def test_a_file_of_the_rows_is_prepared_with_the_same_filters(opened: Any, provider: Any) -> None:
    app = opened("requests", status="failed")
    next(b for b in app.button if b.label == "Prepare the file").click().run()
    assert not app.exception
    asked = provider.asked("/requests.csv")
    assert (asked["endpoint"], asked["status"]) == (standin.NAME, "failed")
    provider.modes["/requests.csv"] = "error"
    next(b for b in app.button if b.label == "Prepare the file").click().run()
    assert "Could not read the export: Something broke." in said(app)


def test_features_are_shown_with_where_they_come_from(opened: Any, provider: Any) -> None:
    rows = [{"carrier": "UA", "seats": 149.0, "row_index": 0, "unpack_errors": None}]
    whole = standin.request_detail(f"{4:032x}") | {"rows": rows, "error_source": "model"}
    provider.overrides[f"/requests/{4:032x}"] = whole
    app = opened("requests", request=f"{4:032x}")
    table = next(t.value for t in app.dataframe if "feature" in t.value.columns)
    shown = {row.feature: (row["from"], row["row 1"]) for _, row in table.iterrows()}
    assert shown["carrier"] == ("request", "UA")
    assert shown["seats"] == ("looked up", "149.0")
    assert "200, by the model" in said(app)
    assert "curl http" in said(app)


def test_older_requests_are_a_page_away_and_back(opened: Any) -> None:
    app = opened("requests")
    next(b for b in app.button if b.label == "Older").click().run()
    assert "page 2" in said(app)
    next(b for b in app.button if b.label == "Newer").click().run()
    assert "page 1" in said(app)


def test_a_request_is_shown_as_received_and_as_text(opened: Any) -> None:
    app = opened("requests", request=f"{4:032x}")
    shown = [str(code.value) for code in app.code]
    assert any('"client_request_id": "flight-4"' in text for text in shown)
    assert any("<script>alert(1)</script>" in text for text in shown)
    assert "Where the time went" in said(app)


# endpoint


def test_the_endpoint_says_where_and_how_far_its_requests_are_recorded(
    opened: Any, provider: Any
) -> None:
    text = said(opened("endpoint"))
    assert "Records to main.flights.flight_delay_payload · 25,027 requests · 0.4 s behind" in text
    provider.overrides["/capture"] = standin.CAPTURE | {"failing": "No space left on device"}
    assert "Requests wait for their table: No space left" in said(opened("endpoint"))
    provider.overrides["/capture"] = {"table": None}
    assert "Requests are not recorded" in said(opened("endpoint"))
    provider.modes["/capture"] = "error"
    app = opened("endpoint", tab="Metrics")
    assert not app.exception
    assert "How far the record is cannot be told: Something broke." in said(app)


def test_the_query_box_shows_answer_status_and_version(opened: Any, provider: Any) -> None:
    app = opened("endpoint")
    app.text_area(key="query_body_flight-delay").set_value('{"dataframe_records": [{"a": 1}]}')
    next(b for b in app.button if b.label == "Send").click().run()
    assert "status 200" in said(app)
    assert "served by v2" in said(app)
    assert provider.sent[-1][2] == {"dataframe_records": [{"a": 1}]}


def test_snippets_carry_a_body_that_was_answered_before(opened: Any) -> None:
    app = opened("endpoint")
    shown = [str(code.value) for code in app.code]
    assert any("/serving-endpoints/flight-delay/invocations" in text for text in shown)
    assert any('"carrier": "UA"' in text for text in shown)


@pytest.mark.parametrize(
    ("tab", "words"),
    [
        ("Metrics", "Requests per second"),
        ("Configuration", "Every change is a numbered configuration"),
        ("Logs", "listening"),
    ],
)
def test_each_part_of_an_endpoint_has_an_address(opened: Any, tab: str, words: str) -> None:
    app = opened("endpoint", tab=tab)
    assert not app.exception
    assert words in said(app)


def test_a_failed_log_leaves_the_rest_of_the_page(opened: Any, provider: Any) -> None:
    provider.modes["/logs"] = "error"
    app = opened("endpoint", tab="Logs")
    assert "the service log of v1" in said(app)
    assert "configuration 2" in said(app)


def test_stopping_an_endpoint_is_sent_and_said(opened: Any, provider: Any) -> None:
    app = opened("endpoint")
    next(b for b in app.button if b.label == "Stop").click().run()
    assert provider.sent[-1][1].endswith("/endpoints/flight-delay/stop")
    assert "is stopped" in said(app)


def test_an_endpoint_is_deleted_by_its_name_alone(opened: Any, provider: Any) -> None:
    app = opened("endpoint")
    field = next(t for t in app.text_input if t.label.startswith("To delete"))
    field.set_value("flight")
    next(b for b in app.button if b.label == "Delete").click().run()
    assert "nothing was deleted" in said(app)
    assert not [sent for sent in provider.sent if sent[0] == "DELETE"]


# drift and quality


def test_a_link_opens_its_column(opened: Any) -> None:
    app = opened("drift", column="carrier")
    assert app.selectbox(key="drift_column").value == "carrier"
    assert "Jensen-Shannon distance" in said(app)


def test_the_statistic_is_told_in_words_with_both_numbers_of_rows(opened: Any) -> None:
    app = opened("drift", column="temp")
    assert "Kolmogorov-Smirnov distance 0.757, threshold 0.1" in said(app)
    assert "1,235 rows against 160,590" in said(app)


def test_windows_are_counted_back_from_the_newest_window(opened: Any) -> None:
    app = opened("drift", range="30d")
    windows = app.selectbox(key="drift_window").options
    assert windows[0] == "23 Dec 2013 to 30 Dec 2013"
    assert len(windows) == 5


def test_refresh_now_asks_the_monitor(opened: Any, provider: Any) -> None:
    app = opened("drift")
    next(b for b in app.button if b.label == "Refresh now").click().run()
    assert provider.sent[-1][:2] == (
        "POST",
        "/api/2.1/unity-catalog/tables/main.flights.flight_delay_unpacked/monitor/refreshes",
    )


def test_no_monitor_leads_to_the_request_that_makes_one(opened: Any, provider: Any) -> None:
    provider.modes["/monitors"] = "empty"
    app = opened("drift")
    assert "/tables/main.flights.flight_delay_unpacked/monitor" in said(app)


def test_a_failed_refresh_is_said(opened: Any, provider: Any) -> None:
    broken = standin.MONITOR | {"failure_message": "The table has no column 'event_time'."}
    provider.overrides["/api/1.0/monitors"] = {"monitors": [broken]}
    assert "The table has no column 'event_time'." in said(opened("quality"))


def test_coverage_and_delay_of_labels_stand_beside_the_quality(opened: Any) -> None:
    told = said(opened("quality"))
    assert "of these rows have a label" in told
    assert "half of the labels come within 4 h, 95 % within 7 h" in told


def test_a_distance_that_the_baseline_reaches_itself_is_no_drift(
    opened: Any, provider: Any
) -> None:
    cell = {
        "window": standin.window(0),
        "status": "ok",
        "metric": "psi",
        "value": 2.92,
        "threshold": 0.2,
        "effect": 14.6,
        "n": 336,
        "n_baseline": 80_316,
        "text": "tailnum: PSI 2.92, limit 0.2, the baseline's own windows reach 3.1 (336 rows)",
    }
    column = {"name": "tailnum", "kind": "categorical", "rank": 1, "cells": [cell]}
    provider.overrides["/drift"] = {"windows": [standin.window(0)], "columns": [column]}
    told = said(opened("drift"))
    assert "no column drifted" in told
    assert "the baseline's own windows reach 3.1" in told


def test_the_newest_window_with_an_answer_is_opened(opened: Any, provider: Any) -> None:
    drift = standin.drift()
    for column in drift["columns"]:
        column["cells"][-1] |= {"status": "not_enough_data", "effect": None, "value": None}
    provider.overrides["/drift"] = drift
    app = opened("drift")
    assert "16 Dec 2013 to 23 Dec 2013, 1,222 rows" in said(app)
    assert "temp, 16 Dec 2013 to 23 Dec 2013" in said(app)


# experiment


def test_a_broken_split_hides_the_verdict_and_shows_the_cause(opened: Any, provider: Any) -> None:
    broken = standin.decision(15) | {"action": "hold", "reasons": ["sample_ratio"]}
    provider.overrides["/experiment"] = {"policy": standin.POLICY, "decisions": [broken]}
    app = opened("experiment")
    assert "No verdict: the observed split is not the configured one" in said(app)
    assert f"**{broken['summary']}**" not in said(app)


def test_keep_collecting_says_how_much_is_missing(opened: Any, provider: Any) -> None:
    waiting = standin.decision(5)
    provider.overrides["/experiment"] = {"policy": standin.POLICY, "decisions": [waiting]}
    page = said(opened("experiment"))
    assert "About 900 more labels needed, about 5 days; the ramp goes on by its gates." in page


def test_several_challengers_have_a_line_each_and_the_winner_is_shown(
    opened: Any, provider: Any
) -> None:
    second = standin.decision(15)
    lost = second | {"challenger": "v3", "action": "hold", "reasons": ["lost_to:v2"]}
    provider.overrides["/experiment"] = {
        "policy": standin.POLICY,
        "decisions": [lost, second | {"action": "promote", "reasons": ["better"]}],
    }
    app = opened("experiment")
    page = said(app)
    assert "v3 is better than v1, but v2 is surer to gain more." in page
    assert app.selectbox(key="experiment_challenger").value == "v2"
    assert "##### v2 is better than v1." in page
    app.selectbox(key="experiment_challenger").select("v3").run()
    assert "**Next:** Nothing: the winner is the one to promote." in said(app)


def test_an_experiment_without_a_decision_waits(opened: Any, provider: Any) -> None:
    provider.overrides["/experiment"] = {"policy": standin.POLICY, "decisions": []}
    app = opened("experiment")
    assert "the first decision comes with the next refresh" in said(app)
    assert not app.exception


def test_a_ramp_that_waits_for_a_person_can_be_approved(opened: Any, provider: Any) -> None:
    app = opened("experiment")
    next(b for b in app.button if b.label == "Approve the next step").click().run()
    assert provider.sent[-1][1].endswith("/ramp/approve")


def test_a_ramp_is_begun_with_its_plan(opened: Any, provider: Any) -> None:
    provider.overrides["/ramp"] = standin.RAMP | {"state": "completed"}
    app = opened("experiment")
    next(b for b in app.button if b.label == "Begin").click().run()
    method, path, body = provider.sent[-1]
    assert (method, path) == ("PUT", "/api/1.0/endpoints/flight-delay/ramp")
    assert body["challenger"] == "v2"
    assert body["steps"] == [1, 5, 20, 50, 100]


# recommendations and alerts


def test_dismissing_keeps_the_reason(opened: Any, provider: Any) -> None:
    app = opened("recommendations")
    next(t for t in app.text_input if t.label == "Reason (kept)").set_value("too early")
    next(b for b in app.button if b.label == "Dismiss" and b.form_id).click().run()
    assert provider.sent[-1] == (
        "POST",
        "/api/1.0/recommendations/rec-1/dismiss",
        {"reason": "too early"},
    )


def test_snoozing_sends_a_time_in_the_future(opened: Any, provider: Any) -> None:
    app = opened("recommendations")
    next(b for b in app.button if b.label == "1 day").click().run()
    assert provider.sent[-1][2]["until"] > standin.iso(standin.now())


def test_an_alert_is_acknowledged(opened: Any, provider: Any) -> None:
    app = opened("alerts")
    next(b for b in app.button if b.label == "Acknowledge").click().run()
    assert provider.sent[-1][1] == "/api/1.0/alerts/alert-open/acknowledge"


def test_a_new_rule_is_sent_whole(opened: Any, provider: Any) -> None:
    app = opened("alerts")
    next(b for b in app.button if b.label == "Create the rule").click().run()
    rule = provider.sent[-1][2]
    assert rule["endpoint"] == "flight-delay"
    assert rule["condition"] == {"operator": ">", "threshold": 0.0}


def test_many_alerts_of_a_kind_are_one_item_and_one_group(opened: Any, provider: Any) -> None:
    many = [
        standin.alert("open") | {"id": f"a{i}", "metric": "drift", "column": f"c{i}"}
        for i in range(9)
    ]
    provider.overrides["/alerts"] = {"alerts": many}
    assert "flight-delay: drift** (9 alerts)" in said(opened("alerts"))
    item = standin.overview()["inbox"][0]
    items = [item | {"title": f"flight-delay: drift of c{i}"} for i in range(9)]
    provider.overrides["/overview"] = standin.overview() | {"inbox": items}
    told = said(opened("overview"))
    assert "flight-delay: 9 alerts" in told
    assert "drift of c0, drift of c1" in told


# hostile input


@pytest.mark.parametrize("page", ["overview", "alerts", "endpoint", "experiment"])
def test_markup_in_names_and_messages_stays_text(opened: Any, provider: Any, page: str) -> None:
    evil = standin.HOSTILE
    overview = standin.overview()
    overview["inbox"][0]["title"] = evil
    provider.overrides["/overview"] = overview
    provider.overrides["/alerts"] = {"alerts": [standin.alert("open") | {"message": evil}]}
    broken = standin.endpoint()
    broken["config"]["served_entities"][0]["state"]["deployment_state_message"] = evil
    provider.overrides["/serving-endpoints/flight-delay"] = broken
    decision = standin.decision(15) | {"summary": evil}
    provider.overrides["/experiment"] = {"policy": standin.POLICY, "decisions": [decision]}
    app = opened(page)
    shown = [str(e.value) for kind in ("markdown", "caption") for e in getattr(app, kind)]
    assert any("alert" in text for text in shown)
    assert not any("[x](http" in text or "<script>" in text for text in shown)


def test_a_reply_with_missing_keys_breaks_no_page(opened: Any, provider: Any) -> None:
    provider.overrides["/overview"] = {"endpoints": [{"name": "flight-delay"}], "inbox": [{}]}
    provider.overrides["/experiment"] = {"policy": {"primary": {}}, "decisions": [{}]}
    provider.overrides["/recommendations"] = {"recommendations": [{"id": "r"}]}
    provider.overrides["/alerts"] = {"alerts": [{"id": "a"}]}
    provider.overrides["/drift"] = {"windows": [["x", None]], "columns": [{"name": "a"}]}
    for page in ("overview", "experiment", "recommendations", "alerts", "drift"):
        assert not opened(page).exception, page


def test_bodies_of_replies_may_be_large(opened: Any, provider: Any) -> None:
    big = standin.request_detail(f"{4:032x}") | {"request": json.dumps({"a": "x" * 1_000_000})}
    provider.overrides[f"/requests/{4:032x}"] = big
    app = opened("requests", request=f"{4:032x}")
    assert not app.exception
    assert max(len(str(code.value)) for code in app.code) <= 100_000


def test_a_request_that_is_not_in_the_table_yet_is_waited_for(opened: Any, provider: Any) -> None:
    provider.modes["/api/1.0/requests/"] = "gone"
    fresh = f"{int(standin.now().timestamp() * 1000):012x}" + "70008" + "0" * 15
    assert "its row comes within a second" in said(opened("requests", request=fresh))
    told = said(opened("requests", request=f"{4:032x}"))
    assert "Could not read this request" in told and "within a second" not in told
