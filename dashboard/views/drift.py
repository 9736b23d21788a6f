"""Has the input or the output changed, where, since when?"""

from typing import Any

import streamlit as st

from dashboard import api, charts, explaining, frame, shapes, watching, words

MOST_WINDOWS, MOST_COLUMNS = 100, 100
MAP_FIELDS = "status,effect,n"
PALE = "Pale is within what the limit and the baseline's own windows allow"
LEGEND = (
    "Colour and number: distance over its threshold where it drifted; worst column first. "
    f"{PALE}, a dot is no answer. Click a cell to open its column."
)
LARGE_LEGEND = (
    "Colour: distance over its threshold where it drifted; worst column first. "
    f"{PALE}, an empty cell is no answer. Click a row to open its column."
)
WITHIN, LEAST_P = 0.99, 0.001
JUDGED = ("ok", "drifted")


def main() -> None:
    frame.page("Drift", "Has the input or the output changed, where, since when?")
    name = frame.need_endpoint("its drift")
    monitor = watching.monitor_of(name) if name else None
    if monitor is None:
        return
    watching.strip(monitor)
    version = frame.here().version
    table = str(monitor.get("table"))
    asked = {"served_entity": version, "fields": MAP_FIELDS}
    reply = frame.load("the drift of this table", api.drift, table, asked)
    if reply is None:
        return
    columns, windows = reply.get("columns") or [], reply.get("windows") or []
    if not columns or not windows:
        frame.empty(
            "No window has been judged yet",
            "Windows appear after the first refresh with rows in them. Press Refresh now, or send "
            "requests first; fewer than 200 rows in a window are never judged.",
        )
        return
    places = watching.choose_length(windows, "drift_length")
    if not places:
        st.info("No window lies in the chosen time range. Choose a longer one above.")
        return
    show(table, columns, windows, places[-MOST_WINDOWS:], len(places))


def show(
    table: str, columns: list[api.Json], windows: list[Any], places: list[int], found: int
) -> None:
    grid = {str(c.get("name")): cells_of(c, windows) for c in sorted(columns, key=place_of)}
    headline(grid, windows, places)
    if found > len(places):
        st.caption(
            f"The newest {len(places)} of {found} windows; narrow the range above for others."
        )
    shown = list(grid)[:MOST_COLUMNS]
    if len(grid) > len(shown):
        st.caption(
            f"The {len(shown)} worst of {len(grid)} columns; any can be chosen below the map."
        )
    figure = shapes.heat_map(
        shown,
        [short(windows[p]) for p in places],
        [[shade(grid[name].get(p)) for p in places] for name in shown],
        sentences([grid[name] for name in shown], windows, places),
    )
    st.caption(LARGE_LEGEND if shapes.is_large(len(shown), len(places)) else LEGEND)
    event = st.plotly_chart(
        figure,
        config=charts.CONFIG,
        key="drift_map",
        on_select="rerun",
        selection_mode="points",
    )
    points = event["selection"]["points"] if event else []
    clicked = points[0].get("customdata") if points else None
    if clicked and clicked != st.session_state.get("drift_clicked"):
        st.session_state["drift_clicked"] = clicked
        if clicked[1] is not None:
            st.session_state["drift_window"] = places[int(clicked[1])]
        st.query_params["column"] = clicked[0]
    one_column(table, windows, places, grid)


@st.fragment
def one_column(
    table: str, windows: list[Any], places: list[int], grid: dict[str, dict[int, api.Json]]
) -> None:
    """What is below the map: drawn alone when another column or window is chosen there."""
    column, place = choose(list(grid), windows, places, grid)
    asked = {"column": column, "served_entity": frame.here().version}
    reply = frame.load("this column", api.drift, table, asked)
    if reply is None:
        return
    found = [c for c in reply.get("columns") or [] if c.get("name") == column]
    detail(table, column, place, cells_of(found[0], windows) if found else {}, windows, places)


def place_of(column: api.Json) -> tuple[bool, int, str]:
    """Columns that drifted first, then as the server ranks them."""
    drifted = any(cell.get("status") == "drifted" for cell in column.get("cells") or [])
    return not drifted, int(column.get("rank") or 10**6), str(column.get("name"))


def cells_of(column: api.Json, windows: list[Any]) -> dict[int, api.Json]:
    """Cells by the number of their window."""
    numbers = {(str(w[0]), str(w[1])): i for i, w in enumerate(windows)}
    found = {}
    for cell in column.get("cells") or []:
        ends = cell.get("window") or ["", ""]
        place = numbers.get((str(ends[0]), str(ends[1])))
        if place is not None:
            found[place] = cell
    return found


def effect(cell: api.Json | None) -> float | None:
    return words.figure((cell or {}).get("effect"))


def shade(cell: api.Json | None) -> float | None:
    """The effect as it is coloured: what is judged as no drift stays below the limit, however far
    the distance, since the baseline's own windows go as far."""
    found = effect(cell)
    if found is None or (cell or {}).get("status") == "drifted":
        return found
    return min(found, WITHIN)


def sentences(
    rows: list[dict[int, api.Json]], windows: list[Any], places: list[int]
) -> list[list[str]]:
    """The map in words: a sentence per cell; in a large map one per row, on its farthest cell."""
    if shapes.is_large(len(rows), len(places)):
        return [[farthest(cells, windows, places)] for cells in rows]
    return [[cell_words(cells.get(place)) for place in places] for cells in rows]


def farthest(cells: dict[int, api.Json], windows: list[Any], places: list[int]) -> str:
    known = [place for place in places if shade(cells.get(place)) is not None]
    if not known:
        return "no answer in these windows"
    place = max(known, key=lambda p: shade(cells[p]) or 0.0)
    return f"farthest in {short(windows[place])}: {cell_words(cells[place])}"


def cell_words(cell: api.Json | None) -> str:
    if cell is None:
        return "no rows"
    said = words.status(cell)
    if effect(cell) is not None:
        said += f", {words.amount(effect(cell))} times its threshold"
    return f"{said}; {words.several(words.figure(cell.get('n')) or 0, 'row')}"


def short(window: list[Any]) -> str:
    start, end = words.moment(window[0]), words.moment(window[1])
    if start is None or end is None:
        return words.NOTHING
    if (end - start).total_seconds() < 86_400:
        return f"{start.day} {start:%b %H:%M}"
    return f"{start.day} {start:%b %y}"


def headline(grid: dict[str, dict[int, api.Json]], windows: list[Any], places: list[int]) -> None:
    """The newest window that could be judged, in one sentence."""
    newest = newest_judged(list(grid.values()), places)
    last = places[-1] if newest is None else newest
    cells = {name: cells[last] for name, cells in grid.items() if last in cells}
    drifted = [name for name, cell in cells.items() if cell.get("status") == "drifted"]
    rows = max((words.figure(c.get("n")) or 0 for c in cells.values()), default=0)
    said = f"{words.window(windows[last])}, {words.count(rows)} rows: "
    if drifted:
        names = ", ".join(drifted[:4]) + (
            f" and {len(drifted) - 4} more" if len(drifted) > 4 else ""
        )
        st.warning(
            words.plain(f"{said}{len(drifted)} of {len(cells)} columns drifted: {names}."),
            icon=":material/ssid_chart:",
        )
    elif any(cell.get("status") == "ok" for cell in cells.values()):
        st.success(words.plain(f"{said}no column drifted."), icon=":material/check_circle:")
    else:
        st.info(words.plain(f"{said}too few to judge."), icon=":material/hourglass_empty:")


def newest_judged(columns: list[dict[int, api.Json]], places: list[int]) -> int | None:
    """The newest window in which a column has an answer."""
    judged = {p for cells in columns for p, cell in cells.items() if cell.get("status") in JUDGED}
    return max((p for p in places if p in judged), default=None)


def choose(
    names: list[str],
    windows: list[Any],
    places: list[int],
    grid: dict[str, dict[int, api.Json]],
) -> tuple[str, int]:
    """Column and window: the clicked cell, else the URL's column, else the worst; the newest
    window that has this column."""
    asked = st.query_params.get("column")
    st.session_state["drift_column"] = asked if asked in names else names[0]
    left, right = st.columns(2)
    column = left.selectbox("Column", names, key="drift_column", on_change=_chose_column)
    having = [p for p in places if p in grid[column]] or places
    linked = words.moment(st.query_params.pop("window", None))
    for place in having if linked is not None else ():
        if words.moment(windows[place][0]) == linked:
            st.session_state["drift_window"] = place
    if st.session_state.get("drift_window") not in having:
        newest = newest_judged([grid[column]], having)
        st.session_state["drift_window"] = having[-1] if newest is None else newest
    place = right.selectbox(
        "Window", having[::-1], format_func=lambda p: words.window(windows[p]), key="drift_window"
    )
    return column, place


def _chose_column() -> None:
    st.query_params["column"] = st.session_state["drift_column"]


def detail(
    table: str,
    column: str,
    place: int,
    cells: dict[int, api.Json],
    windows: list[Any],
    places: list[int],
) -> None:
    cell = cells.get(place)
    window = windows[place]
    st.markdown(f"#### {words.plain(column)}, {words.plain(words.window(window))}")
    if cell is None:
        st.info("This column has no rows in this window. Choose another window.")
        return
    word, tint = judged(cell)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(word, color=tint)
        st.markdown(words.plain(words.statistic(cell)), width="content")
    facts = []
    if effect(cell) is not None:
        facts.append(f"{words.amount(effect(cell))} times its threshold")
    if words.figure(cell.get("null_share")) is not None:
        facts.append(f"{words.percent(cell['null_share'])} of the rows are null")
    if words.figure(cell.get("pvalue")) is not None:
        p = words.amount(cell["pvalue"]) if cell["pvalue"] >= LEAST_P else f"below {LEAST_P}"
        facts.append(f"p {p} (at many rows every small change has a small p)")
    st.caption(words.plain("; ".join(facts)))
    left, right = st.columns(2)
    with left:
        st.markdown("**Distribution**")
        distributions(table, column, window)
    with right:
        st.markdown("**Distance over time**")
        over_time(column, cells, windows, places)
    explaining.draw(table, window, frame.here().version)


def judged(cell: api.Json) -> tuple[str, frame.Tint]:
    """The judgement on a cell as a word, and its colour."""
    word = words.status(cell)
    if cell.get("status") == "drifted":
        severity = cell.get("severity") or "warning"
        return f"{word}, {severity}", "red" if severity == "critical" else "orange"
    return word, "green" if cell.get("status") == "ok" else "gray"


def distributions(table: str, column: str, window: list[Any]) -> None:
    filters = {"column": column, "window_start": window[0], "window_end": window[1]}
    filters["served_entity"] = frame.here().version
    reply = frame.load("the distributions", api.profiles, table, filters, absent={})
    if reply is None:
        return
    drawn: dict[str, shapes.Shape] = {}
    for part in ("baseline", "previous", "current"):
        shape = shapes.shape_of(reply.get(part))
        if shape is not None:
            drawn[part] = shape
    if "current" not in drawn:
        st.info("No value of this column in this window: nothing to draw.")
        return
    st.plotly_chart(shapes.distribution(drawn, column), config=charts.CONFIG, key="drift_shapes")
    said = []
    for part in ("baseline", "current"):
        profile = reply.get(part) or {}
        rows, nulls = words.figure(profile.get("rows")), words.figure(profile.get("nulls"))
        if rows:
            missing = f", {words.percent((nulls or 0) / rows)} null"
            said.append(f"{part}: {words.count(rows)} rows{missing}")
    st.caption(words.plain("; ".join(said)))


def over_time(
    column: str, cells: dict[int, api.Json], windows: list[Any], places: list[int]
) -> None:
    """The distance that leads the judgement, over its threshold: one scale for all windows."""
    times, values, notes = [], [], []
    for place in places:
        at = words.moment(windows[place][0])
        if at is not None:
            times.append(at)
            values.append(effect(cells.get(place)))
            cell = cells.get(place) or {}
            notes.append(f"({cell.get('metric') or 'no answer'}, n {words.count(cell.get('n'))})")
    line = charts.Line(
        column,
        times,
        values,
        charts.CURRENT,
        notes=notes,
        points=[dot(cells.get(p)) for p in places],
    )
    figure = charts.lines(
        [line],
        "distance over threshold",
        limits=[(1.0, "warning"), (2.0, "critical")],
        height=300,
    )
    figure.update_layout(showlegend=False)
    st.plotly_chart(figure, config=charts.CONFIG, key="drift_over_time")
    st.caption(
        "Start of each window, UTC. Red: drifted. A blue point over the limit is no drift: the "
        "baseline's own windows go as far."
    )


def dot(cell: api.Json | None) -> str:
    return charts.BAD if (cell or {}).get("status") == "drifted" else charts.CURRENT


main()
