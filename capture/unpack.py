"""Payload JSON -> typed rows of `<prefix>_unpacked`, each payload commit once.

One row per input row: fixed columns of the payload, then a typed column per feature, then the
answer as `prediction`, `score` and `prediction_*`. A request that failed or cannot be read is a row
too. The unpacked table carries the app transaction `unpack:<payload table>` = newest payload
version taken in, written by the very commit that brings the rows; `delta.Table` makes that commit,
with its rules and syncs. The payload commits are synced first: if a power cut took one of them, its
version would come again with rows that count as taken in. One process alone unpacks a table: the
committer's maintenance process.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import deltalake
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from capture import (
    bodies,
    catalog,
    columns,
    database,
    delta,
    delta_commits,
    delta_history,
    delta_log,
    logline,
    names,
)
from capture.settings import Settings

log = logline.logger(__name__)

MAX_COLUMNS = 1_000  # features of a table; more come from broken or hostile clients
MAX_NAME = 200  # characters of a column's name
ANSWERED = "prediction_"  # what further outputs of a model begin with
FIXED = [
    "databricks_request_id",
    "row_index",
    "request_time",
    "request_date",
    "client_request_id",
    "unit_id",
    "served_entity_name",
    "model_name",
    "model_version",
    "config_version",
    "route_share",
    "route_split",
    "shadow",
    "status_code",
    "error_source",
    "execution_duration_ms",
]
TAKEN_OVER = [name for name in FIXED if name not in ("row_index", "request_date")]
BODIES = ["request", "response", "looked_up", "request_encoding", "content_type"]
# Also what `query.joined` adds to the rows.
RESERVED = frozenset({*FIXED, "prediction", "score", "unpack_errors", "label", "label_time"})


TIME_NAME = re.compile(r"(.*_)?(time|timestamp|at)", re.IGNORECASE)
IDS = frozenset({"databricks_request_id", "client_request_id", "unit_id"})  # all different
ERRORS = pa.list_(pa.string())
NO_ANSWER = bodies.Answer(None, None)


class Kinds(NamedTuple):
    """Kinds that are fixed before a chunk: of the table's columns, and of declared features."""

    present: dict[str, str]  # by column
    declared: dict[str, str]  # by feature
    request_names: list[str]  # declared features that a client sends, in order


@dataclass(slots=True)
class _Rows:
    """Rows of a chunk before they are typed; lists run in step."""

    place: list[int] = field(default_factory=list)  # payload row
    row_index: list[int] = field(default_factory=list)
    records: list[bodies.Record] = field(default_factory=list)
    answers: list[bodies.Answer] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)  # features of requests that succeeded
    errors: dict[int, list[str]] = field(default_factory=dict)

    def complain(self, row: int, text: str) -> None:
        self.errors.setdefault(row, []).append(text)


def unpack(payload: pa.Table, kinds: Kinds) -> pa.Table:
    """Typed rows of a chunk of payload rows.

    Columns: FIXED, then features that have a kind, `prediction` and `prediction_*` where there is
    one, `score`, `unpack_errors` (null where all was well).
    """
    rows = _split(payload, kinds.request_names)
    found: dict[str, pa.Array] = {}
    for column, name in _feature_columns(rows, kinds).items():
        values = [record.get(name) for record in rows.records]
        _add(found, rows, column, values, kinds.present.get(column) or _kind(name, values, kinds))
    _add_answers(found, rows, kinds)
    complaints = [rows.errors.get(row) for row in range(len(rows.place))]
    found["unpack_errors"] = pa.array(complaints, ERRORS)
    return _assemble(payload, rows, found)


def _split(payload: pa.Table, names: Sequence[str]) -> _Rows:
    """One row per input row; a request that cannot be read is one row."""
    rows = _Rows()
    parts = (payload.column(name).to_pylist() for name in (*BODIES, "status_code"))
    for place, (request, response, looked_up, encoding, content_type, status) in enumerate(
        zip(*parts, strict=True)
    ):
        unread: list[str] = []
        # A file that the model could not take may be one that nobody can: it unfolds when read.
        body = request if encoding == "utf-8" or status == 200 else None
        records = _records(body, encoding, content_type, names, unread)
        answers = _answers(response, unread) if status == 200 else []
        records = records or [{} for _ in answers] or [{}]
        if looked_up is not None:
            _add_looked_up(records, looked_up, unread)
        if len(answers) != len(records):
            if answers:
                unread.append(f"{len(answers)} answers for {len(records)} rows")
            answers = (answers + [NO_ANSWER] * len(records))[: len(records)]
        for text in unread:
            rows.complain(len(rows.place), text)
        rows.place += [place] * len(records)
        rows.row_index += range(len(records))
        rows.records += records
        rows.answers += answers
        if status == 200:  # junk of refused requests must not become columns for good
            for record in records:
                rows.named.update(record)
    return rows


def _records(
    text: str | None,
    encoding: str,
    content_type: str | None,
    names: Sequence[str],
    unread: list[str],
) -> list[bodies.Record]:
    try:
        return bodies.records(text, encoding, content_type, names)
    except bodies.Unreadable as error:
        unread.append(str(error))
        return []


def _answers(text: str | None, unread: list[str]) -> list[bodies.Answer]:
    try:
        return bodies.answers(text)
    except bodies.Unreadable as error:
        unread.append(str(error))
        return []


def _add_looked_up(records: list[bodies.Record], text: str, unread: list[str]) -> None:
    """Put the features that the endpoint added beside those of the request."""
    try:
        for name, values in orjson.loads(text).items():
            for record, value in zip(records, values, strict=True):
                record.setdefault(name, value)
    except (ValueError, TypeError, AttributeError):
        unread.append("the looked-up features do not match the rows")


def column_name(feature: str) -> str:
    """Column of a feature; one with a name of ours gets the suffix `_`."""
    name = feature.encode("utf-8", "replace").decode()  # a lone surrogate is in no schema
    taken = name.casefold() in RESERVED or name.startswith(ANSWERED) or not name
    return f"{name}_" if taken else name


class _Admission:
    """Which names become columns. Delta tells names apart by more than case; and neither a broken
    client nor a model may grow the table without end."""

    def __init__(self, present: Iterable[str], most: int) -> None:
        self._spelled = {column.casefold(): column for column in present}
        self._most = most
        self.left_out: list[str] = []

    def admit(self, column: str) -> bool:
        known = self._spelled.get(column.casefold())
        if known is None and len(self._spelled) < self._most and len(column) <= MAX_NAME:
            self._spelled[column.casefold()] = known = column
        if known != column:
            self.left_out.append(column)
        return known == column

    def complain(self, rows: _Rows) -> None:
        if self.left_out:
            first = columns.shown(self.left_out[0])
            rows.complain(
                0,
                f"{len(self.left_out)} columns were left out, {first} first: there may be "
                f"{self._most}, of {MAX_NAME} characters, whose names differ in more than case",
            )


def _feature_columns(rows: _Rows, kinds: Kinds) -> dict[str, str]:
    """Column -> feature, for all that the table has, that was declared, or that came along."""
    # The table's own columns are filled from refused requests too, whatever these hold besides.
    own = {column: _feature_of(column) for column in kinds.present if _is_feature(column)}
    admission = _Admission(own, MAX_COLUMNS)
    for name in (*kinds.declared, *rows.named):
        column = column_name(name)
        if column not in own and admission.admit(column):
            own[column] = name
    admission.complain(rows)
    return own


def _is_feature(column: str) -> bool:
    return column not in RESERVED and not column.startswith(ANSWERED)


def _feature_of(column: str) -> str:
    """The feature that a column holds; the reverse of `column_name`."""
    bare = column.removesuffix("_")
    return bare if column_name(bare) == column else column


def _kind(feature: str, values: list[Any], kinds: Kinds) -> str | None:
    """Kind of a new column. JSON knows no times, so signatures often call them strings."""
    declared = kinds.declared.get(feature)
    if declared == "string" and TIME_NAME.fullmatch(feature):
        return columns.kind_of(values) or declared
    return declared or columns.kind_of(values)


def _add(
    found: dict[str, pa.Array], rows: _Rows, column: str, values: list[Any], kind: str | None
) -> None:
    if kind is None:
        return
    typed = columns.typed(values, kind)
    found[column] = typed.array
    for row, text in typed.misfits.items():
        rows.complain(row, f"{column}: {text} is no {kind}")


def _add_answers(found: dict[str, pa.Array], rows: _Rows, kinds: Kinds) -> None:
    predictions = [answer.prediction for answer in rows.answers]
    types = set(map(type, predictions))
    guess = "string" if str in types else "double" if float in types else None
    _add(found, rows, "prediction", predictions, kinds.present.get("prediction") or guess)
    found["score"] = columns.typed([answer.score for answer in rows.answers], "double").array
    others: dict[str, Any] = {}
    for answer in rows.answers:
        if answer.others is not None:
            others.update(answer.others)
    outputs = [column for column in kinds.present if column.startswith(ANSWERED)]
    admission = _Admission(outputs, bodies.MAX_TENSOR_COLUMNS)
    for name in others:
        column = ANSWERED + name.encode("utf-8", "replace").decode()
        if column not in found and admission.admit(column):
            values = [(answer.others or {}).get(name) for answer in rows.answers]
            kind = kinds.present.get(column) or columns.kind_of(values)
            _add(found, rows, column, values, kind)
    admission.complain(rows)


def _assemble(payload: pa.Table, rows: _Rows, found: dict[str, pa.Array]) -> pa.Table:
    fixed = payload.select(TAKEN_OVER).take(pa.array(rows.place, pa.int64()))
    taken = {name: fixed.column(name) for name in TAKEN_OVER}
    taken["row_index"] = pa.array(rows.row_index, pa.int32())
    # The UTC day of receipt: what the payload table is partitioned by, and not in its files.
    taken["request_date"] = fixed.column("request_time").cast(pa.date32())
    return pa.table({**{name: taken[name] for name in FIXED}, **found})


class Unpacker:
    """Takes a payload table's commits into its unpacked table, for as long as the process lives."""

    def __init__(self, settings: Settings, full_name: str) -> None:
        unpacked = str(names.table_name(full_name).sibling("unpacked"))
        self._full_name = full_name
        self._chunk_rows = settings.unpack_chunk_rows
        self._engine = database.open_engine(settings)
        self._payload = delta.path_of(settings, full_name)
        self._path = delta.path_of(settings, unpacked)
        self._app = f"unpack:{full_name}"
        self._table: delta.Table | None = None
        self._done = -1
        if deltalake.DeltaTable.is_deltatable(str(self._path)):
            self._table = self._open(pa.schema([]))
            version = self._table.transaction_version(self._app)
            self._done = -1 if version is None else version

    def step(self) -> None:
        """Take in every payload commit that was not yet; a look at its log when there is none."""
        try:
            since = delta_history.files_since(self._payload, self._done)
            if since.version > self._done:
                delta_log.sync_commits(self._payload, self._done + 1)
            groups = _groups(since.files, self._chunk_rows)
            for group in groups[:-1]:
                self._append(self._typed(group), group[-1].commit_version)
            # Compaction moves the version on without files; whoever waits for us compares with it.
            if since.version > self._done:
                self._append(self._typed(groups[-1] if groups else []), since.version)
        except (delta_history.HistoryGone, FileUnreadable):
            # So far behind that the log forgot these commits, or vacuum removed their files; or the
            # table was damaged, and what is left of it is taken in once somebody has mended it.
            self.take_all()

    def take_all(self) -> None:
        """Take in what the payload table holds now, less the requests that are known already."""
        payload = deltalake.DeltaTable(self._payload)
        adds = delta_commits.present_files(payload).select(["path", "num_records"]).to_pylist()
        files = [
            delta_history.DataFile(
                self._payload / unquote(add["path"]), 0, {}, add["num_records"], 0
            )
            for add in sorted(adds, key=lambda add: add["path"])
        ]
        known: frozenset[str] = frozenset()
        if self._table is not None:
            unpacked = deltalake.DeltaTable(self._path)
            ids = unpacked.to_pyarrow_table(columns=["databricks_request_id"])
            known = frozenset(ids.column(0).to_pylist())
        log.warning("unpacking_all", table=self._full_name, files=len(files), known=len(known))
        # Only the last commit says that all is done; a restart before it finds the others by id.
        for chunk in self._typed(files, known):
            self._append([chunk], None)
        delta_log.sync_commits(self._payload)
        self._append([], payload.version())

    def _typed(
        self, files: Iterable[delta_history.DataFile], known_ids: frozenset[str] = frozenset()
    ) -> Iterator[pa.Table]:
        """Typed chunks of data files, without requests that are known already."""
        kinds = self._kinds()
        wanted = [*TAKEN_OVER, *BODIES]
        for one in files:
            for payload in _read(one.path, self._chunk_rows, wanted):
                if known_ids:
                    ids = payload.column("databricks_request_id").to_pylist()
                    payload = payload.filter(pa.array([one not in known_ids for one in ids]))
                chunk = unpack(payload, kinds)
                kinds = kinds._replace(present=kinds.present | _kinds_in(chunk.schema))
                yield chunk

    def _kinds(self) -> Kinds:
        with database.reading(self._engine) as connection:
            recorded = catalog.get(connection, self._full_name)
        present = {} if self._table is None else _kinds_in(self._table.schema)
        if recorded is None:
            return Kinds(present, {}, [])
        declared = {**recorded.looked_up_columns, **recorded.request_columns}
        return Kinds(present, declared, list(recorded.request_columns))

    def _append(self, chunks: Iterable[pa.Table], version: int | None) -> None:
        """One commit: rows, and how far we are now. New columns come in a commit before it."""
        parts = list(chunks)
        if not parts and self._table is None:
            return
        known = pa.schema([]) if self._table is None else self._table.schema
        rows = pa.concat_tables([known.empty_table(), *parts], promote_options="default")
        if self._table is None or len(rows.schema) > len(known):
            self._table = self._open(rows.schema)
        if version is None:
            self._table.commit(rows, {})
        else:
            self._table.append(rows, self._app, version)
            self._done = version
        log.debug("unpacked", table=self._full_name, payload_version=version, rows=len(rows))

    def _open(self, schema: pa.Schema) -> delta.Table:
        texts = [one.name for one in schema if one.type == pa.string() and one.name not in IDS]
        return delta.open_or_create(
            self._path,
            schema,
            partition_by="request_date",
            time_column="request_time",
            dictionary_columns=texts,
        )


class FileUnreadable(Exception):
    """A data file that is gone, or torn."""


def _read(path: Path, rows: int, columns: list[str]) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=columns):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowInvalid) as error:
        raise FileUnreadable(f"{path.name}: {error}") from error


def _kinds_in(schema: pa.Schema) -> dict[str, str]:
    """Kinds of the columns that `unpack` fills; the fixed ones have their own types."""
    own = (one for one in schema if one.name not in FIXED and one.name != "unpack_errors")
    return {one.name: columns.KINDS[one.type] for one in own}


def _groups(
    files: Iterable[delta_history.DataFile], rows: int
) -> list[list[delta_history.DataFile]]:
    """Files of neighbouring commits, together until they hold this many rows; no commit is cut."""
    groups: list[list[delta_history.DataFile]] = []
    held = 0
    for file in files:
        is_same_commit = groups and groups[-1][-1].commit_version == file.commit_version
        if not groups or (held + (file.rows or 0) > rows and not is_same_commit):
            groups.append([])
            held = 0
        groups[-1].append(file)
        held += file.rows or 0
    return groups


_unpackers: dict[tuple[str, str], Unpacker] = {}


def complete(settings: Settings, full_name: str) -> None:
    """Take in whatever `<prefix>_unpacked` lacks of a payload table, as after damage to it."""
    Unpacker(settings, full_name).take_all()


def follow(settings: Settings, full_name: str) -> None:
    """Bring `<prefix>_unpacked` up to the newest commit of a payload table. Safe to repeat.

    The open tables are kept from call to call; after any error they are opened anew. Raises
    FileUnreadable and what delta-rs raises, with nothing half done; NotImplementedHere for object
    storage.
    """
    key = (settings.tables_root, full_name)
    if key not in _unpackers:
        _unpackers[key] = Unpacker(settings, full_name)
    try:
        _unpackers[key].step()
    except BaseException:
        del _unpackers[key]
        raise
