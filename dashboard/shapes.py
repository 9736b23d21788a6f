"""How far columns moved, and how they are distributed. Pure; drawn like charts.py."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from dashboard import charts

OTHERS = "all others"
BASELINE, PREVIOUS = "#9AA3AF", "#56B4E9"
MOST_CELLS_WITH_TEXT = 900
MOST_BAR_PIXELS = 400
# Effect over threshold: pale below 1, amber from 1 (warning), dark from 2 (critical).
HEAT = (
    (0.0, "#F2F5F9"),
    (0.33, "#CFDCEA"),
    (0.3301, "#F6C46B"),
    (0.66, "#E08A1E"),
    (0.6601, "#C4420A"),
    (1.0, "#7A1F0B"),
)
HEAT_TOP = 3.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A distribution: numeric bins `[edges[i], edges[i + 1])` or categories, and their shares."""

    edges: Sequence[float]
    categories: Sequence[str]
    shares: Sequence[float]


def heat_map(
    columns: Sequence[str],
    windows: Sequence[str],
    effects: Sequence[Sequence[float | None]],
    told: Sequence[Sequence[str]],
) -> go.Figure:
    """Columns x windows, coloured by distance over threshold; what is clicked can be selected.

    effects[row][window]: 1 = at the threshold, None = no answer. told: the same in a sentence per
    cell, of a large map (`is_large`) in one per row. Selected points carry (column, window number)
    as customdata, in a large map (column, None): there rows are clicked, since a browser takes
    seconds for thousands of points."""
    rows = [charts.label(name) for name in columns]
    large = is_large(len(columns), len(windows))
    figure = charts.blank(70 + (17 if large else 25) * len(rows))
    figure.add_heatmap(
        z=[[None if x is None else min(x, HEAT_TOP) for x in row] for row in effects],
        x=list(windows),
        y=rows,
        zmin=0,
        zmax=HEAT_TOP,
        colorscale=[list(stop) for stop in HEAT],
        hoverinfo="skip",
        colorbar={
            "title": {"text": "distance over<br>threshold", "font": {"size": 11}},
            "tickvals": [0, 1, 2, 3],
            "ticktext": ["0", "1 warning", "2 critical", "3 or more"],
            "thickness": 10,
            "outlinewidth": 0,
            "lenmode": "pixels",
            "len": min(MOST_BAR_PIXELS, 25 * len(rows) + 60),
            "y": 1,
            "yanchor": "top",
        },
    )
    # A heat map tells plotly nothing when it is clicked: unseen shapes lie over it.
    if large:
        _clickable_rows(figure, columns, rows, windows, told)
    else:
        figure.update_traces(
            xgap=1,
            ygap=1,
            text=[[_cell(x) for x in row] for row in effects],
            texttemplate="%{text}",
            textfont={"size": 10},
        )
        _clickable_cells(figure, columns, rows, windows, told)
    figure.update_layout(hovermode="closest", clickmode="event+select", dragmode=False)
    figure.update_xaxes(
        type="category",
        side="top",
        range=[-0.5, len(windows) - 0.5],
        showgrid=False,
        fixedrange=True,
        nticks=16,
    )
    figure.update_yaxes(
        type="category",
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        fixedrange=True,
        automargin=True,
    )
    return figure


def is_large(columns: int, windows: int) -> bool:
    """Whether a map has colours only, and rows to click instead of cells."""
    return columns * windows > MOST_CELLS_WITH_TEXT


def _clickable_cells(
    figure: go.Figure,
    columns: Sequence[str],
    rows: Sequence[str],
    windows: Sequence[str],
    told: Sequence[Sequence[str]],
) -> None:
    figure.add_scatter(
        x=[window for _ in rows for window in windows],
        y=[row for row in rows for _ in windows],
        mode="markers",
        marker={"size": 18, "opacity": 0, "symbol": "square", "color": charts.GREY},
        text=[html.escape(text) for row in told for text in row],
        customdata=[[name, place] for name in columns for place in range(len(windows))],
        hovertemplate="<b>%{y}</b>, %{x}<br>%{text}<extra></extra>",
        showlegend=False,
    )


def _clickable_rows(
    figure: go.Figure,
    columns: Sequence[str],
    rows: Sequence[str],
    windows: Sequence[str],
    told: Sequence[Sequence[str]],
) -> None:
    figure.add_bar(
        x=[len(windows)] * len(rows),
        y=rows,
        base=-0.5,  # from the left edge of the first window's cell
        width=1,
        orientation="h",
        marker={"opacity": 0, "color": charts.GREY},
        hovertext=[html.escape(row[0]) for row in told],
        customdata=[[name, None] for name in columns],
        hovertemplate="<b>%{y}</b><br>%{hovertext}<extra></extra>",
        showlegend=False,
    )


def distribution(shapes: Mapping[str, Shape], column: str) -> go.Figure:
    """Distributions of a column: `baseline`, `previous`, `current`; steps for numbers, bars for
    categories."""
    figure = charts.blank(300)
    styles = {"baseline": BASELINE, "previous": PREVIOUS, "current": charts.CURRENT}
    uneven = any(_uneven(shape.edges) for shape in shapes.values())
    for name, shape in shapes.items():
        if shape.categories:
            figure.add_bar(
                x=[charts.label(item) for item in shape.categories],
                y=list(shape.shares),
                name=name,
                marker={"color": styles[name]},
                hovertemplate="%{y:.1%}",
            )
        else:
            figure.add_scatter(
                x=list(shape.edges),
                y=_heights(shape, uneven),
                name=name,
                mode="lines",
                line={"color": styles[name], "width": 2, "shape": "hv"},
                line_dash="dot" if name == "previous" else "solid",
                fill="tozeroy" if name == "baseline" else None,
                fillcolor="rgba(154,163,175,0.25)",
                hovertemplate="%{y:.3g}" if uneven else "%{y:.1%}",
            )
    title = "share per unit" if uneven else "share of rows"
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_yaxes(
        title={"text": title}, rangemode="tozero", tickformat="" if uneven else ".0%"
    )
    figure.update_xaxes(title={"text": charts.label(column)})
    return figure


def _cell(effect: float | None) -> str:
    if effect is None:
        return "·"
    return f"{effect:.1f}" if effect >= 1 else ""


def _uneven(edges: Sequence[float]) -> bool:
    widths = [b - a for a, b in pairwise(edges)]
    return bool(widths) and max(widths) > 1.05 * min(widths)


def _heights(shape: Shape, uneven: bool) -> list[float]:
    """Shares, or shares over bin width where widths differ; closed at the last edge."""
    heights = list(shape.shares)
    if uneven:
        widths = [b - a for a, b in pairwise(shape.edges)]
        heights = [s / w if w > 0 else 0.0 for s, w in zip(heights, widths, strict=False)]
    return heights + heights[-1:]


def shape_of(profile: Mapping[str, Any] | None) -> Shape | None:
    """A profile of the API (`rows`, `nulls`, `histogram`) as shares of the values that are there;
    None where there is nothing to draw. Bins are `{low, high, count}`, categories
    `{value, count}`."""
    bins = (profile or {}).get("histogram") or []
    total = sum(entry.get("count", 0) for entry in bins)
    if not total:
        return None
    shares = [entry.get("count", 0) / total for entry in bins]
    if "low" in bins[0]:
        return Shape([entry["low"] for entry in bins] + [bins[-1]["high"]], [], shares)
    return Shape(
        [],
        [OTHERS if entry.get("value") is None else str(entry["value"]) for entry in bins],
        shares,
    )
