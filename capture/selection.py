"""Which recorded rows arguments ask for: the tables they name, and the rows that pass filters."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import polars as pl

from capture import catalog, database, errors, filters, listings, recorded, stretches, unpack
from capture.settings import Settings

NEWEST_FIRST = ["request_time", "databricks_request_id", "row_index"]


def recorded_tables(settings: Settings) -> list[catalog.RecordedTable]:
    """Every recorded table, by name."""
    engine = database.open_engine(settings)
    try:
        with database.reading(engine) as connection:
            return catalog.everything(connection)
    finally:
        engine.dispose()


def tables(settings: Settings, given: dict[str, Any]) -> list[catalog.RecordedTable]:
    """The recorded tables that `table` or `endpoint` (a name or a list; none: all) name; takes
    both out of the arguments. Raises DoesNotExist."""
    table, endpoint = given.pop("table", None), given.pop("endpoint", None)
    known = recorded_tables(settings)
    if table:
        payload = recorded.sibling(table, "payload")
        return [_one([one for one in known if one.full_name == payload], "Table", table)]
    if endpoint is None or endpoint == "":
        return known
    wanted = [endpoint] if isinstance(endpoint, str) else endpoint
    return [
        _one([one for one in known if one.endpoint_name == name], "Endpoint", name)
        for name in wanted
    ]


def _one(found: list[catalog.RecordedTable], kind: str, name: str) -> catalog.RecordedTable:
    if not found:
        raise errors.DoesNotExist(f"{kind} '{name[:200]}' has no recorded requests.")
    return max(found, key=lambda one: (one.enabled, one.created_ms))


def features_of(schema: pl.Schema) -> dict[str, str]:
    """Feature -> column, for what a client or a lookup brought and what the model answered."""
    own = set(unpack.FIXED) | {"unpack_errors"}
    found = {name: name for name in schema if name not in own}
    suffixed = {name.removesuffix("_"): name for name in schema if name not in own}
    return {**found, **{bare: name for bare, name in suffixed.items() if bare in unpack.RESERVED}}


class Selection:
    """The rows of one recorded table that pass filters, to be read by stretches of time.

    nothing: their columns, without a row. Raises InvalidParameter for a feature that the table does
    not have."""

    def __init__(self, settings: Settings, full_name: str, wanted: filters.Filters) -> None:
        self._settings, self._full_name, self._wanted = settings, full_name, wanted
        schema = recorded.unpacked(settings, full_name).collect_schema()
        self._conditions = filters.conditions(wanted, schema, features_of(schema))
        self.nothing = schema.to_frame()

    def back(
        self,
        end: datetime | None = None,
        first_rows: int = stretches.FIRST_ROWS,
        growth: int = stretches.GROWTH,
    ) -> Iterator[stretches.Stretch]:
        """Stretches that hold all passing rows before `end`, newest first; sizes are in rows of
        the table, passing or not."""
        listing = listings.of(self._settings, recorded.sibling(self._full_name, "unpacked"))
        extents = [] if listing is None else [file.extent for file in listing.files]
        ends = [one for one in (end, self._wanted.end) if one is not None]
        return stretches.back(
            extents, self._wanted.start, min(ends, default=None), first_rows, growth
        )

    def rows(self, within: stretches.Stretch) -> pl.LazyFrame:
        """The passing rows of a stretch, in no order."""
        if self._wanted.text is None:
            return self._passing(within)
        holding = self._holding(within, self._wanted.text)
        if holding.is_empty():
            return self.nothing.lazy()
        time = pl.col("request_time")
        first, last = holding.select(time.min().alias("first"), time.max().alias("last")).row(0)
        near = stretches.Stretch(first, last + stretches.INSTANT)
        ids = holding.lazy().select("databricks_request_id")
        return self._passing(near).join(ids, on="databricks_request_id", how="semi")

    def _passing(self, within: stretches.Stretch) -> pl.LazyFrame:
        """What passes all filters but the text's."""
        rows = recorded.unpacked(self._settings, self._full_name, *within)
        # A column that came meanwhile would be in some stretches and not in others.
        return rows.filter(*self._conditions).select(self.nothing.columns)

    def _holding(self, within: stretches.Stretch, text: str) -> pl.DataFrame:
        """Ids and times of requests in whose body or answer a text stands, as it stands."""
        names = ["databricks_request_id", "request_time"]
        payload = recorded.scan(self._settings, self._full_name, *within)
        if payload is None:
            return self.nothing.select(names)
        holds = [pl.col(one).str.contains(text, literal=True) for one in ("request", "response")]
        found = payload.filter(*recorded.within(*within), pl.any_horizontal(holds))
        return found.select(names).collect()
