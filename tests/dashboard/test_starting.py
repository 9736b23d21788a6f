"""How far a start is, in words."""

from datetime import UTC, datetime, timedelta

import pytest

from dashboard import starting

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Waiting to start.", "step 1 of 4, find the model, for 12 s"),
        ("Finding the model", "step 1 of 4, find the model, for 12 s"),
        ("Resolving packages", "step 2 of 4, environment: Resolving packages, for 12 s"),
        (
            "Building its Python environment, 9 s: downloading 12/40",
            "step 2 of 4, environment: Building its Python environment, 9 s: downloading 12/40",
        ),
        ("Waiting for 1 GPU", "step 1 of 4, find the model: Waiting for 1 GPU, for 12 s"),
        ("Starting", "step 3 of 4, load and first answer, for 12 s"),
    ],
)
def test_each_message_of_the_controller_has_its_step_and_seconds(message: str, said: str) -> None:
    entity = {"deployment": "DEPLOYMENT_CREATING", "message": message}
    entity["since"] = (NOW - timedelta(seconds=12)).isoformat()
    assert starting.told(entity, NOW) == said


def test_a_ready_version_has_every_step_behind_it() -> None:
    assert starting.told({"deployment": "DEPLOYMENT_READY", "message": "Ready"}, NOW) == "answers"
    assert starting.ticks(3).count("✓") == 4
    assert starting.ticks(1).startswith("✓ find the model → ● environment → ○ load")


def test_a_failure_is_the_last_line_of_its_traceback_and_the_lines() -> None:
    lines = "  File model.py, line 3\nValueError: no such column\n"
    assert starting.reason(f"Served entity 'v1' did not start. {lines}") == (
        "Served entity 'v1' did not start. ValueError: no such column",
        lines,
    )
    assert starting.reason("It broke.") == ("It broke.", "")
    first, rest = starting.reason("x" * 900)
    assert len(first) == starting.LONGEST_REASON and rest == "x" * 900
