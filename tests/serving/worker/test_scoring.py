import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import errors
from serving.worker import scoring

COLUMNS = (
    scoring.Column("age", "double"),
    scoring.Column("visits", "long"),
    scoring.Column("city", "string", required=False),
)
JSON_SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text()
JSON = st.recursive(
    JSON_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


def refusal(body: bytes) -> str:
    with pytest.raises(errors.BadRequest) as refused:
        scoring.parse(body, ())
    return refused.value.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Body is not valid JSON: it is empty at byte 0."),
        (b'{"inputs": 1', "Body is not valid JSON: unexpected end of data at byte 12."),
        (b"{} {}", "Body is not valid JSON: unexpected content after document at byte 3."),
        (b'{"a": 1,}', "Body is not valid JSON: trailing comma is not allowed at byte 7."),
        (b'{"a": "\x01"}', "Body is not valid JSON: unexpected control character in string at"),
        (b'{"a": "\xff"}', "Body is not valid JSON: not UTF-8 at byte 7."),
        (b'{"a": "\\ud800"}', "Body is not valid JSON: no low surrogate in string at byte 7."),
        (b"\xef\xbb\xbf{}", "Body is not valid JSON: UTF-8 byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "Body is not valid JSON: not UTF-8 at byte 0."),
        (b'{"dataframe_records": [{"x": NaN}]}', "Number out of range at dataframe_records[0].x;"),
        (b'{"inputs": {"x": [1, 1e400]}}', "Number out of range at inputs.x[1]; use null for a"),
        (b'{"inputs": ' + b"9" * 401 + b"}", "Number out of range at inputs;"),
        (b'{"inputs": ' + b"[" * 300, "Nesting over 200 at byte 210."),
        (b"[1]", "Give exactly one of dataframe_split, dataframe_records, instances, inputs; "),
        (b'{"inputs": 1, "instances": 2}', "found: instances, inputs."),
        (b'{"dataframe_records": [1]}', "dataframe_records[0] must be an object; found the numb"),
        (b'{"dataframe_split": []}', "dataframe_split must be an object; found a list."),
        (b'{"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [1]]}}', "data[1] has 1 v"),
        (b'{"dataframe_split": {"columns": ["a", "a"], "data": []}}', "columns names 'a' twice."),
        (b'{"dataframe_split": {"data": [[1]], "index": []}}', "index has 0 entries for 1 row."),
        (b'{"dataframe_split": {"data": [[1]], "rows": 3}}', "dataframe_split.rows is not known;"),
        (b'{"inputs": 1, "params": [1]}', "params must be an object; found a list."),
        (b'{"inputs": 1, "client_request_id": 7}', "client_request_id must be a string; found the"),
        (b'{"inputs": 1, "usage_context": {"a": 1}}', "usage_context must be an object of string"),
        (b'{"inputs": 1, "usage_context": {"a": %d}}' % 2**70, "usage_context must be an object"),
        (
            b'{"dataframe_split": {"columns": ["a", "b"], "data": [1]}}',
            "data[0] must be a list of 2",
        ),
    ],
)
def test_a_bad_body_is_told_what_and_where(body, message):
    assert message in refusal(body)


def test_a_million_keys_are_refused_before_they_are_parsed():
    body = b'{"inputs": {' + b",".join(b'"%d":1' % n for n in range(100_001)) + b"}}"
    assert refusal(body).startswith("Over 100000 keys in one object at byte")


def test_many_small_objects_are_no_bomb():
    body = json.dumps({"dataframe_records": [{"a": 1, "b": 2}] * 60_000}).encode()
    assert len(scoring.parse(body, ()).data["dataframe_records"]) == 60_000


@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_but_a_bad_request(body):
    try:
        scoring.parse(body, ("messages",))
    except errors.BadRequest as refused:
        assert refused.message


def test_side_fields_are_taken_out():
    body = (
        b'{"inputs": [1], "client_request_id": "r", "usage_context": {"team": "a"},'
        b' "databricks_options": {"return_trace": true}}'
    )
    found = scoring.parse(body, ())
    assert found.data == {"inputs": [1]}
    assert found.sides == scoring.Sides("r", b'{"team":"a"}')


@pytest.mark.parametrize(
    "side",
    [
        {"client_request_id": "x" * 1025},
        {"usage_context": {str(n): "" for n in range(65)}},
        {"usage_context": {"a": "x" * 257}},
    ],
)
def test_side_fields_over_their_size_are_refused(side):
    refusal(json.dumps({"inputs": 1, **side}).encode())


def test_a_body_of_a_chat_is_taken_whole_where_the_model_takes_it():
    body = b'{"messages": [{"role": "user", "content": "hi"}], "client_request_id": "r"}'
    found = scoring.parse(body, ("messages", "prompt"))
    assert found.llm
    assert found.data == {"messages": [{"role": "user", "content": "hi"}]}
    assert "found: none of them" in refusal(body)


def test_integers_over_64_bits_keep_their_digits():
    assert scoring.parse(b'{"inputs": 18446744073709551616}', ()).data["inputs"] == 2**64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dataframe_records": [{"visits": 1}]}, "Column 'age' is missing."),
        (
            {"dataframe_records": [{"age": 1, "visits": 1}] * 3 + [{"age": "plenty", "visits": 1}]},
            "Column 'age' expects double; row 3 holds the string \"plenty\".",
        ),
        (
            {"dataframe_split": {"columns": ["age", "visits"], "data": [[1, None]]}},
            "Column 'visits' expects long; row 0 is null.",
        ),
        ({"inputs": {"age": [1], "visits": ["x"]}}, "Column 'visits' expects long; row 0 holds"),
        ({"instances": [{"age": {}, "visits": 1}]}, "Column 'age' expects double; row 0 holds an"),
    ],
)
def test_the_first_column_that_does_not_fit_is_named(data, message):
    assert scoring.explain(data, COLUMNS).startswith(message)


def test_nothing_is_explained_where_nothing_is_wrong():
    assert (
        scoring.explain({"inputs": {"age": [1, "2.5", None], "visits": [3, 4, 5]}}, COLUMNS) is None
    )
    assert scoring.explain({"inputs": [[1]]}, COLUMNS) is None


@pytest.mark.parametrize(
    ("prediction", "told"),
    [
        (np.array([1.5, np.nan, np.inf]), [1.5, None, None]),
        (np.array([0.1], dtype=np.float32), [0.10000000149011612]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(["a", None], dtype=object), ["a", None]),
        (pd.DataFrame({"p": [0.5], "n": [1]}), [{"p": 0.5, "n": 1}]),
        (
            pd.DataFrame({"t": pd.to_datetime(["2020-01-01", None])}),
            [{"t": "2020-01-01T00:00:00"}, {"t": None}],
        ),
        (pd.Series([1, 2], name="y"), [{"y": 1}, {"y": 2}]),
        ([np.int64(3), np.float32(0.5), np.bool_(True), np.str_("s")], [3, 0.5, True, "s"]),
        ([(1, 2)], [[1, 2]]),
        ([b"ab", pd.NA, np.datetime64("NaT")], ["YWI=\n", None, None]),
        ([2**70, float("nan")], [2**70, None]),
        ({"a": np.arange(2)}, {"a": [0, 1]}),
        ("text", "text"),
    ],
)
def test_an_answer_becomes_plain_json(prediction, told):
    body = scoring.encode(scoring.plain(prediction))
    assert json.loads(body) == {"predictions": told}


def test_an_answer_that_json_cannot_hold_is_named_by_its_type():
    with pytest.raises(scoring.CannotEncode, match="object"):
        scoring.encode([object()])


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_a_joint_answer_is_cut_as_it_was_joined(counts):
    answer = list(range(sum(counts)))
    parts = scoring.split(answer, counts)
    assert [len(part) for part in parts] == counts
    assert [value for part in parts for value in part] == answer
    assert scoring.split(answer[:-1], counts) is None
    assert scoring.split({"a": 1}, counts) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"instances": 3}, "instances must be a list; found the number 3."),
        ({"instances": [{"age": 1}, 2]}, "instances[1] must be an object; found the number 2."),
        ({"instances": [[1], {}]}, "instances[1] must be like those before; found an object."),
        (
            {"inputs": {"age": [1, 2], "visits": [1]}},
            "inputs.visits has 1 value, while inputs.age has 2 values.",
        ),
    ],
)
def test_forms_that_mlflow_refuses_are_told_by_what_is_odd_in_them(data, message):
    assert scoring.explain(data, COLUMNS) == message
