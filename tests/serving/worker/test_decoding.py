import json

from hypothesis import given
from hypothesis import strategies as st

from serving.worker import decoding, scoring

COLUMNS = [
    scoring.Column("x", "double"),
    scoring.Column("n", "long"),
    scoring.Column("s", "string"),
    scoring.Column("b", "boolean"),
]
ROW = st.fixed_dictionaries(
    {
        "x": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
        "n": st.integers(-(2**63), 2**63 - 1),
        "s": st.none() | st.text(),
        "b": st.booleans(),
    }
)


def decoder(fill=False, columns=COLUMNS):
    return decoding.Decoder(columns, fill)


def as_split(rows, names):
    data = [[row[name] for name in names] for row in rows]
    return json.dumps({"dataframe_split": {"columns": list(names), "data": data}}).encode()


@given(rows=st.lists(ROW, min_size=1, max_size=4), order=st.permutations(["x", "n", "s", "b"]))
def test_records_and_split_in_any_order_give_the_same_rows(rows, order):
    expected = [(row["x"], row["n"], row["s"], row["b"]) for row in rows]
    body = json.dumps({"dataframe_records": rows}).encode()
    assert decoder().decode(body).rows == expected
    assert decoder().decode(as_split(rows, order)).rows == expected


def test_columns_that_nobody_declared_are_left_out():
    row = {"x": 1, "n": 2, "s": "a", "b": True, "event_time": "2013-07-01", "more": [1, {}]}
    body = json.dumps({"dataframe_records": [row]}).encode()
    assert decoder().decode(body).rows == [(1.0, 2, "a", True)]
    assert decoder().decode(as_split([row], row)).rows == [(1.0, 2, "a", True)]


def test_side_fields_come_along():
    body = (
        b'{"client_request_id": "r", "usage_context": {"a": "b"},'
        b' "dataframe_records": [{"x": 1, "n": 2, "s": "a", "b": true}]}'
    )
    assert decoder().decode(body).sides == scoring.Sides("r", b'{"a":"b"}')


def refused(body):
    return decoder().decode(body) is None


def test_whatever_is_unusual_is_left_to_mlflow():
    good = {"x": 1, "n": 2, "s": "a", "b": True}
    for wrong in ({"n": None}, {"n": 2.5}, {"n": True}, {"x": "1"}, {"b": 1}, {"s": 3}):
        assert refused(json.dumps({"dataframe_records": [good | wrong]}).encode())
    for more in ({"params": {}}, {"inputs": 1}, {"dataframe_split": {"columns": [], "data": []}}):
        assert refused(json.dumps({"dataframe_records": [good], **more}).encode())
    assert refused(json.dumps({"dataframe_records": []}).encode())
    assert refused(json.dumps({"instances": [good]}).encode())
    assert refused(as_split([good], ["x", "n", "s"]))
    assert refused(as_split([good], ["x", "n", "s", "b", "b"]))
    split = {"columns": list(good), "data": [list(good.values())], "index": [7]}
    assert refused(json.dumps({"dataframe_split": split}).encode())
    assert refused(b'{"dataframe_records": [{"x": NaN, "n": 1, "s": "", "b": true}]}')
    assert refused(b'{"k": "\xff", "dataframe_records": [{"x": 1, "n": 1, "s": "", "b": true}]}')
    assert refused(b"[" * 5000)


def test_an_index_that_counts_from_zero_says_nothing():
    split = {"columns": ["x", "n", "s", "b"], "data": [[1, 2, "a", True]] * 2, "index": [0, 1]}
    assert len(decoder().decode(json.dumps({"dataframe_split": split}).encode()).rows) == 2


def test_with_look_ups_optional_columns_may_be_absent():
    columns = [scoring.Column("x", "double"), scoring.Column("seats", "double", False)]
    body = json.dumps({"dataframe_records": [{"x": 1}]}).encode()
    assert decoder(False, columns).decode(body) is None
    assert decoder(True, columns).decode(body).rows == [(1.0, decoding.UNSET)]
    assert decoder(True, columns).decode(as_split([{"x": 1}], ["x"])).rows == [
        (1.0, decoding.UNSET)
    ]


@given(body=st.binary(max_size=80))
def test_no_bytes_raise(body):
    decoder().decode(body)
