"""The fast ways against MLflow's own scoring server."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from capture import errors
from serving import wire
from serving.worker import linear, model

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
        proofs = loaded[name].proofs
        assert [proofs[way] for way in ("numpy", "frame", "mlflow")] == ["proven"] * 3


def test_the_arithmetic_of_a_linear_model_is_proven_and_that_of_others_is_not(loaded):
    assert loaded["linear"].proofs["linear"] == "proven"
    assert loaded["proba"].proofs["linear"] == "answers differ at 1 rows"
    why = "the model is not one of scikit-learn's linear ones"
    assert loaded["forest"].proofs["linear"] == why
    assert loaded["mixed"].proofs["linear"].startswith("numpy is not proven")


@pytest.mark.parametrize("classes", [(0, 1), ("no", "yes"), ("a", "b", "c")])
def test_a_linear_classifier_answers_what_scikit_learn_does(classes):
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.svm import LinearSVC

    chance = np.random.default_rng(0)
    rows = np.asfortranarray(chance.normal(size=(300, 5)))
    target = np.array(classes)[(rows[:, 0] * 2).astype(int) % len(classes)]
    for kind in (LogisticRegression, SGDClassifier, LinearSVC):
        fitted = kind().fit(rows, target)
        predict = linear.engine(fitted)
        for count in (1, 2, 64, 300):
            assert predict(rows[:count]).tolist() == fitted.predict(rows[:count]).tolist()


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_linear_regressor_answers_what_scikit_learn_does_in_every_bit(outputs):
    from sklearn.linear_model import LinearRegression, Ridge

    chance = np.random.default_rng(0)
    rows = np.asfortranarray(chance.normal(size=(300, 5)))
    target = rows @ chance.normal(size=(5, outputs))
    for kind in (LinearRegression, Ridge):
        fitted = kind().fit(rows, target if outputs > 1 else target.ravel())
        predict = linear.engine(fitted)
        for count in (1, 2, 64, 300):
            assert predict(rows[:count]).tobytes() == fitted.predict(rows[:count]).tobytes()


def test_a_linear_model_with_a_predict_of_its_own_has_no_arithmetic_of_ours():
    from sklearn.linear_model import LogisticRegression, PoissonRegressor

    class Careful(LogisticRegression):
        def predict(self, X):
            return super().predict(X)[::-1]

    rows = np.arange(8.0).reshape(4, 2)
    assert linear.engine(Careful().fit(rows, [0, 1, 0, 1])) is None
    assert linear.engine(PoissonRegressor().fit(rows, [1, 2, 3, 4])) is None
    wrapped = LogisticRegression().fit(rows, [0, 1, 0, 1])
    assert linear.engine(wrapped) is not None
    wrapped.predict = lambda X: [0] * len(X)
    assert linear.engine(wrapped) is None


def test_a_null_reaches_scikit_learn_itself_which_refuses_it(tmp_path):
    """An optional column may be null, of which arithmetic alone would make a nan."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from sklearn.linear_model import LinearRegression

    mlflow.sklearn.save_model(
        LinearRegression().fit(pd.DataFrame({"x": [0.0, 1.0]}), [0.0, 1.0]),
        tmp_path / "m",
        signature=ModelSignature(
            Schema([ColSpec("double", "x", required=False)]), Schema([ColSpec("double")])
        ),
        pip_requirements=["mlflow"],
        serialization_format="cloudpickle",
    )
    found = model.Model(tmp_path / "m")
    assert found.proofs["linear"] == "proven"

    def asked(value):
        body = json.dumps({"dataframe_records": [{"x": value}]}).encode()
        return found.run([found.read(body, wire.JSON, False)])[0]

    assert asked(0.5).status == 200 and found.counts["linear"] == 1
    refused = asked(None)
    assert refused.status == 400 and b"NaN" in refused.body


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
