"""Costs and hours as a person reads them."""

import pytest

from dashboard import spending


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234.5, "1,234.50 EUR"),
        (0.9999999999999999, "1.00 EUR"),
        (0.0002, "0.0002 EUR"),
        (0, "0.00 EUR"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_money_has_the_digits_that_say_something(value: object, shown: str) -> None:
    assert spending.money(value, "EUR") == shown


def test_a_cost_that_is_not_known_says_why_and_is_never_0() -> None:
    found = {"endpoint": "x", "requests": 10, "cost": None, "cost_reason": "no price is set"}
    row = spending.row(found, ("endpoint",), None)
    assert (row["cost"], row["per 1,000 requests"]) == ("no price is set", "–")


def test_idle_hours_are_nobodys() -> None:
    row = spending.row({"user": None, "replica_hours": 2.0}, ("user",), "EUR")
    assert (row["user"], row["requests"], row["replica-hours"]) == ("nobody (idle)", "0", "2.00")
