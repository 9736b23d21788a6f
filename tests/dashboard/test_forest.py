"""Differences with their intervals, told by colour and by word."""

import pytest

from dashboard import charts, forest


@pytest.mark.parametrize(
    ("low", "high", "good", "word", "tint"),
    [
        (-0.158, -0.019, -1, "better", charts.GOOD),
        (-0.158, -0.019, 1, "worse", charts.BAD),
        (0.02, 0.04, 1, "better", charts.GOOD),
        (-0.01, 0.04, 1, "no difference shown", charts.GREY),
    ],
)
def test_a_row_says_in_word_and_colour_which_way_it_points(
    low: float, high: float, good: int, word: str, tint: str
) -> None:
    effect = forest.Effect("log loss (goal)", (low + high) / 2, low, high, good)
    figure = forest.draw([effect])
    assert figure.data[0].marker.color == tint
    assert any(note.text.endswith(word) for note in figure.layout.annotations)


def test_each_metric_has_its_own_scale() -> None:
    rows = [
        forest.Effect("accuracy", 0.03, 0.01, 0.05, 1, limit=0.02),
        forest.Effect("error rate", 0.0004, -0.001, 0.002, -1, limit=0.002),
    ]
    figure = forest.draw(rows)
    assert figure.layout.xaxis.range[1] == pytest.approx(0.056)
    assert figure.layout.xaxis2.range[1] == pytest.approx(0.00224)


def test_slices_share_one_scale() -> None:
    rows = [forest.Effect("a", 0.1, 0.0, 0.2, 1), forest.Effect("b", 0.01, 0.0, 0.02, 1)]
    figure = forest.draw(rows, own_scale=False)
    assert figure.layout.xaxis.range == figure.layout.xaxis2.range


def test_names_are_no_html() -> None:
    figure = forest.draw([forest.Effect("<img src=x>", 0.1, 0.0, 0.2, 1)])
    assert not any("<img" in note.text for note in figure.layout.annotations)
