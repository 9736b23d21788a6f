"""How differently two groups of rows are judged, from their confusion counts. Pure.

Per class, one against all others, protected minus unprotected. Source: databricks-monitoring.md,
section 5.
"""

from collections.abc import Mapping

from monitors import quality

Rates = Mapping[str, float | None]  # class -> difference of two shares, -1..1
NAMES = ("predictive_parity", "predictive_equality", "equal_opportunity", "statistical_parity")


def compare(
    protected: quality.QualityCounts, unprotected: quality.QualityCounts
) -> dict[str, Rates]:
    """The four rates over labelled rows; a class has None where a group has no row to tell it by.

    Nothing where a group has no labels, or too many classes to count each pair."""
    sides = (protected, unprotected)
    if any(not side.confusion or side.right_rest or side.wrong_rest for side in sides):
        return {}
    classes = sorted({*quality.classes(protected), *quality.classes(unprotected)})
    shares = [{name: _shares(side, name) for name in classes} for side in sides]
    return {
        rate: {name: _difference(shares[0][name][at], shares[1][name][at]) for name in classes}
        for at, rate in enumerate(NAMES)
    }


def _shares(counts: quality.QualityCounts, name: str) -> tuple[float | None, ...]:
    """In the order of NAMES: precision, false positive rate, recall, share of the predictions."""
    pairs = counts.confusion.items()
    rows = sum(n for _, n in pairs)
    predicted = sum(n for (prediction, _), n in pairs if prediction == name)
    labelled = sum(n for (_, label), n in pairs if label == name)
    hits = counts.confusion.get((name, name), 0)
    return (
        _share(hits, predicted),
        _share(predicted - hits, rows - labelled),
        _share(hits, labelled),
        _share(predicted, rows),
    )


def _share(part: int, of: int) -> float | None:
    return part / of if of else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
