"""The worker's ways against MLflow's own scoring server; all models: benchmarks/serving."""

import numpy as np
import pytest

from tests import benchmarked

NUMBERS = [{f"c{n}": float(value) for n, value in enumerate(row)} for row in np.eye(8)[:3] - 0.3]
MIXED = [
    {"carrier": "UA", "hour": 0.25, "seats": 149, "late": False},
    {"carrier": "AA", "hour": -1.5, "seats": 20, "late": True},
]


@pytest.fixture(scope="module")
def differences():
    """The benchmark, which finds the modules beside it."""
    with pytest.MonkeyPatch.context() as patch:
        return benchmarked.load(patch, "serving", "scoring_differences")


@pytest.mark.filterwarnings("ignore")  # MLflow warns of what a request lacks
@pytest.mark.parametrize(
    ("model", "rows", "way"),
    [("linear", NUMBERS, "linear"), ("mixed", MIXED, "frame"), ("bare", NUMBERS, "mlflow")],
)
def test_no_shape_of_a_request_is_answered_otherwise_than_by_mlflow(
    differences, models, model, rows, way
):
    saved = differences.scoring_models.Saved(model, models / model, rows)
    seen = differences.compare(saved)
    assert seen.differences == []
    assert seen.compared > 200 and seen.ways[way] > 5
