"""Data -> plotly figures. Pure. Inside what plotly 5 and 6 share; drawn with Streamlit's fonts.

Versions keep one colour everywhere; the champion is drawn full, others dashed. Colour never speaks
alone: a number, a word or a form says the same. Text from outside is escaped: plotly reads HTML.
"""

import html
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import plotly.graph_objects as go

from dashboard import words

# Okabe and Ito's palette without its yellow, which a white page swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8F6B00", "#5D5D9E")
GOOD, BAD = "#009E73", "#C4420A"
GREY, FAINT, INK = "#6B7280", "#D8DEE6", "#2B3440"
CURRENT = "#0B5CAD"
LONGEST_LABEL, LONGEST_LINE = 36, 90
MOST_MARKS, MOST_TEXTS = 40, 6
CONFIG = {"displayModeBar": False, "responsive": True}


@dataclass(frozen=True, slots=True)
class Line:
    """A series over time; None in `values` is a gap. low, high: an interval around it. points:
    colours of the points, where they tell something."""

    name: str
    times: Sequence[datetime]
    values: Sequence[float | None]
    colour: str
    dashed: bool = False
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    notes: Sequence[str] = ()
    points: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, drawn as an upright mark."""

    time: datetime
    text: str


def label(text: object) -> str:
    """Text for a chart: escaped, on one line, cut to a readable length."""
    return html.escape(words.cut(str(text), LONGEST_LABEL), quote=False)


def colour(version: str) -> str:
    """The one colour of a version: by its number where it ends in one, else by its hash."""
    number = re.search(r"(\d{1,9})$", version)
    place = int(number.group(1)) - 1 if number else zlib.crc32(version.encode())
    return PALETTE[place % len(PALETTE)]


def traffic(bars: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> go.Figure:
    """Shares of traffic as full-width bars, one per (caption, [(version, percentage)])."""
    figure = blank(24 + 38 * len(bars))
    names = sorted({name for _, routes in bars for name, share in routes if share > 0})
    captions = [label(caption) for caption, _ in bars]
    for name in names:
        shares = [dict(routes).get(name, 0) for _, routes in bars]
        figure.add_bar(
            y=captions,
            x=shares,
            name=label(name),
            orientation="h",
            marker={"color": colour(name), "line": {"color": "white", "width": 1}},
            text=[f"{label(name)}  {share:g} %" if share >= 6 else "" for share in shares],
            textposition="inside",
            insidetextanchor="middle",
            textfont={"color": "white", "size": 13},
            hovertemplate=f"{label(name)} %{{x:g}} %<extra></extra>",
        )
    figure.update_layout(barmode="stack", showlegend=False, bargap=0.25)
    figure.update_layout(margin={"l": 0, "r": 0, "t": 4, "b": 4}, hovermode="closest")
    figure.update_xaxes(visible=False, range=[0, 100], fixedrange=True)
    figure.update_yaxes(
        autorange="reversed", showgrid=False, visible=any(captions), fixedrange=True
    )
    return figure


def lines(
    series: Sequence[Line],
    unit: str,
    events: Sequence[Event] = (),
    limits: Sequence[tuple[float, str]] = (),
    height: int = 260,
    zero: bool = True,
) -> go.Figure:
    """Values over time. unit: title of the y axis; limits: dotted lines with a word; zero: the
    axis begins at 0."""
    figure = blank(height)
    for line in series:
        _band(figure, line)
        figure.add_scatter(
            x=list(line.times),
            y=list(line.values),
            name=label(line.name),
            mode="lines+markers" if len(line.times) <= 40 else "lines",
            line={"color": line.colour, "width": 2, "dash": "dash" if line.dashed else "solid"},
            marker={"size": 6, "color": list(line.points) or line.colour},
            customdata=[[html.escape(note)] for note in line.notes] or None,
            hovertemplate="%{y:.4g}" + (" %{customdata[0]}" if line.notes else ""),
        )
    _limits(figure, limits)
    _marks(figure, series, events)
    figure.update_yaxes(title={"text": unit}, rangemode="tozero" if zero else "normal")
    if len(series) == 1 and not events:
        figure.update_layout(showlegend=False, margin={"t": 10})
    return figure


def stacked(series: Sequence[Line], unit: str, height: int = 240) -> go.Figure:
    """Parts of a whole over time as bars, one on the other; no bar where there is no value. unit:
    title of the y axis."""
    figure = blank(height)
    for line in series:
        figure.add_bar(
            x=list(line.times),
            y=list(line.values),
            name=label(line.name),
            marker={"color": line.colour},
            hovertemplate="%{y:.3g}",
        )
    figure.update_layout(barmode="stack", bargap=0.1, legend={"traceorder": "normal"})
    figure.update_yaxes(title={"text": unit}, rangemode="tozero")
    return figure


def coverage(series: Sequence[Line]) -> go.Figure:
    """Share of answered rows that have a label, per window and version, 0 to 100 %."""
    figure = blank(200)
    for line in series:
        figure.add_bar(
            x=list(line.times),
            y=list(line.values),
            name=label(line.name),
            marker={"color": line.colour, "opacity": 0.75},
            customdata=[[html.escape(note)] for note in line.notes] or None,
            hovertemplate="%{y:.0%}" + (" %{customdata[0]}" if line.notes else ""),
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(title={"text": "labelled"}, range=[0, 1.02], tickformat=".0%")
    return figure


def narrowing(
    line: Line, bound: float, limit: float | None, marks: Sequence[Event], unit: str
) -> go.Figure:
    """The interval of the primary difference as a band that narrows with time; bound: what it must
    leave behind; limit: the smallest gain worth a change."""
    limits = [(bound, "no difference" if bound == 0 else "largest loss nobody minds")]
    if limit is not None:
        limits.append((limit, "worth a change"))
    figure = lines([line], unit, marks, limits, height=300, zero=False)
    figure.update_layout(showlegend=False)
    return figure


def stepper(steps: Sequence[float], here: int, state: str) -> go.Figure:
    """The planned shares of a ramp: done, here, to come. here: number of the present step from 0;
    -1 before the first."""
    places = list(range(len(steps)))
    figure = blank(92)
    done = len(steps) if state == "completed" else here
    colour_here = BAD if state == "rolled_back" else CURRENT
    tints = [GOOD if p < done else colour_here if p == here else FAINT for p in places]
    figure.add_scatter(
        x=places,
        y=[0] * len(steps),
        mode="lines+markers+text",
        line={"color": FAINT, "width": 4},
        marker={
            "size": [34 if place == here else 26 for place in places],
            "color": tints,
            "opacity": 1,
            "line": {"color": "white", "width": 2},
        },
        text=[f"{step:g} %" for step in steps],
        textposition="bottom center",
        textfont={"size": 13},
        hoverinfo="skip",
    )
    for place in places:
        sign = "✓" if place < done else "●" if place == here else ""
        figure.add_annotation(
            x=place, y=0, text=sign, showarrow=False, font={"color": "white", "size": 13}
        )
    figure.update_layout(showlegend=False, margin={"l": 20, "r": 20, "t": 4, "b": 4})
    figure.update_xaxes(visible=False, range=[-0.4, len(steps) - 0.6], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-1.6, 0.9], fixedrange=True)
    return figure


def parts(times: Sequence[tuple[str, float]]) -> go.Figure:
    """Where the milliseconds of one request went, as one bar."""
    figure = blank(96)
    for place, (name, spent) in enumerate(times):
        figure.add_bar(
            x=[spent],
            y=[""],
            name=f"{label(name)} {words.amount(spent)} ms",
            orientation="h",
            marker={"color": PALETTE[place % len(PALETTE)]},
            hovertemplate=f"{label(name)} %{{x:.3g}} ms<extra></extra>",
        )
    figure.update_layout(barmode="stack", hovermode="closest", legend={"traceorder": "normal"})
    figure.update_layout(margin={"l": 0, "r": 0, "t": 28, "b": 22})
    figure.update_xaxes(ticksuffix=" ms", fixedrange=True)
    figure.update_yaxes(visible=False, fixedrange=True)
    return figure


def blank(height: int) -> go.Figure:
    """An empty figure in the common dress."""
    return dress(go.Figure(), height)


def dress(figure: go.Figure, height: int) -> go.Figure:
    """Margins, legend and see-through ground of every chart."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
    )
    return figure


def _band(figure: go.Figure, line: Line) -> None:
    """The interval of a line: a filled outline per stretch without gaps."""
    if not line.low:
        return
    for stretch in _stretches(line):
        times = [line.times[i] for i in stretch]
        outline = [line.high[i] for i in stretch] + [line.low[i] for i in reversed(stretch)]
        figure.add_scatter(
            x=times + times[::-1],
            y=outline,
            fill="toself",
            fillcolor=_faded(line.colour, 0.16),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        )


def _stretches(line: Line) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for place, (low, high) in enumerate(zip(line.low, line.high, strict=True)):
        if low is None or high is None:
            found.append([])
        else:
            found[-1].append(place)
    return [stretch for stretch in found if stretch]


def _faded(tint: str, opacity: float) -> str:
    red, green, blue = (int(tint[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _limits(figure: go.Figure, limits: Sequence[tuple[float, str]]) -> None:
    """Dotted lines with a word. At once: plotly takes ten milliseconds for an `add_hline`."""
    shapes, notes = [], []
    for place, (value, word) in enumerate(sorted(limits)):
        is_below = place == 0 < len(limits) - 1
        across = {"xref": "x domain", "x0": 0, "x1": 1, "y0": value, "y1": value}
        shapes.append(
            {"type": "line", **across, "line": {"color": GREY, "width": 1.5, "dash": "dot"}}
        )
        notes.append(
            {
                "text": label(word),
                "font": {"size": 11, "color": GREY},
                "showarrow": False,
                "xref": "x domain",
                "x": 1,
                "xanchor": "right",
                "y": value,
                "yanchor": "top" if is_below else "bottom",
            }
        )
    figure.update_layout(shapes=shapes, annotations=notes)


def _marks(figure: go.Figure, series: Sequence[Line], events: Sequence[Event]) -> None:
    """Upright marks; their texts show on hover, since many would cover each other."""
    if not events:
        return
    events = _merged(events, [time for line in series for time in line.times])
    for event in events:
        figure.add_shape(
            type="line",
            x0=event.time,
            x1=event.time,
            y0=0,
            y1=1,
            yref="paper",
            line={"color": INK, "width": 1, "dash": "dot"},
            opacity=0.5,
        )
    tops = [v for line in series for v in (*line.values, *line.high) if v is not None]
    figure.add_scatter(
        x=[event.time for event in events],
        y=[max(tops, default=0)] * len(events),
        mode="markers",
        marker={"symbol": "triangle-down", "size": 10, "color": INK},
        name="events",
        customdata=[[html.escape(event.text).replace("\n", "<br>")] for event in events],
        hovertemplate="%{customdata[0]}<extra></extra>",
        showlegend=len(series) > 1,
    )


def _merged(events: Sequence[Event], times: Sequence[datetime]) -> list[Event]:
    """Marks that would cover each other become one, with all their texts."""
    ordered = sorted(events, key=lambda event: event.time)
    ends = [*times, *(event.time for event in ordered)]
    near = (max(ends) - min(ends)) / MOST_MARKS
    groups: list[list[Event]] = []
    for event in ordered:
        if groups and event.time - groups[-1][0].time < near:
            groups[-1].append(event)
        else:
            groups.append([event])
    return [Event(group[0].time, _together(group)) for group in groups]


def _together(group: Sequence[Event]) -> str:
    lines = [words.cut(event.text, LONGEST_LINE) for event in group[:MOST_TEXTS]]
    more = len(group) - len(lines)
    return "\n".join([*lines, f"and {more} more"] if more else lines)
