"""Usage and costs in words, rows and a figure. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go

from dashboard import api, charts, words

DIMENSIONS = {
    "version": ("endpoint", "served_entity"),
    "endpoint": ("endpoint",),
    "user": ("user",),
    "day": ("day",),
}
TITLES = {"endpoint": "endpoint", "served_entity": "version", "user": "user", "day": "day (UTC)"}
NOBODY = {"user": "nobody (idle)", "served_entity": "none reached"}


def money(value: object, currency: object) -> str:
    """`1,234.50 EUR`; small amounts with the digits that say something."""
    number = words.figure(value)
    if number is None:
        return words.NOTHING
    text = f"{number:,.2f}" if number == 0 or abs(number) >= 0.995 else f"{number:.4f}"
    return f"{text} {currency}" if currency else text


def hours(value: object) -> str:
    """Replica-hours with the digits that say something: `0.25`, `1,204`."""
    number = words.figure(value)
    if number is None:
        return words.NOTHING
    return f"{number:,.0f}" if number >= 100 else f"{number:.2f}"


def row(found: api.Json, names: Sequence[str], currency: object) -> dict[str, str]:
    """A row of a table. A cost that is not known says why."""
    shown = {
        TITLES[name]: str(found.get(name) or NOBODY.get(name, words.NOTHING)) for name in names
    }
    requests = words.figure(found.get("requests")) or 0
    failed = words.figure(found.get("errors")) or 0
    share = f" ({words.percent(failed / requests)})" if requests and failed else ""
    return shown | {
        "requests": words.count(requests),
        "errors": f"{words.count(failed)}{share}",
        "limits hit (429)": words.count(found.get("limited")),
        "time in the model": words.duration((words.figure(found.get("execution_ms")) or 0) / 1000),
        "replica-hours": hours(found.get("replica_hours")),
        "cost": str(found.get("cost_reason") or money(found.get("cost"), currency)),
        "per 1,000 requests": per_thousand(found, currency),
    }


def per_thousand(found: Mapping[str, Any], currency: object) -> str:
    """What a thousand requests cost here; a dash without a request or a price."""
    cost, requests = words.figure(found.get("cost")), words.figure(found.get("requests"))
    return (
        words.NOTHING if cost is None or not requests else money(1000 * cost / requests, currency)
    )


def tiles(total: api.Json, currency: object) -> list[tuple[str, str, str]]:
    """(title, value, what it means) of the whole period."""
    requests = words.figure(total.get("requests")) or 0
    failed = words.figure(total.get("errors")) or 0
    errors = words.count(failed)
    if requests and failed:
        errors += f" ({words.percent(failed / requests)})"
    return [
        ("Requests", words.count(requests), "Requests that clients sent; shadow copies are not."),
        ("Errors", errors, "Answers of 5xx, and of a model that raised."),
        ("Limits hit", words.count(total.get("limited")), "Answers of 429: rate limit or queue."),
        ("Replica-hours", hours(total.get("replica_hours")), "Hours that replicas were there."),
        ("Cost", money(total.get("cost"), currency), "By the present price table."),
    ]


def by_day(found: Sequence[api.Json], currency: object) -> go.Figure:
    """Requests as bars per UTC day, and the cost as a line where every day's is known."""
    days = [datetime.fromisoformat(str(one["day"])).replace(tzinfo=UTC) for one in found]
    figure = charts.blank(240)
    counts = [words.figure(one.get("requests")) or 0 for one in found]
    figure.add_bar(
        x=days,
        y=counts,
        name="requests",
        marker={"color": charts.CURRENT},
        hovertemplate="%{y:,.0f} requests<extra></extra>",
    )
    costs = [words.figure(one.get("cost")) for one in found]
    if any(cost is not None for cost in costs):
        unit = charts.label(currency or "")
        figure.add_scatter(
            x=days,
            y=costs,
            name=f"cost, {unit}",
            yaxis="y2",
            mode="lines+markers",
            line={"color": charts.PALETTE[1], "width": 2},
            hovertemplate=f"%{{y:,.2f}} {unit}<extra></extra>",
        )
        figure.update_layout(
            yaxis2={
                "overlaying": "y",
                "side": "right",
                "rangemode": "tozero",
                "showgrid": False,
                "title": {"text": f"cost a day, {unit}"},
            }
        )
    figure.update_layout(yaxis={"title": {"text": "requests a day"}, "rangemode": "tozero"})
    return figure
