"""The fast ways against MLflow's own scoring server."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from capture import errors
from serving import wire
from serving.worker import model

# As the worker does: the numpy way leaves names out by intention; pandas looks at odd values.
pytestmark = [
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
NAMES = [f"c{number}" for number in range(8)]


@pytest.fixture(scope="module")
def loaded(models):
    return {
        name: model.Model(models / name)
        for name in ("linear", "proba", "forest", "mixed", "wild", "bare")
    }


def test_scikit_learn_on_doubles_is_proven_on_both_ways(loaded):
    for name in ("linear", "proba", "forest"):
        assert loaded[name].proofs == {"numpy": "proven", "frame": "proven", "mlflow": "proven"}


def test_mixed_columns_are_proven_as_a_frame(loaded):
    assert loaded["mixed"].proofs["numpy"] == "not all columns are double"
    assert loaded["mixed"].proofs["frame"] == "proven"


def test_a_python_model_is_proven_as_a_frame_and_not_joined(loaded):
    assert loaded["wild"].proofs["frame"] == "proven"
    assert not loaded["wild"].batches


def test_a_model_without_signature_has_no_fast_way_and_says_so(loaded):
    assert loaded["bare"].proofs["frame"] == "the model has no signature"


def test_scikit_learn_shares_calls(loaded):
    assert loaded["linear"].batches


def test_a_way_whose_answers_differ_is_not_taken(tmp_path):
    """A model that looks at how its frame lies in memory, which no copy of values can promise."""
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    code = tmp_path / "restless.py"
    code.write_text(
        "import itertools\nimport mlflow\n\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    calls = itertools.count()\n\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return [next(self.calls)] * len(model_input)\n\n"
        "mlflow.models.set_model(Model())\n"
    )
    mlflow.pyfunc.save_model(
        tmp_path / "restless",
        python_model=str(code),
        signature=infer_signature(pd.DataFrame({"x": [1.0]}), [1]),
        pip_requirements=["mlflow"],
    )
    found = model.Model(tmp_path / "restless")
    assert found.proofs["frame"] == "answers differ at 1 rows"
    ready = found.read(b'{"dataframe_records": [{"x": 1}]}', wire.JSON, False)
    assert found.run([ready])[0].status == 200


def by_mlflow(one: model.Model, body: bytes) -> object:
    """Status and answer of MLflow's scoring server for this body."""
    try:
        found = scoring_server.invocations(
            body, "application/json", one._pyfunc, one._pyfunc.metadata.get_input_schema()
        )
    except MlflowException:
        return "refused"
    return plain(json.loads(found.response))


def by_us(one: model.Model, body: bytes) -> object:
    try:
        outcome = one.run([one.read(body, wire.JSON, False)])[0]
    except errors.BadRequest:
        return "refused"
    return plain(json.loads(outcome.body)) if outcome.status == 200 else "refused"


def plain(value: object) -> object:
    """NaN and infinities as null: the one difference that is promised."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


numbers = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)
odd = st.none() | st.booleans() | st.text(max_size=3) | st.just([1]) | st.just("2.5")


def rows_of(names, values):
    return st.lists(st.fixed_dictionaries(dict.fromkeys(names, values)), min_size=1, max_size=3)


@st.composite
def bodies(draw, names, values):
    """A request of any form: usual, permuted, with missing and extra columns, odd values."""
    rows = draw(rows_of(names, values))
    if draw(st.integers(0, 3)) == 0:
        rows[0][draw(st.sampled_from(names))] = draw(odd)
    if draw(st.integers(0, 4)) == 0:
        rows[-1].pop(draw(st.sampled_from(names)))
    if draw(st.integers(0, 4)) == 0:
        rows[0]["extra"] = draw(odd)
    form = draw(st.sampled_from(["records", "split", "instances", "inputs"]))
    if form == "records":
        return {"dataframe_records": rows}
    if form == "instances":
        return {"instances": rows}
    columns = draw(st.permutations(list(rows[0])))
    if form == "inputs":
        return {"inputs": {name: [row.get(name) for row in rows] for name in columns}}
    data = [[row.get(name) for name in columns] for row in rows]
    split = {"columns": columns, "data": data}
    if draw(st.booleans()):
        split["index"] = list(range(len(rows)))
    return {"dataframe_split": split}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(NAMES, numbers))
@pytest.mark.parametrize("name", ["linear", "proba", "forest"])
def test_every_form_is_answered_as_mlflow_answers_it(loaded, name, body):
    text = json.dumps(body).encode()
    assert by_us(loaded[name], text) == by_mlflow(loaded[name], text)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "carrier": st.sampled_from(["UA", "AA", "XX"]) | odd,
                "hour": numbers | odd,
                "seats": st.integers(-5, 400) | numbers,
                "late": st.booleans() | odd,
            }
        ),
        min_size=1,
        max_size=3,
    )
)
def test_mixed_types_are_answered_as_mlflow_answers_them(loaded, rows):
    text = json.dumps({"dataframe_records": rows}).encode()
    assert by_us(loaded["mixed"], text) == by_mlflow(loaded["mixed"], text)
