"""Rows of files, a batch at a time: Parquet file or folder, CSV, Delta table.

Memory is bounded by the batches in flight, whatever a file holds. Texts of a Parquet file stay as
their dictionary, because counting codes costs a tenth of counting texts. A CSV value that does not
fit its column's type, decided on the first 10,000 rows, is null.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from capture import errors

BATCH_ROWS = 1 << 18
SAMPLE_ROWS = 1 << 15
SAMPLES = 8
CSV_ROWS_FOR_TYPES = 10_000
_READ_AHEAD_BYTES = 1 << 20
_SEPARATORS = {".csv": ",", ".tsv": "\t"}

Schema = dict[str, pl.DataType]
Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class Part:
    """One file or table. rows: None where only reading tells. sample: a few rows from all over it,
    or from its beginning."""

    schema: Schema
    rows: int | None
    batches: Callable[[Sequence[str]], Batches]
    sample: Callable[[Sequence[str]], pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Source:
    """Files that are read as one, in their order."""

    parts: tuple[Part, ...]

    @property
    def schema(self) -> Schema:
        """The columns that every part has, with the type of the first that knows it."""
        first, *others = (part.schema for part in self.parts)
        found: Schema = {}
        for name, dtype in first.items():
            types = [dtype, *(schema[name] for schema in others if name in schema)]
            if len(types) == len(self.parts):
                found[name] = next((each for each in types if each != pl.Null), dtype)
        return found

    @property
    def rows(self) -> int | None:
        """How many rows there are; None where only reading tells."""
        known = [part.rows for part in self.parts]
        return None if None in known else sum(rows or 0 for rows in known)

    def batches(self, columns: Sequence[str]) -> Batches:
        """All rows in order, some columns of them, at most 262,144 rows at a time."""
        for part in self.parts:
            yield from part.batches(columns)

    def sample(self, columns: Sequence[str]) -> pl.DataFrame:
        """A few rows of every part."""
        parts = [part.sample(columns).select(columns) for part in self.parts]
        return pl.concat(parts, how="vertical_relaxed") if len(parts) > 1 else parts[0]


def has_times(source: Source, column: str) -> bool:
    """Is this a column of times, or of texts that are ISO 8601? One without values may be."""
    from monitors import intake  # loads deltalake, which nothing else here needs

    if column not in source.schema:
        return False
    values = source.sample([column])[column].drop_nulls()
    return values.is_empty() or intake.as_times(values).null_count() < len(values)


def open_files(paths: Sequence[Path], texts: Sequence[str] = ()) -> Source:
    """A Parquet file, a folder of them, a CSV file or a Delta table each, read as one.

    texts: columns of a CSV file that are no numbers, whatever they look like.
    Raises DoesNotExist, Unavailable (it cannot be read), InvalidParameter (it is something else).
    """
    return Source(tuple(part for path in paths for part in _open(path, texts)))


def _open(path: Path, texts: Sequence[str]) -> list[Part]:
    if not path.exists():
        raise errors.DoesNotExist(f"'{path}' does not exist.")
    try:
        if path.is_dir():
            return _folder(path)
        if _is_parquet(path):
            return [_parquet(path)]
        if path.suffix.lower() in _SEPARATORS:
            return [_csv(path, texts)]
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise _unreadable(path, error) from None
    raise errors.InvalidParameter(
        f"'{path}' is neither Parquet nor a Delta table, and not named .csv or .tsv."
    )


def _unreadable(path: Path, error: Exception) -> errors.InferlakeError:
    said = " ".join(str(error).split())[:300]
    return errors.Unavailable(f"'{path}' cannot be read: {said}")


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _folder(path: Path) -> list[Part]:
    if (path / "_delta_log").is_dir():
        return [_delta(path)]
    found = [
        file
        for file in sorted(path.rglob("*.parquet"))
        if not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
    ]
    if not found:
        raise errors.InvalidParameter(f"'{path}' holds no Parquet file and is no Delta table.")
    return [_parquet(file) for file in found]


def _types(schema: pa.Schema) -> Schema:
    return dict(pl.Schema(schema))  # by way of an empty table it would import pandas


def _parquet(path: Path) -> Part:
    with pq.ParquetFile(path) as file:
        schema, metadata = _types(file.schema_arrow), file.metadata
    texts = [name for name, dtype in schema.items() if dtype == pl.String]

    def batches(columns: Sequence[str]) -> Batches:
        kept_as_dictionary = [name for name in texts if name in columns]
        try:
            # A file mapped into memory would count as ours; a buffer does not grow with it.
            with pq.ParquetFile(
                path, read_dictionary=kept_as_dictionary, buffer_size=_READ_AHEAD_BYTES
            ) as opened:
                # Group by group: a reader of them all keeps what it has read of each.
                for groups in _spans(metadata):
                    yield from opened.iter_batches(BATCH_ROWS, groups, list(columns))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None

    def sample(columns: Sequence[str]) -> pl.DataFrame:
        groups = range(0, metadata.num_row_groups, -(-metadata.num_row_groups // SAMPLES) or 1)
        with pq.ParquetFile(path, buffer_size=_READ_AHEAD_BYTES) as opened:
            taken = [
                next(opened.iter_batches(SAMPLE_ROWS, row_groups=[group], columns=list(columns)))
                for group in groups
                if metadata.row_group(group).num_rows
            ]
        if not taken:
            return pl.DataFrame(schema={name: schema[name] for name in columns})
        return pl.DataFrame(pa.Table.from_batches(taken))

    return Part(schema, metadata.num_rows, batches, sample)


def _spans(metadata: pq.FileMetaData) -> Iterator[list[int]]:
    """Row groups to read together: one, or as many small ones as make a batch."""
    span: list[int] = []
    rows = 0
    for group in range(metadata.num_row_groups):
        span.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= BATCH_ROWS:
            yield span
            span, rows = [], 0
    if span:
        yield span


def _csv(path: Path, texts: Sequence[str]) -> Part:
    separator = _SEPARATORS[path.suffix.lower()]
    if path.stat().st_size == 0:
        raise errors.Unavailable(f"'{path}' cannot be read: it is empty, without a header.")
    lazy = pl.scan_csv(
        path,
        separator=separator,
        infer_schema_length=CSV_ROWS_FOR_TYPES,
        try_parse_dates=True,
    )
    schema: Schema = {}
    for name, dtype in lazy.collect_schema().items():
        # A column of whole numbers may go on with fractions.
        schema[name] = pl.Float64() if dtype.is_integer() else dtype
        if name in texts:
            schema[name] = pl.String()

    def scan() -> pl.LazyFrame:
        return pl.scan_csv(
            path, separator=separator, schema=schema, ignore_errors=True, try_parse_dates=True
        )

    def batches(columns: Sequence[str]) -> Batches:
        try:
            for frame in scan().select(columns).collect_batches(chunk_size=BATCH_ROWS):
                yield from frame.to_arrow().combine_chunks().to_batches(BATCH_ROWS)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _unreadable(path, error) from None

    def sample(columns: Sequence[str]) -> pl.DataFrame:
        return scan().select(columns).head(SAMPLE_ROWS).collect()

    return Part(schema, None, batches, sample)


def _delta(path: Path) -> Part:
    import deltalake
    from deltalake.exceptions import DeltaError

    try:
        table = deltalake.DeltaTable(str(path))
        dataset = table.to_pyarrow_dataset()
    except DeltaError as error:
        raise _unreadable(path, error) from None

    def batches(columns: Sequence[str]) -> Batches:
        try:
            yield from dataset.to_batches(
                columns=list(columns),
                batch_size=BATCH_ROWS,
                batch_readahead=1,
                fragment_readahead=1,
            )
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None

    def sample(columns: Sequence[str]) -> pl.DataFrame:
        frame = pl.from_arrow(dataset.head(SAMPLE_ROWS, columns=list(columns)))
        assert isinstance(frame, pl.DataFrame)
        return frame

    return Part(_types(dataset.schema), dataset.count_rows(), batches, sample)
