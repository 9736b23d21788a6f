"""Bodies as recorded -> rows: every request format, every shape of an answer."""

import base64
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capture import bodies

ROWS = [{"a": 1, "b": "x"}, {"a": 2.5, "b": None}]


def records(body, names=(), content_type="application/json", encoding="utf-8"):
    text = body if isinstance(body, str) else json.dumps(body)
    return bodies.records(text, encoding, content_type, names)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [2.5, None]]}},
        {"dataframe_records": ROWS},
        {"instances": ROWS},
        {"inputs": {"a": [1, 2.5], "b": ["x", None]}},
        {"instances": [[1, "x"], [2.5, None]]},
        {"inputs": [[1, "x"], [2.5, None]]},
    ],
)
def test_all_formats_of_one_request_give_the_same_rows(body):
    assert records({**body, "client_request_id": "c"}, names=["a", "b"]) == ROWS


def test_a_tensor_without_names_gets_numbered_columns():
    assert records({"inputs": [[1, 2], [3, 4]]}) == [
        {"input_0": 1, "input_1": 2},
        {"input_0": 3, "input_1": 4},
    ]
    assert records({"instances": [1, 2]}) == [{"input": 1}, {"input": 2}]
    assert records({"instances": [[0.5] * 1000]}) == [{}]


def test_csv_and_parquet_give_rows():
    text = "a,b\n1,x\n2.5,\n"
    assert records(text, content_type="text/csv; charset=utf-8") == ROWS
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2.5], "b": ["x", None]}), file)
    encoded = base64.b64encode(file.getvalue()).decode()
    assert records(encoded, content_type="application/x-parquet", encoding="base64") == ROWS


def test_nan_is_read_as_servers_read_it():
    assert records('{"inputs": {"a": [Infinity, 1]}}')[0] == {"a": float("inf")}


def test_a_request_of_another_shape_is_one_row_without_features():
    assert records({"messages": [{"role": "user", "content": "hi"}]}) == [{}]


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[1]",
        '{"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}',
        '{"dataframe_split": {"data": [[1, 2]]}}',
        '{"dataframe_split": 7}',
        '{"dataframe_records": [1]}',
        '{"dataframe_records": null}',
        "[" * 100_000,
    ],
)
def test_a_body_without_rows_is_unreadable(text):
    with pytest.raises(bodies.Unreadable):
        records(text)


def test_broken_csv_and_parquet_and_a_missing_body_are_unreadable():
    for text, content_type, encoding in [
        ("a,b\n1\n", "text/csv", "utf-8"),
        ("AAAA", "application/x-parquet", "base64"),
        ("no base64!", "application/x-parquet", "base64"),
        (None, "application/json", "utf-8"),
    ]:
        with pytest.raises(bodies.Unreadable):
            bodies.records(text, encoding, content_type, [])


@pytest.mark.parametrize(
    ("value", "prediction", "score", "others"),
    [
        (0.25, 0.25, 0.25, None),
        (1, 1.0, None, None),
        (True, 1.0, None, None),
        ("late", "late", None, None),
        (None, None, None, None),
        ([0.25], 0.25, 0.25, None),
        ([0.75, 0.25], 0.0, 0.25, None),
        ([0.25, 0.75], 1.0, 0.75, None),
        ([0.25, 0.5, 0.25], 1.0, 0.5, None),
        ([1.5, 2.5], None, None, {"0": 1.5, "1": 2.5}),
        ({"prediction": 1, "score": 0.75}, 1.0, 0.75, None),
        ({"prediction": "a", "probability": 0.5, "x": 3}, "a", 0.5, {"x": 3}),
        ({"label": "POSITIVE", "score": 0.9}, "POSITIVE", 0.9, None),
        ({"0": 0.5}, 0.5, 0.5, None),
        ({"mean": 1.5, "std": 0.5}, None, None, {"mean": 1.5, "std": 0.5}),
    ],
)
def test_an_answer_is_prediction_score_and_others(value, prediction, score, others):
    assert bodies.answers(json.dumps({"predictions": [value]})) == [
        bodies.Answer(prediction, score, others)
    ]


def test_answers_by_column_and_of_feature_specs_are_rows():
    assert bodies.answers('{"predictions": {"prediction": ["a", "b"], "score": [0.1, 0.2]}}') == [
        bodies.Answer("a", 0.1),
        bodies.Answer("b", 0.2),
    ]
    assert [one.others for one in bodies.answers('{"outputs": [{"a": 1, "b": 2}]}')] == [
        {"a": 1, "b": 2}
    ]
    assert bodies.answers('{"choices": []}') == []
