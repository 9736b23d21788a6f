"""Charts of what `inferlake drift` and `quality` found: data and layout as plotly takes them. Pure.

Colour never speaks alone: the hover text or the number beside it says the same.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitors import file_page, file_tables, profile, slices

MOST_WINDOWS = 200
MOST_VALUES = 12
MOST_ROWS = 60
BINS = 40
GREY, WORST, NEWEST, FAINT, AMBER = "#9aa3af", "#c4420a", "#0b5cad", "#d8dee6", "#8a5a00"
DASHED = {"color": AMBER, "width": 1, "dash": "dash"}
PALE = "rgba(154,163,175,0.25)"
OTHERS = "all others"
# Times the limit -> colour, from 0 to 3: pale below 1, amber from 1 (warning), dark from 2.
HEAT = [
    [0.0, "#f2f5f9"],
    [0.33, "#cfdcea"],
    [0.3301, "#f6c46b"],
    [0.66, "#e08a1e"],
    [0.6601, "#c4420a"],
    [1.0, "#7a1f0b"],
]
HEAT_TOP = 3.0
WITHIN = 0.99  # how strong at most a cell is drawn in which nothing drifted


def window_words(window: Any) -> str:
    """A window as a person says it; midnights are left out."""
    if isinstance(window, list):
        start, end = (str(side).replace("T00:00:00Z", "") for side in window)
        return f"{start} to {end}"
    return f"rows {window}" if str(window).startswith("[") else str(window)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}"


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


@dataclass(slots=True)
class Drawn:
    """A window of a column: its entry in the JSON form, and the profile to draw."""

    window: Any
    rows: int
    entry: Mapping[str, Any]
    profile: profile.Profile | None

    @property
    def place(self) -> tuple[int, float]:
        """Ascending from the worst."""
        return file_tables.place(self.entry)


@dataclass(slots=True)
class Column:
    """One column in one slice over all windows."""

    name: str
    slice: slices.Slice | None
    worst: Drawn
    newest: Drawn
    windows: int = 0
    drifted: int = 0
    effects: deque[tuple[str, float | None, bool]] = field(
        default_factory=lambda: deque(maxlen=MOST_WINDOWS)
    )

    @property
    def title(self) -> str:
        if self.slice is None:
            return self.name
        return f"{self.name}, where {self.slice[0]} = {self.slice[1]}"


def heat_map(columns: Sequence[Column]) -> file_page.Chart:
    """Columns x windows, coloured by distance over limit; where nothing drifted it stays pale."""
    shown = columns[:MOST_ROWS]
    names = [file_page.text(column.name, 30) for column in shown]
    windows = [file_page.text(window, 40) for window, _, _ in shown[0].effects]
    heights = [
        [_strength(effect, drifted) for _, effect, drifted in column.effects] for column in shown
    ]
    said = [
        ["no answer" if e is None else f"{e:.3g} times the limit" for _, e, _ in column.effects]
        for column in shown
    ]
    ticks = {"tickvals": [0, 1, 2, 3], "ticktext": ["0", "1 warning", "2 critical", "3 or more"]}
    data = {
        "type": "heatmap",
        "z": heights,
        "x": windows,
        "y": names,
        "text": said,
        "zmin": 0,
        "zmax": HEAT_TOP,
        "xgap": 1,
        "ygap": 1,
        "colorscale": HEAT,
        "hovertemplate": "%{y}, %{x}<br>%{text}<extra></extra>",
        "colorbar": {
            **ticks,
            "thickness": 10,
            "title": {"text": "times the limit", "side": "right"},
        },
    }
    layout = {
        "xaxis": {"type": "category", "side": "top", "nticks": 8, "fixedrange": True},
        "yaxis": {
            "type": "category",
            "autorange": "reversed",
            "automargin": True,
            "fixedrange": True,
        },
        "margin": {"l": 60, "r": 10, "t": 40, "b": 10},
    }
    caption = (
        "Distance of each column in each window, in times its limit. Pale is no drift; white is no "
        "answer."
    )
    return file_page.Chart([data], layout, caption, 80 + 24 * len(shown))


def _strength(effect: float | None, drifted: bool) -> float | None:
    if effect is None:
        return None
    return min(effect, HEAT_TOP) if drifted else min(effect, WITHIN)


def distribution(column: Column, reference: profile.Profile | None) -> file_page.Chart | None:
    """The reference beside the worst and the newest window."""
    sides = {"reference": (reference, GREY)}
    newest = column.newest.window != column.worst.window
    sides["worst window" if newest else "current"] = (column.worst.profile, WORST)
    if newest:
        sides["newest window"] = (column.newest.profile, NEWEST)
    drawn = {name: (one, tint) for name, (one, tint) in sides.items() if one is not None}
    if not drawn:
        return None
    if all(isinstance(one, profile.NumericProfile) for one, _ in drawn.values()):
        data = _steps(drawn)
        axis: dict[str, Any] = {"title": {"text": file_page.text(column.name, 40)}}
    else:
        data = _bars(drawn)
        axis = {"type": "category", "automargin": True}
    if not data:
        return None
    layout = {
        "xaxis": {**axis, "fixedrange": True},
        "yaxis": {
            "title": {"text": "share of rows"},
            "tickformat": ".0%",
            "rangemode": "tozero",
            "gridcolor": FAINT,
            "fixedrange": True,
        },
        "barmode": "group",
    }
    worst = file_page.text(window_words(column.worst.window))
    named = f"; worst window: {worst}" if newest else ""
    return file_page.Chart(data, layout, f"Which values occur how often{named}.")


def _steps(sides: Mapping[str, tuple[Any, str]]) -> list[dict[str, Any]]:
    edges = profile.edges([one for one, _ in sides.values()], BINS)
    data = []
    for name, (one, tint) in sides.items():
        bars = profile.histogram(one, BINS, edges)
        total = sum(bar["count"] for bar in bars)
        if not total:
            continue
        shares = [bar["count"] / total for bar in bars]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": edges,
                "y": [*shares, shares[-1]],
                "line": {"color": tint, "width": 2, "shape": "hv"},
                "hovertemplate": "%{x:.4g}: %{y:.1%}",
                **({"fill": "tozeroy", "fillcolor": PALE} if tint == GREY else {}),
            }
        )
    return data


def _bars(sides: Mapping[str, tuple[Any, str]]) -> list[dict[str, Any]]:
    shares: dict[str, dict[str, float]] = {}
    for name, (one, _) in sides.items():
        values = getattr(one, "values", None) or {}
        total = sum(values.values()) + getattr(one, "other", 0)
        if total:
            shares[name] = {value: count / total for value, count in values.items()}
    heaviest = sorted(
        {value for one in shares.values() for value in one},
        key=lambda value: (-max(one.get(value, 0.0) for one in shares.values()), value),
    )[:MOST_VALUES]
    labels = [file_page.text(value, 24) or "(empty)" for value in heaviest]
    data = []
    for name, one in shares.items():
        heights = [one.get(value, 0.0) for value in heaviest]
        rest = 1.0 - sum(heights)
        data.append(
            {
                "type": "bar",
                "name": name,
                "marker": {"color": sides[name][1]},
                "x": [*labels, OTHERS] if rest > 1e-9 else labels,
                "y": [*heights, rest] if rest > 1e-9 else heights,
                "hovertemplate": "%{x}: %{y:.1%}",
            }
        )
    return data


def over_windows(column: Column) -> file_page.Chart:
    """Distance over limit, window by window."""
    windows = [file_page.text(window, 40) for window, _, _ in column.effects]
    tints = [WORST if drifted else NEWEST for _, _, drifted in column.effects]
    words = ["drifted" if drifted else "no drift" for _, _, drifted in column.effects]
    data = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": windows,
        "name": column.name,
        "y": [effect for _, effect, _ in column.effects],
        "line": {"color": NEWEST, "width": 1.5},
        "marker": {"color": tints, "size": 7},
        "text": words,
        "hovertemplate": "%{x}<br>%{y:.3g} times the limit, %{text}<extra></extra>",
    }
    limit = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": 1,
        "y1": 1,
        "line": DASHED,
    }
    note = {
        "xref": "paper",
        "x": 1,
        "y": 1,
        "text": "limit",
        "showarrow": False,
        "xanchor": "right",
        "yanchor": "bottom",
        "font": {"size": 11},
    }
    layout = {
        "shapes": [limit],
        "annotations": [note],
        "showlegend": False,
        "xaxis": {"type": "category", "nticks": 8, "fixedrange": True, "automargin": True},
        "yaxis": {
            "title": {"text": "times the limit"},
            "rangemode": "tozero",
            "gridcolor": FAINT,
            "fixedrange": True,
        },
    }
    newest = ""
    if column.windows > MOST_WINDOWS:
        newest = f" (the newest {MOST_WINDOWS} of {column.windows:,} windows)"
    caption = f"Distance in each window{newest}. Red points drifted; blue ones did not."
    return file_page.Chart([data], layout, caption)


def course(windows: Sequence[Mapping[str, Any]], name: str, title: str) -> file_page.Chart:
    """A metric of quality over the windows: measured with its interval, expected, and limits."""
    x = [file_page.text(window_words(window["window"]), 40) for window in windows]
    measured = [window["realized"].get(name) or {} for window in windows]
    expected = [window["estimated"].get(name) or {} for window in windows]
    data: list[dict[str, Any]] = []
    if any(one.get("value") is not None for one in measured):
        data.append({**_course("measured", x, measured, NEWEST, "solid"), **_interval(measured)})
    if any(one.get("value") is not None for one in expected):
        data.append(_course("expected, without labels", x, expected, AMBER, "dash"))
    limits = next((one["limits"] for one in measured if one.get("limits")), None)
    lines = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": DASHED}
        for y in limits or ()
    ]
    layout = {
        "shapes": lines,
        "xaxis": {"type": "category", "nticks": 10, "fixedrange": True, "automargin": True},
        "yaxis": {"title": {"text": title}, "gridcolor": FAINT, "fixedrange": True},
    }
    caption = f"{title} in each window, with its 95 % interval; larger points are unusual."
    if limits:
        caption += " Dashed lines: the range of the reference's own windows."
    return file_page.Chart(data, layout, caption)


def _course(
    name: str, x: list[str], measures: Sequence[Mapping[str, Any]], tint: str, dash: str
) -> dict[str, Any]:
    unusual = [bool(one.get("alert")) for one in measures]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": [one.get("value") for one in measures],
        "line": {"color": tint, "width": 2, "dash": dash},
        "marker": {
            "color": [WORST if mark else tint for mark in unusual],
            "size": [11 if mark else 6 for mark in unusual],
        },
        "text": ["unusual" if mark else "as usual" for mark in unusual],
        "hovertemplate": "%{x}<br>%{y:.4g}, %{text}",
    }


def _interval(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The way from the value to both ends of its interval; 0 where it has none."""

    def way(one: Mapping[str, Any], side: str) -> float:
        value, end = one.get("value"), one.get(side)
        return 0.0 if value is None or end is None else abs(end - value)

    return {
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [way(one, "high") for one in measured],
            "arrayminus": [way(one, "low") for one in measured],
            "thickness": 1.2,
            "width": 3,
        }
    }
