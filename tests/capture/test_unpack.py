"""From payload commits to typed rows: each commit once, types fixed, nothing lost."""

import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capture import bodies, catalog, columns, database, names, rows, unpack
from capture.settings import Settings

TABLE = "main.shop.s_payload"
START = datetime(2024, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory) -> Path:
    """A state database to copy: migrating one takes longer than most tests here."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("migrated"))
    database.migrate(settings)
    return settings.data_dir / "inferlake.db"


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    shutil.copy(migrated, tmp_path)
    settings = Settings(data_dir=tmp_path, unpack_chunk_rows=50)
    return settings


def payload(place: int, request: Any, response: Any = None, **columns: Any) -> dict[str, Any]:
    """A row of the payload table; `place` makes its id and its second."""
    at = START.timestamp() + place
    row = dict.fromkeys(rows.PAYLOAD_SCHEMA.names) | {
        "request_date": datetime.fromtimestamp(at, UTC).date(),
        "databricks_request_id": str(names.uuid7(int(at * 1000), place)),
        "request_time": datetime.fromtimestamp(at, UTC),
        "status_code": 200,
        "endpoint_id": "e",
        "served_entity_name": "v1",
        "shadow": False,
        "request_encoding": "utf-8",
        "content_type": "application/json",
    }
    row["request"] = request if isinstance(request, str) else json.dumps(request)
    row["response"] = response if isinstance(response, str) else json.dumps(response)
    return row | columns


def one(place: int, features: dict[str, Any], prediction: Any = 0.5, **columns: Any):
    body = {"dataframe_records": [features]}
    return payload(place, body, {"predictions": [prediction]}, **columns)


def path_of(settings: Settings, full_name: str) -> str:
    return names.table_path(settings.tables_root, names.table_name(full_name))


def commit(settings: Settings, *payload_rows: dict[str, Any], table: str = TABLE) -> None:
    deltalake.write_deltalake(
        path_of(settings, table),
        pa.Table.from_pylist(list(payload_rows), schema=rows.PAYLOAD_SCHEMA),
        mode="append",
        partition_by=["request_date"],
    )


def unpacked(settings: Settings, table: str = "main.shop.s_unpacked") -> pl.DataFrame:
    frame = pl.read_delta(path_of(settings, table))
    return frame.sort("request_time", "databricks_request_id", "row_index")


def test_a_request_of_several_rows_becomes_as_many_typed_rows(settings):
    body = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [None, "y"]]}}
    commit(
        settings,
        payload(0, body, {"predictions": [0.25, 0.75]}, client_request_id="c", route_share=0.1),
    )
    unpack.follow(settings, TABLE)
    got = unpacked(settings)
    assert got.select("row_index", "a", "b", "prediction", "score").rows() == [
        (0, 1.0, "x", 0.25, 0.25),
        (1, None, "y", 0.75, 0.75),
    ]
    assert got["client_request_id"].to_list() == ["c", "c"]
    assert got["request_date"].to_list() == [date(2024, 3, 1)] * 2
    assert got["unpack_errors"].to_list() == [None, None]
    assert got.columns[: len(unpack.FIXED)] == [n for n in unpack.FIXED if n in got.columns]


def test_each_commit_is_taken_in_once_however_often_one_asks(settings):
    for place in range(3):
        commit(settings, one(place, {"a": place}))
        unpack.follow(settings, TABLE)
        unpack.follow(settings, TABLE)
    assert unpacked(settings)["a"].to_list() == [0, 1, 2]


def test_a_new_process_goes_on_where_the_last_one_ended(settings):
    commit(settings, one(0, {"a": 0}))
    unpack.follow(settings, TABLE)
    commit(settings, one(1, {"a": 1}))
    unpack.Unpacker(settings, TABLE).step()
    unpack.Unpacker(settings, TABLE).step()
    assert unpacked(settings)["a"].to_list() == [0, 1]


def test_a_long_backlog_is_taken_in_with_few_commits(settings):
    for place in range(12):
        commit(settings, *(one(place * 10 + i, {"a": place * 10 + i}) for i in range(10)))
    unpack.follow(settings, TABLE)
    assert unpacked(settings)["a"].to_list() == list(range(120))
    created = 1
    table = deltalake.DeltaTable(path_of(settings, "main.shop.s_unpacked"))
    assert table.version() < created + 3


def test_a_failed_request_is_a_row_with_what_could_be_read(settings):
    refused = {"status_code": 400, "response": '{"message": "no"}'}
    commit(
        settings,
        one(0, {"a": 1}),
        one(1, {"a": 2, "junk": 3}) | refused | {"error_source": "model"},
        payload(2, "{not json") | refused | {"error_source": "request"},
    )
    unpack.follow(settings, TABLE)
    got = unpacked(settings)
    assert "junk" not in got.columns
    assert got.select("row_index", "status_code", "error_source", "a", "prediction").rows() == [
        (0, 200, None, 1.0, 0.5),
        (0, 400, "model", 2.0, None),
        (0, 400, "request", None, None),
    ]
    assert got["unpack_errors"].to_list() == [None, None, ["the body is no JSON"]]


def test_a_request_over_the_size_limit_still_gives_its_answers(settings):
    commit(settings, payload(0, {}, {"predictions": [0.1, 0.2]}) | {"request": None})
    unpack.follow(settings, TABLE)
    got = unpacked(settings)
    assert got["prediction"].to_list() == [0.1, 0.2]
    assert got["unpack_errors"].to_list() == [["the request was not recorded"], None]


def test_looked_up_features_stand_beside_those_of_the_request(settings):
    body = {"inputs": {"tail": ["N1", "N2"]}}
    looked_up = json.dumps({"seats": [100, None], "tail": ["x", "y"]})
    commit(settings, payload(0, body, {"predictions": [1, 0]}, looked_up=looked_up))
    unpack.follow(settings, TABLE)
    got = unpacked(settings)
    assert got.select("tail", "seats", "prediction", "score").rows() == [
        ("N1", 100.0, 1.0, None),
        ("N2", None, 0.0, None),
    ]


def test_declared_types_hold_from_the_first_row_on(settings):
    with database.transaction(database.open_engine(settings)) as connection:
        declared = {"n": "int64", "x": "double", "code": "string", "event_time": "string"}
        catalog.record(connection, TABLE, "e", "e", declared, {"seats": "double"}, 0)
    features = {"code": "2024-03-01", "event_time": "2013-07-01T10:00:00Z", "n": 7.0, "extra": True}
    commit(settings, one(0, features))
    unpack.follow(settings, TABLE)
    schema = unpacked(settings).schema
    assert {name: schema[name] for name in ("n", "x", "code", "event_time", "seats", "extra")} == {
        "n": pl.Int64,
        "x": pl.Float64,
        "code": pl.String,
        "event_time": pl.Datetime("us", "UTC"),
        "seats": pl.Float64,
        "extra": pl.Boolean,
    }


def test_a_tensor_gets_the_declared_names(settings):
    with database.transaction(database.open_engine(settings)) as connection:
        catalog.record(connection, TABLE, "e", "e", {"x": "double", "y": "double"}, {}, 0)
    commit(settings, payload(0, {"instances": [[1, 2]]}, {"predictions": [0]}))
    unpack.follow(settings, TABLE)
    assert unpacked(settings).select("x", "y").rows() == [(1.0, 2.0)]


def test_a_value_that_does_not_fit_its_column_is_null_and_counted(settings):
    commit(settings, one(0, {"a": 1, "t": "2024-01-01T00:00:00Z"}, 0.5))
    unpack.follow(settings, TABLE)
    commit(settings, one(1, {"a": "far", "t": "soon"}, "late"), one(2, {"a": 2}))
    unpack.follow(settings, TABLE)
    got = unpacked(settings)
    assert got["a"].to_list() == [1.0, None, 2.0]
    assert got["unpack_errors"].to_list() == [
        None,
        ['a: "far" is no double', 't: "soon" is no timestamp', 'prediction: "late" is no double'],
        None,
    ]


def test_a_column_that_comes_later_is_added_and_null_before(settings):
    commit(settings, one(0, {"a": 1, "empty": None}))
    unpack.follow(settings, TABLE)
    commit(settings, one(1, {"b": "x", "empty": 2}, {"prediction": 1, "score": 0.5, "why": "w"}))
    unpack.follow(settings, TABLE)
    got = unpacked(settings)
    assert got.select("a", "b", "empty", "prediction", "score", "prediction_why").rows() == [
        (1.0, None, None, 0.5, 0.5, None),
        (None, "x", 2.0, 1.0, 0.5, "w"),
    ]
    commit(settings, one(2, {"a": 3}))
    unpack.Unpacker(settings, TABLE).step()
    assert unpacked(settings)["a"].to_list() == [1.0, None, 3.0]


def test_features_named_like_our_columns_get_a_suffix(settings):
    features = {"status_code": 7, "label": "x", "prediction_old": 0.5, "Score": 2}
    for place in (0, 1):
        commit(settings, one(place, features))
        unpack.follow(settings, TABLE)
    got = unpacked(settings).select("status_code_", "label_", "prediction_old_", "Score_")
    assert got.rows() == [(7.0, "x", 0.5, 2.0)] * 2


def test_names_that_differ_in_case_alone_and_too_many_names_are_left_out_and_told(settings):
    many = {f"f{n}": 1 for n in range(unpack.MAX_COLUMNS + 50)}
    commit(settings, one(0, {"Age": 1, "age": 2}), one(1, many))
    unpack.follow(settings, TABLE)
    got = unpacked(settings)
    assert got["Age"].to_list() == [1.0, None]
    assert len(got.columns) < unpack.MAX_COLUMNS + 30
    assert "columns were left out" in got["unpack_errors"][0][0]


def test_a_model_cannot_grow_the_table_without_end(settings):
    for place in range(3):
        outputs = {f"o{place * 40 + n}": n for n in range(40)} | {"Why": "x", "why": "y"}
        commit(settings, one(place, {"a": place}, outputs))
        unpack.follow(settings, TABLE)
    got = unpacked(settings)
    outputs = [name for name in got.columns if name.startswith("prediction_")]
    assert len(outputs) == bodies.MAX_TENSOR_COLUMNS
    assert got["prediction_Why"].to_list() == ["x"] * 3


def test_text_that_is_no_unicode_is_kept_as_far_as_it_can_be(settings):
    body = '{"dataframe_records": [{"a\\ud800": "b\\ud800", "n": 1}]}'
    for place in (0, 1):
        commit(settings, payload(place, body, '{"predictions": ["c\\ud800"]}'))
        unpack.follow(settings, TABLE)
    assert unpacked(settings).select("a?", "n", "prediction").rows()[0] == ("b?", 1.0, "c?")


def test_a_file_that_was_refused_is_not_unfolded(settings):
    refused = {"request": "UEFSMQ==", "request_encoding": "base64", "status_code": 400}
    commit(settings, payload(0, {}) | refused)
    unpack.follow(settings, TABLE)
    assert unpacked(settings)["unpack_errors"].to_list() == [["the request was not recorded"]]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["a", "A", "label"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
requests = st.one_of(
    st.text(max_size=10),
    json_values.map(json.dumps),
    st.builds(
        lambda form, value: json.dumps({form: value}),
        st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs"]),
        json_values | st.builds(lambda c, d: {"columns": c, "data": d}, json_values, json_values),
    ),
)
responses = st.one_of(
    st.text(max_size=10),
    st.builds(lambda value: json.dumps({"predictions": value}), json_values),
)


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    bodies_=st.lists(
        st.tuples(requests, responses, st.sampled_from([200, 400]), st.none() | responses),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_clients_and_models_send_no_request_is_lost_and_the_schema_holds(bodies_):
    found = [
        payload(place, request, response) | {"status_code": status, "looked_up": looked_up}
        for place, (request, response, status, looked_up) in enumerate(bodies_)
    ]
    table = pa.Table.from_pylist(found, schema=rows.PAYLOAD_SCHEMA)
    kinds = unpack.Kinds({}, {"declared": "double"}, ["declared"])
    for _ in range(2):
        typed = unpack.unpack(table, kinds)
        assert set(typed["databricks_request_id"].to_pylist()) == {
            row["databricks_request_id"] for row in found
        }
        spelled = [name.casefold() for name in typed.column_names]
        assert len(set(spelled)) == len(spelled)
        present = {
            name: columns.KINDS.get(typed.schema.field(name).type) for name in spelled_as(typed)
        }
        kinds = kinds._replace(present=present)


def spelled_as(typed: pa.Table) -> list[str]:
    """The columns that are no fixed ones."""
    return [n for n in typed.column_names if n not in unpack.FIXED and n != "unpack_errors"]


def test_rows_of_two_days_lie_in_two_partitions(settings):
    commit(settings, one(0, {"a": 1}), one(43_200, {"a": 2}))
    unpack.follow(settings, TABLE)
    partitions = deltalake.DeltaTable(path_of(settings, "main.shop.s_unpacked")).partitions()
    assert {one["request_date"] for one in partitions} == {"2024-03-01", "2024-03-02"}


def version_taken_in(settings: Settings) -> int | None:
    table = deltalake.DeltaTable(path_of(settings, "main.shop.s_unpacked"))
    return table.transaction_version(f"unpack:{TABLE}")


def test_compaction_of_either_table_doubles_nothing_and_is_passed_by(settings):
    for place in range(4):
        commit(settings, one(place, {"a": place}))
        unpack.follow(settings, TABLE)
    deltalake.DeltaTable(path_of(settings, TABLE)).optimize.compact()
    deltalake.DeltaTable(path_of(settings, "main.shop.s_unpacked")).optimize.compact()
    unpack.follow(settings, TABLE)
    assert version_taken_in(settings) == deltalake.DeltaTable(path_of(settings, TABLE)).version()
    commit(settings, one(9, {"a": 9}))
    unpack.follow(settings, TABLE)
    assert unpacked(settings)["a"].to_list() == [0, 1, 2, 3, 9]


def test_a_log_that_was_cleaned_up_meanwhile_costs_no_row_and_doubles_none(settings):
    commit(settings, one(0, {"a": 0}))
    unpack.follow(settings, TABLE)
    commit(settings, *(one(place, {"a": place}) for place in range(1, 60)))
    commit(settings, one(60, {"a": 60}))
    table = deltalake.DeltaTable(path_of(settings, TABLE))
    table.optimize.compact()
    table.create_checkpoint()
    for version in range(table.version()):
        Path(path_of(settings, TABLE), "_delta_log", f"{version:020}.json").unlink()
    unpack.Unpacker(settings, TABLE).step()
    assert unpacked(settings)["a"].to_list() == list(range(61))
    assert version_taken_in(settings) == table.version()
    commit(settings, one(61, {"a": 61}))
    unpack.Unpacker(settings, TABLE).step()
    assert unpacked(settings)["a"].to_list() == list(range(62))


def test_a_data_file_that_vacuum_removed_costs_no_row(settings):
    for place in range(3):
        commit(settings, one(place, {"a": place}))
    table = deltalake.DeltaTable(path_of(settings, TABLE))
    table.optimize.compact()
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    unpack.follow(settings, TABLE)
    unpack.follow(settings, TABLE)
    assert unpacked(settings)["a"].to_list() == [0, 1, 2]


def test_after_an_error_the_next_call_starts_anew(settings):
    commit(settings, one(0, {"a": 0}))
    unpack.follow(settings, TABLE)
    commit(settings, one(1, {"a": 1}))
    file = max(Path(path_of(settings, TABLE)).rglob("*.parquet"), key=lambda p: p.stat().st_mtime)
    whole = file.read_bytes()
    file.write_bytes(b"broken")
    with pytest.raises(unpack.FileUnreadable):
        unpack.follow(settings, TABLE)
    file.write_bytes(whole)
    unpack.follow(settings, TABLE)
    assert unpacked(settings)["a"].to_list() == [0, 1]


def test_a_payload_table_that_is_not_there_yet_is_nothing_to_do(settings):
    unpack.follow(settings, TABLE)
    assert not deltalake.DeltaTable.is_deltatable(path_of(settings, "main.shop.s_unpacked"))


def test_a_payload_table_in_which_every_engine_reads_the_unpacked_rows(settings):
    import duckdb

    commit(settings, one(0, {"petal length (cm)": 1.5}))
    unpack.follow(settings, TABLE)
    protocol = deltalake.DeltaTable(path_of(settings, "main.shop.s_unpacked")).protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
    files = f"{path_of(settings, 'main.shop.s_unpacked')}/**/*.parquet"
    found = (
        duckdb.connect()
        .sql(f"SELECT \"petal length (cm)\" FROM read_parquet('{files}')")
        .fetchall()
    )
    assert found == [(1.5,)]
