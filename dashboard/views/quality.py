"""Is it still right?"""

from typing import Any

import streamlit as st

from dashboard import api, charts, frame, snippets, watching, words

LOWER_IS_BETTER = {"log_loss", "brier", "mae", "mse", "rmse", "mape", "error_rate"}
PREFERRED = ("log_loss", "roc_auc", "accuracy", "rmse", "mae")
SHARES = {"accuracy", "precision", "recall", "f1", "roc_auc"}


def main() -> None:
    frame.page("Quality", "Is it still right?")
    name = frame.need_endpoint("its quality")
    monitor = watching.monitor_of(name) if name else None
    if name is None or monitor is None:
        return
    watching.strip(monitor)
    filters = {"served_entity": frame.here().version}
    reply = frame.load("the quality of this table", api.quality, str(monitor["table"]), filters)
    if reply is None:
        return
    series = [s for s in reply.get("series") or [] if s.get("metric")]
    windows = reply.get("windows") or []
    if not any(point_value(p) is not None for s in series for p in s.get("points") or []):
        no_labels(name, series)
        return
    show(name, series, windows, reply)


def no_labels(name: str, series: list[api.Json]) -> None:
    """Quality needs the truth: says how to send it, and what can be looked at without."""
    reasons = {p.get("reason") for s in series for p in s.get("points") or [] if p.get("reason")}
    why = f" ({', '.join(sorted(map(str, reasons)))})" if reasons else ""
    frame.empty(
        "No label has been joined yet",
        "Quality compares predictions with what really happened. Send labels as they become known; "
        f"the next refresh joins them{why}:",
        snippets.labels(frame.server_url(), name),
    )
    st.page_link(
        "views/drift.py",
        label="Until then: has the prediction drifted?",
        icon=":material/ssid_chart:",
        query_params={"endpoint": name, "column": "prediction"},
    )


def show(name: str, series: list[api.Json], windows: list[Any], reply: api.Json) -> None:
    places = watching.choose_length(windows, "quality_length")
    inside = {(str(windows[p][0]), str(windows[p][1])) for p in places}
    metric = choose_metric(sorted({str(s["metric"]) for s in series}))
    chosen = sorted((s for s in series if s["metric"] == metric), key=version_first)
    roles = champion_and_challenger(name)
    drawn = [line_of(s, inside, metric, roles) for s in chosen]
    drawn = [line for line in drawn if line.times]
    if not drawn:
        st.info("No window with labels lies in the chosen time range. Choose a longer one above.")
        return
    headline(chosen, inside, metric)
    direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    st.markdown(
        f"**{words.plain(words.metric(metric).capitalize())} per version** ({direction} is better)"
    )
    figure = charts.lines(drawn, words.metric(metric), height=330, zero=False)
    st.plotly_chart(figure, config=charts.CONFIG, key="quality_lines")
    st.caption(
        "Bands are 95 % intervals. The full line is the champion, dashed ones are others. Each "
        "point is a window of requests; a late label changes the window of its request."
    )
    coverage(chosen, inside, reply)
    table(chosen, inside, metric)


def version_first(series: api.Json) -> tuple[bool, str]:
    """Versions by name, then all of them together."""
    version = series.get("served_entity")
    return version is None, str(version)


def choose_metric(names: list[str]) -> str:
    preferred = next((n for n in PREFERRED if n in names), names[0])
    return frame.choice("Metric", "metric", names, preferred, format_func=words.metric)


def champion_and_challenger(name: str) -> dict[str, str]:
    """Roles by version, from the experiment of the endpoint where there is one."""
    try:
        policy = api.experiment(frame.client(), name).get("policy") or {}
    except api.ApiError:
        return {}
    roles = {"champion": policy.get("champion"), "challenger": policy.get("challenger")}
    return {str(version): role for role, version in roles.items() if version}


def points_of(series: api.Json, inside: set[tuple[str, str]]) -> list[api.Json]:
    """Points of the chosen windows, in the order of time."""
    found = []
    for point in series.get("points") or []:
        ends = point.get("window") or ["", ""]
        if (str(ends[0]), str(ends[1])) in inside:
            found.append(point)
    return sorted(found, key=lambda point: str(point["window"][0]))


def point_value(point: api.Json) -> float | None:
    return words.figure(point.get("value"))


def line_of(
    series: api.Json, inside: set[tuple[str, str]], metric: str, roles: dict[str, str]
) -> charts.Line:
    name = str(series.get("served_entity") or "all versions")
    points = [p for p in points_of(series, inside) if words.moment(p["window"][0])]
    return charts.Line(
        name=name,
        times=[at for p in points if (at := words.moment(p["window"][0]))],
        values=[point_value(p) for p in points],
        colour=charts.colour(name) if series.get("served_entity") else charts.GREY,
        dashed=bool(roles) and roles.get(name) != "champion",
        low=[words.figure(p.get("low")) for p in points],
        high=[words.figure(p.get("high")) for p in points],
        notes=[note(p) for p in points],
    )


def note(point: api.Json) -> str:
    interval = ""
    if words.figure(point.get("low")) is not None:
        interval = f"[{words.amount(point['low'])}, {words.amount(point.get('high'))}], "
    return f"({interval}{words.count(point.get('labelled', point.get('n')))} labels)"


def headline(chosen: list[api.Json], inside: set[tuple[str, str]], metric: str) -> None:
    """The newest window with a value, one figure per version."""
    cells = []
    for series in chosen:
        points = [p for p in points_of(series, inside) if point_value(p) is not None]
        if points:
            cells.append((str(series.get("served_entity") or "all versions"), points[-1]))
    if not cells:
        return
    for column, (name, point) in zip(st.columns(max(len(cells), 3)), cells, strict=False):
        with column:
            st.metric(
                f"{words.plain(name)}, {words.plain(words.metric(metric))}",
                value_words(point, metric),
            )
            st.caption(words.plain(f"{words.window(point['window'])} {note(point)}"))


def value_words(point: api.Json, metric: str) -> str:
    value = point_value(point)
    return words.percent(value, 1) if metric == "accuracy" else words.amount(value)


def coverage(chosen: list[api.Json], inside: set[tuple[str, str]], reply: api.Json) -> None:
    """How complete the numbers are: share of answered rows with a label, and how late they come."""
    drawn, labelled, rows = [], 0.0, 0.0
    for series in [s for s in chosen if s.get("served_entity")] or chosen:
        name = str(series.get("served_entity") or "all versions")
        points = [p for p in points_of(series, inside) if words.figure(p.get("rows"))]
        labelled += sum(words.figure(p.get("labelled")) or 0 for p in points)
        rows += sum(words.figure(p.get("rows")) or 0 for p in points)
        drawn.append(
            charts.Line(
                name=name,
                times=[at for p in points if (at := words.moment(p["window"][0]))],
                values=[(words.figure(p.get("labelled")) or 0) / p["rows"] for p in points],
                colour=charts.colour(name) if series.get("served_entity") else charts.GREY,
                notes=[
                    f"({words.count(p.get('labelled'))} of {words.count(p['rows'])})"
                    for p in points
                ],
            )
        )
    st.markdown("**Label coverage**")
    delay = reply.get("label_delay_hours") or {}
    said = f"{words.percent(labelled / rows) if rows else words.NOTHING} of these rows have a label"
    if words.figure(delay.get("p50")) is not None:
        said += (
            f"; half of the labels come within {words.duration(delay['p50'] * 3600)}, "
            f"95 % within {words.duration((words.figure(delay.get('p95')) or 0) * 3600)}"
        )
    st.caption(words.plain(f"{said}."))
    st.plotly_chart(charts.coverage(drawn), config=charts.CONFIG, key="quality_coverage")


def table(chosen: list[api.Json], inside: set[tuple[str, str]], metric: str) -> None:
    rows = [
        {
            "window": words.window(point["window"]),
            "version": str(series.get("served_entity") or "all versions"),
            words.metric(metric): point_value(point),
            "low": words.figure(point.get("low")),
            "high": words.figure(point.get("high")),
            "labels": words.figure(point.get("labelled")),
            "rows": words.figure(point.get("rows")),
            "why not": str(point.get("reason") or ""),
        }
        for series in chosen
        for point in points_of(series, inside)
    ]
    with st.expander("The same as a table"):
        st.dataframe(rows, hide_index=True, key="quality_table")


main()
