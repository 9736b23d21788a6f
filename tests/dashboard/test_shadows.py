"""The section "In the shadow" of the Experiment page."""

from typing import Any

from tests.dashboard.reading import said

COPYING: dict[str, Any] = {
    "served_entity": "v2",
    "sample_percentage": 50.0,
    "state": "copying",
    "message": None,
    "copies": {"answered": 990, "failed": 3, "dropped": {"queue_full": 7}},
    "comparison": {
        "action": "ready",
        "reasons": ["better"],
        "summary": "Ready for a first share: v2 against v1 on the same 993 requests, better.",
        "champion": "v1",
        "challenger": "v2",
        "requests": 993,
        "agreement": 0.914,
        "error_rate": {"v1": 0.0, "v2": 0.003},
        "latency_ms": {"v1": 4.0, "v2": 6.0},
        "primary": {"name": "accuracy", "mde": 0.02},
        "metric": {"value": {"v1": 0.84, "v2": 0.87}},
        "prediction_difference": {"n": 990, "mean": 0.01, "interval_95": [0.005, 0.015]},
    },
}


def test_a_version_in_the_shadow_is_shown_with_its_verdict_and_its_drops(
    opened: Any, provider: Any
) -> None:
    provider.overrides["/shadow"] = COPYING
    app = opened("experiment")
    assert not app.exception
    told = said(app)
    assert "Ready for a first share: v2 against v1 on the same 993 requests" in told
    assert "91 % answered alike" in told
    assert "7 copies dropped, as it was busy" in told
    shown = next(t.value for t in app.dataframe if "model time, p95" in t.value.columns)
    assert list(shown["version"]) == ["v1", "v2"]
    assert list(shown["failed"]) == ["0 %", "0.30 %"]


def test_a_paused_shadow_says_why_instead_of_a_verdict(opened: Any, provider: Any) -> None:
    why = "'v2' answers all requests itself."
    provider.overrides["/shadow"] = COPYING | {"state": "paused", "message": why}
    told = said(opened("experiment"))
    assert why in told
    assert "Ready for a first share" not in told


def test_copying_begins_and_ends_with_a_button(opened: Any, provider: Any) -> None:
    app = opened("experiment")
    next(b for b in app.button if b.label == "Copy").click().run()
    assert provider.sent[-1] == (
        "PUT",
        "/api/1.0/endpoints/flight-delay/shadow",
        {"served_entity": "v2", "sample_percentage": 100.0},
    )
    provider.overrides["/shadow"] = COPYING
    app = opened("experiment")
    next(b for b in app.button if b.label == "Copy no more").click().run()
    assert provider.sent[-1][:2] == ("DELETE", "/api/1.0/endpoints/flight-delay/shadow")
