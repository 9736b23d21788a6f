"""Drift drawn: the map, and the distributions of a column."""

import pytest

from dashboard import shapes


def test_the_map_colours_effects_and_leaves_what_has_no_answer_open() -> None:
    figure = shapes.heat_map(
        ["temp", "<b>x</b>"],
        ["1 Jul", "8 Jul"],
        [[0.4, 7.9], [None, 1.2]],
        [["fine", "drifted"], ["no rows", "drifted"]],
    )
    cells = figure.data[0]
    assert list(cells.z[0]) == [0.4, shapes.HEAT_TOP]
    assert list(cells.z[1]) == [None, 1.2]
    assert [list(row) for row in cells.text] == [["", "7.9"], ["·", "1.2"]]
    assert cells.y[1] == "&lt;b&gt;x&lt;/b&gt;"


def test_every_cell_of_the_map_can_be_selected() -> None:
    figure = shapes.heat_map(["a", "b"], ["w0", "w1", "w2"], [[0.0] * 3] * 2, [["-"] * 3] * 2)
    points = figure.data[1]
    assert [tuple(point) for point in points.customdata] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("b", 1),
        ("b", 2),
    ]
    assert points.marker.opacity == 0


def test_a_large_map_has_colours_only_and_rows_to_click() -> None:
    names = [f"c{i}" for i in range(100)]
    figure = shapes.heat_map(
        names, [f"w{i}" for i in range(60)], [[2.0] * 60] * 100, [["<i>farthest</i>"]] * 100
    )
    cells, rows = figure.data
    assert cells.text is None
    assert [tuple(point) for point in rows.customdata] == [(name, None) for name in names]
    assert rows.hovertext[0] == "&lt;i&gt;farthest&lt;/i&gt;"
    assert (rows.base, rows.x[0] + rows.base) == (-0.5, 59.5)  # the whole row can be clicked


def test_numbers_are_drawn_as_steps_of_shares() -> None:
    profile = {
        "rows": 10,
        "nulls": 2,
        "histogram": [
            {"low": 0.0, "high": 1.0, "count": 6},
            {"low": 1.0, "high": 2.0, "count": 2},
        ],
    }
    shape = shapes.shape_of(profile)
    assert shape is not None
    assert shape.shares == [0.75, 0.25]
    figure = shapes.distribution({"current": shape}, "temp")
    assert figure.data[0].x == (0.0, 1.0, 2.0)
    assert figure.data[0].y == (0.75, 0.25, 0.25)
    assert figure.layout.yaxis.title.text == "share of rows"


def test_bins_of_different_width_are_drawn_as_density() -> None:
    wide = shapes.Shape([0.0, 1.0, 11.0], [], [0.5, 0.5])
    figure = shapes.distribution({"current": wide}, "temp")
    assert figure.data[0].y == pytest.approx((0.5, 0.05, 0.05))
    assert figure.layout.yaxis.title.text == "share per unit"


def test_categories_are_bars_side_by_side() -> None:
    profile = {"histogram": [{"value": "UA", "count": 3}, {"value": None, "count": 1}]}
    shape = shapes.shape_of(profile)
    assert shape is not None
    figure = shapes.distribution({"baseline": shape, "current": shape}, "carrier")
    assert [trace.type for trace in figure.data] == ["bar", "bar"]
    assert figure.data[0].x == ("UA", shapes.OTHERS)


@pytest.mark.parametrize("profile", [None, {}, {"histogram": []}, {"histogram": [{"count": 0}]}])
def test_nothing_to_draw_is_nothing(profile: dict[str, object] | None) -> None:
    assert shapes.shape_of(profile) is None
