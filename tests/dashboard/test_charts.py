"""Figures from data: what a person sees of it."""

import string
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dashboard import charts

START = datetime(2013, 7, 1, tzinfo=UTC)
DAYS = [START + timedelta(days=day) for day in range(5)]


def test_neighbouring_versions_differ_in_colour_and_keep_it() -> None:
    first = [charts.colour(f"v{number}") for number in range(1, len(charts.PALETTE) + 1)]
    assert len(set(first)) == len(charts.PALETTE)
    assert charts.colour("v3") == first[2]
    assert charts.colour("model-3") == charts.colour("v3")


@given(st.text())
def test_every_version_has_a_colour(name: str) -> None:
    assert charts.colour(name) in charts.PALETTE


@given(st.text(string.printable))
def test_no_text_becomes_html_in_a_chart(text: str) -> None:
    shown = charts.label(text)
    assert "<" not in shown
    assert ">" not in shown


def test_a_traffic_bar_is_as_long_as_its_shares() -> None:
    bars = [("before", [("v1", 90.0), ("v2", 10.0)]), ("after", [("v1", 10.0), ("v2", 90.0)])]
    figure = charts.traffic(bars)
    assert [sum(trace.x[row] for trace in figure.data) for row in (0, 1)] == [100, 100]
    assert figure.data[0].text == ("v1  90 %", "v1  10 %")
    assert {trace.marker.color for trace in figure.data} == {
        charts.colour("v1"),
        charts.colour("v2"),
    }


def test_a_challenger_is_dashed() -> None:
    champion = charts.Line("v1", DAYS, [1.0] * 5, "#000000")
    challenger = charts.Line("v2", DAYS, [2.0] * 5, "#111111", dashed=True)
    figure = charts.lines([champion, challenger], "ms")
    assert [trace.line.dash for trace in figure.data] == ["solid", "dash"]
    assert figure.layout.yaxis.title.text == "ms"


def test_a_gap_stays_a_gap_in_line_and_band() -> None:
    line = charts.Line(
        "v1",
        DAYS,
        [1.0, 1.0, None, 1.0, 1.0],
        "#0072B2",
        low=[0.5, 0.5, None, 0.5, 0.5],
        high=[1.5, 1.5, None, 1.5, 1.5],
    )
    figure = charts.lines([line], "log loss")
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert [len(band.x) for band in bands] == [4, 4]
    assert figure.data[-1].y[2] is None


def test_events_are_upright_marks_with_their_text() -> None:
    line = charts.Line("all", DAYS, [1.0, 2.0, 3.0, 2.0, 1.0], "#0072B2")
    marks = [charts.Event(DAYS[1], "configuration <2>"), charts.Event(DAYS[3], "alert")]
    figure = charts.lines([line], "ms", marks)
    assert [shape.x0 for shape in figure.layout.shapes] == [DAYS[1], DAYS[3]]
    assert figure.data[-1].customdata[0][0] == "configuration &lt;2&gt;"


def test_events_that_would_cover_each_other_are_one_mark() -> None:
    line = charts.Line("all", DAYS, [1.0] * 5, "#0072B2")
    marks = [charts.Event(DAYS[1] + timedelta(minutes=i), f"alert {i}") for i in range(9)]
    figure = charts.lines([line], "ms", marks)
    assert len(figure.layout.shapes) == 1
    assert figure.data[-1].customdata[0][0].endswith("alert 5<br>and 3 more")


def test_limits_are_dotted_and_said() -> None:
    line = charts.Line("temp", DAYS, [1.0] * 5, "#0072B2")
    figure = charts.lines([line], "distance", limits=[(1.0, "warning"), (2.0, "critical")])
    assert [shape.line.dash for shape in figure.layout.shapes] == ["dot", "dot"]
    assert [note.text for note in figure.layout.annotations] == ["warning", "critical"]


def test_the_narrowing_band_shows_what_would_be_worth_a_change() -> None:
    line = charts.Line("v2", DAYS, [-0.08] * 5, "#0072B2", low=[-0.2] * 5, high=[0.1] * 5)
    figure = charts.narrowing(line, 0.0, -0.03, [], "log loss")
    assert {note.text for note in figure.layout.annotations} == {"no difference", "worth a change"}


def test_a_stepper_marks_steps_done_and_the_one_it_stands_on() -> None:
    figure = charts.stepper([1, 5, 20, 50, 100], 2, "running")
    assert [note.text for note in figure.layout.annotations] == ["✓", "✓", "●", "", ""]
    assert figure.data[0].text == ("1 %", "5 %", "20 %", "50 %", "100 %")


def test_a_stepper_that_has_not_begun_marks_nothing() -> None:
    figure = charts.stepper([1, 5], -1, "held")
    assert [note.text for note in figure.layout.annotations] == ["", ""]


def test_the_parts_of_a_request_are_one_bar() -> None:
    figure = charts.parts([("gateway", 0.3), ("predict", 5.4)])
    assert [trace.x for trace in figure.data] == [(0.3,), (5.4,)]
    assert figure.data[1].name == "predict 5.4 ms"


def test_coverage_goes_from_0_to_100_percent() -> None:
    figure = charts.coverage([charts.Line("v1", DAYS, [0.0, 0.5, 1.0, 1.0, 1.0], "#0072B2")])
    assert figure.layout.yaxis.range[0] == 0
    assert figure.layout.yaxis.tickformat == ".0%"
