import io
import json

import pandas as pd
import pytest

from capture import errors, publisher
from serving import wire
from serving.features import FeatureEngineeringClient, FeatureLookup, online
from serving.worker import model

# As the worker does: the numpy way leaves names out by intention; pandas looks at odd values.
pytestmark = [
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
NAMES = [f"c{number}" for number in range(8)]
ROW = {name: float(place) for place, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def linear(models):
    return model.Model(models / "linear")


@pytest.fixture(scope="module")
def wild(models):
    return model.Model(models / "wild", batch=True)


def read(one, body, kind=wire.JSON, alone=False):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return one.read(text, kind, alone)


def refusal(one, body, kind=wire.JSON):
    """The message, whether it was refused before or at the call."""
    try:
        outcome = one.run([read(one, body, kind)])[0]
    except errors.BadRequest as refused:
        return refused.message
    assert outcome.status == 400, outcome
    assert outcome.error_source == "request"
    return json.loads(outcome.body)["message"]


def records(*rows):
    return {"dataframe_records": list(rows)}


def answers(outcomes):
    return [json.loads(outcome.body) for outcome in outcomes]


def test_an_answer_over_its_limit_is_refused_and_its_neighbour_is_not(models):
    bounded = model.Model(models / "linear", max_answer_bytes=40)
    batch = [read(bounded, records(*[ROW] * count)) for count in (1, 30)]
    small, large = bounded.run(batch)
    assert small.status == 200
    assert (large.status, large.error_source) == (500, "model")
    assert "40 are allowed" in json.loads(large.body)["message"]


def test_requests_that_share_a_call_get_their_own_rows(linear):
    batch = [read(linear, records(*[ROW] * count)) for count in (1, 3, 2)]
    outcomes = linear.run(batch)
    assert [outcome.rows for outcome in outcomes] == [1, 3, 2]
    assert [len(answer["predictions"]) for answer in answers(outcomes)] == [1, 3, 2]


def test_one_bad_row_among_63_good_fails_alone(wild):
    bodies = [records({"c0": float(number), "c1": 0.0}) for number in range(63)]
    bodies.insert(20, records({"c0": 0.0, "c1": 1.0}))
    outcomes = wild.run([read(wild, body) for body in bodies])
    assert [outcome.status for outcome in outcomes].count(200) == 63
    bad = outcomes.pop(20)
    assert json.loads(bad.body)["message"] == "The model raised ValueError: c1 is one."
    assert bad.error_source == "model"
    assert [answer["predictions"] for answer in answers(outcomes)] == [
        [2.0 * number] for number in range(63)
    ]


def test_a_model_that_answers_another_number_of_rows_is_asked_one_by_one(wild):
    batch = [read(wild, records({"c0": 1.0, "c1": value})) for value in (0.0, 6.0, 0.0)]
    assert [answer["predictions"] for answer in answers(wild.run(batch))] == [[2.0], [], [2.0]]


def test_a_model_that_exits_is_told_as_one_that_raises(wild):
    outcome = wild.run([read(wild, records({"c0": 1.0, "c1": 5.0}))])[0]
    assert json.loads(outcome.body)["message"] == "The model raised SystemExit: no more."


def test_an_answer_that_cannot_be_encoded_is_the_models_fault(wild):
    outcome = wild.run([read(wild, records({"c0": 1.0, "c1": 4.0}))])[0]
    assert (outcome.status, outcome.error_source) == (500, "model")
    assert json.loads(outcome.body)["message"] == (
        "The model's answer cannot be encoded: builtins.object."
    )


def test_what_the_model_raises_on_mlflows_own_way_is_its_fault_too(wild):
    body = {"inputs": {"c0": [1.0], "c1": [1.0]}}
    outcome = wild.run([read(wild, body)])[0]
    assert (outcome.status, outcome.error_source) == (400, "model")
    assert json.loads(outcome.body)["message"] == "The model raised ValueError: c1 is one."


def test_a_column_that_is_missing_or_wrong_is_named(linear):
    rest = {name: ROW[name] for name in NAMES[1:]}
    assert refusal(linear, records(rest)) == "Column 'c0' is missing."
    assert refusal(linear, records(ROW, {**ROW, "c3": "plenty"})) == (
        "Column 'c3' expects double; row 1 holds the string \"plenty\"."
    )
    assert refusal(linear, {"inputs": {**{name: [1.0] for name in NAMES}, "c2": ["x"]}}) == (
        "Column 'c2' expects double; row 0 holds the string \"x\"."
    )


def test_other_unfit_requests_are_refused_without_a_stack_or_the_data(linear):
    message = refusal(linear, {"inputs": [[1, 2], [3]]})
    assert message.startswith("The request does not fit the model's signature: ")
    assert "Traceback" not in message


def test_all_forms_are_answered(linear):
    split = {"columns": NAMES[::-1], "data": [[ROW[name] for name in NAMES[::-1]]]}
    csv = ",".join(NAMES) + "\n" + ",".join(str(ROW[name]) for name in NAMES) + "\n"
    parquet = io.BytesIO()
    pd.DataFrame([ROW]).to_parquet(parquet)
    requests = [
        read(linear, records(ROW)),
        read(linear, {"dataframe_split": split}),
        read(linear, {"instances": [ROW]}),
        read(linear, {"inputs": {name: [value] for name, value in ROW.items()}}),
        read(linear, csv.encode(), wire.CSV),
        read(linear, parquet.getvalue(), wire.PARQUET),
    ]
    found = [json.loads(linear.run([one])[0].body) for one in requests]
    assert found == [found[0]] * 6


def test_bad_csv_and_parquet_say_what_is_wrong(linear):
    header = ",".join(NAMES)
    assert refusal(linear, f"{header}\n{'1,' * 7}plenty\n".encode(), wire.CSV) == (
        "Body is not valid CSV: Column 'c7' expects double; row 0 holds the string \"plenty\"."
    )
    assert refusal(linear, b"\xff", wire.CSV) == "Body is not UTF-8 at byte 0."
    assert "is missing" in refusal(linear, b"c0\n1\n", wire.CSV)
    assert refusal(linear, b"nonsense", wire.PARQUET).startswith("Body is not a valid Parquet fil")


def test_a_chat_body_is_no_format_for_a_model_with_columns(linear):
    assert "found: none of them" in refusal(linear, {"messages": []})


@pytest.fixture
def flights(settings, tmp_path):
    """A model whose seats come from a feature table, and its look-ups."""
    import mlflow
    from sklearn.linear_model import LinearRegression

    client = FeatureEngineeringClient(settings)
    planes = pd.DataFrame({"tailnum": ["N1", "N2"], "seats": [100.0, 200.0]})
    client.create_table(name="main.f.planes", primary_keys=["tailnum"], df=planes)
    publisher.publish(settings, "main.f.planes")
    rows = pd.DataFrame({"distance": [1.0, 2.0, 3.0], "seats": [100.0, 200.0, 150.0]})
    mlflow.sklearn.save_model(
        LinearRegression().fit(rows, rows.seats + rows.distance),
        tmp_path / "model",
        signature=mlflow.models.infer_signature(rows, [1.0]),
        pip_requirements=["mlflow"],
        serialization_format="cloudpickle",
    )
    lookup = FeatureLookup(
        table_name="main.f.planes", lookup_key="tailnum", feature_names=["seats"]
    )
    sent = pd.DataFrame({"tailnum": ["N1"], "distance": [1.0], "late": [1]})
    training = client.create_training_set(df=sent, feature_lookups=[lookup], label="late")
    from serving.features import spec

    features = online.Lookup(spec.written(training.spec), settings.snapshots_dir)
    return model.Model(tmp_path / "model", features)


def test_looked_up_columns_join_those_that_were_sent(flights):
    assert flights.proofs["frame"] == "proven"
    batch = [
        read(flights, records({"distance": 1, "tailnum": "N2", "event_time": "2013-07-01"})),
        read(flights, records({"distance": 2, "tailnum": "N1"}, {"distance": 3, "tailnum": "N2"})),
    ]
    outcomes = flights.run(batch)
    assert [answer["predictions"] for answer in answers(outcomes)] == [
        pytest.approx([201]),
        pytest.approx([102, 203]),
    ]
    assert [json.loads(outcome.looked_up) for outcome in outcomes] == [
        {"seats": [200.0]},
        {"seats": [100.0, 200.0]},
    ]


def test_a_sent_column_overrides_its_look_up_and_calls_are_not_mixed(flights):
    override = read(flights, records({"distance": 1, "tailnum": "N2", "seats": 50}))
    usual = read(flights, records({"distance": 1, "tailnum": "N2"}))
    assert override.shares != usual.shares
    outcome = flights.run([override])[0]
    assert json.loads(outcome.body)["predictions"] == pytest.approx([51])
    assert outcome.looked_up is None


def test_a_request_without_its_lookup_key_is_told_so(flights):
    assert refusal(flights, records({"distance": 1})).startswith("Column 'tailnum' is missing;")
    split = {"columns": ["tailnum"], "data": [["N1"]]}
    assert refusal(flights, {"dataframe_split": split}) == "Column 'distance' is missing."


def test_unusual_forms_are_looked_up_as_well(flights):
    outcome = flights.run([read(flights, b"distance,tailnum\n1,N2\n", wire.CSV)])[0]
    assert json.loads(outcome.body)["predictions"] == pytest.approx([201])
    assert json.loads(outcome.looked_up) == {"seats": [200.0]}


def test_a_table_without_snapshot_is_a_503_that_names_it(flights, settings):
    (settings.snapshots_dir / "main.f.planes" / "current.mdb").unlink()
    outcome = flights.run([read(flights, records({"distance": 1, "tailnum": "N2"}))])[0]
    assert (outcome.status, outcome.error_source) == (503, "server")
    assert "main.f.planes" in json.loads(outcome.body)["message"]
