"""Differences with their intervals, one row each. Pure; drawn like charts.py."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard import charts, words

OPEN, BETTER, WORSE = "no difference shown", "better", "worse"
TINTS = {OPEN: charts.GREY, BETTER: charts.GOOD, WORSE: charts.BAD}


@dataclass(frozen=True, slots=True)
class Effect:
    """One row of a forest: challenger minus champion with its interval; good: -1, +1 direction."""

    name: str
    value: float
    low: float
    high: float
    good: int
    limit: float | None = None
    note: str = ""


def draw(effects: Sequence[Effect], own_scale: bool = True) -> go.Figure:
    """Differences with intervals, one row each. own_scale: every row has its own unit and axis;
    else all share one. The dotted mark is the agreed limit (smallest gain or largest loss)."""
    rows = len(effects)
    figure = make_subplots(rows=rows, cols=1, vertical_spacing=0.5 / (rows + 1))
    ends = [max(abs(end) for effect in effects for end in (effect.low, effect.high))] * rows
    if own_scale:
        ends = [max(abs(e.low), abs(e.high), abs(e.limit or 0)) for e in effects]
    for row, (effect, end) in enumerate(zip(effects, ends, strict=True), 1):
        _row(figure, row, effect, end or 1.0, ticks=own_scale or row == rows)
    charts.dress(figure, 34 + (62 if own_scale else 40) * rows)
    figure.update_layout(
        showlegend=False, hovermode="closest", margin={"l": 180, "r": 180, "t": 8, "b": 26}
    )
    return figure


def _row(figure: go.Figure, row: int, effect: Effect, end: float, ticks: bool) -> None:
    tint = TINTS[_verdict(effect)]
    figure.add_scatter(
        x=[effect.value],
        y=[0],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [effect.high - effect.value],
            "arrayminus": [effect.value - effect.low],
            "thickness": 3,
            "width": 6,
            "color": tint,
        },
        mode="markers",
        marker={"size": 11, "color": tint},
        hovertemplate=f"{charts.label(effect.name)} {words.signed(effect.value)} "
        f"{words.interval([effect.low, effect.high])}<br>{html.escape(effect.note)}<extra></extra>",
        row=row,
        col=1,
    )
    figure.add_vline(x=0, line={"color": charts.INK, "width": 1}, row=row, col=1)
    if effect.limit is not None and math.isfinite(effect.limit):
        figure.add_vline(
            x=effect.limit, line={"color": charts.GREY, "width": 1.5, "dash": "dot"}, row=row, col=1
        )
    reach = 1.12 * end
    figure.update_xaxes(
        range=[-reach, reach],
        showgrid=True,
        showticklabels=ticks,
        nticks=9,
        tickangle=0,
        tickfont={"size": 10},
        fixedrange=True,
        row=row,
        col=1,
    )
    figure.update_yaxes(visible=False, range=[-1, 1], fixedrange=True, row=row, col=1)
    arrow = "better →" if effect.good > 0 else "← better"
    _beside(figure, row, 0, "right", f"<b>{charts.label(effect.name)}</b><br><i>{arrow}</i>")
    told = f"{words.signed(effect.value)} {words.interval([effect.low, effect.high])}"
    _beside(figure, row, 1, "left", f"{told}<br>{_verdict(effect)}")


def _verdict(effect: Effect) -> str:
    if effect.low * effect.high <= 0:
        return OPEN
    return BETTER if effect.good * effect.value > 0 else WORSE


def _beside(figure: go.Figure, row: int, x: float, anchor: str, text: str) -> None:
    axis = "" if row == 1 else str(row)
    figure.add_annotation(
        xref="paper",
        yref=f"y{axis}",
        x=x,
        y=0,
        xanchor=anchor,
        xshift=-10 if anchor == "right" else 10,
        text=text,
        showarrow=False,
        align=anchor,
        font={"size": 12},
    )
