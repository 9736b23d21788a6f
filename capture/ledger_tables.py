"""Facts of `ledger` -> commits of the server's own Delta tables, each fact once.

A batch is committed as that version of the app transaction `ledger:<table>`, and leaves SQL only
then."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from capture import database, delta, ledger
from capture.settings import Settings


class Follower:
    """Brings facts from SQL to Delta. One per data directory: the maintenance process has it."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings, self._engine = settings, engine
        self._open: dict[str, delta.Table] = {}

    def follow(self) -> int:
        """Commit what waits; gives the number of facts. Safe to repeat after any error."""
        with database.reading(self._engine) as connection:
            waiting = ledger.waiting(connection)
        return sum(self._commit(name) for name in waiting)

    def _commit(self, name: str) -> int:
        table, app_id = self._table(name), f"ledger:{name}"
        committed = table.transaction_version(app_id) or 0
        with database.transaction(self._engine) as connection:
            batch, facts = ledger.take(connection, name, committed)
        if not facts:
            return 0
        table.append(_arrow(facts, table.schema), app_id, batch)
        with database.transaction(self._engine) as connection:
            ledger.forget(connection, name, batch)
        return len(facts)

    def _table(self, name: str) -> delta.Table:
        if name not in self._open:
            shape, path = ledger.TABLES[name], delta.path_of(self._settings, name)
            self._open[name] = delta.open_or_create(
                path, shape.schema, shape.partition_by, time_column=shape.time_column
            )
        return self._open[name]


def _arrow(facts: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = [_column([fact.get(field.name) for fact in facts], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    if pa.types.is_date32(kind):
        return pa.array(values, pa.int32()).cast(kind)
    if pa.types.is_string(kind):
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        return pa.array(texts, kind)
    return pa.array(values, kind)
