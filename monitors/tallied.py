"""What is counted of the rows that a monitor holds, so that nobody goes through them to know it.

Counts per hour of the rows' own time and version, the splits and the newest configuration that they
were answered under. All of it is small, whatever the number of rows.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from monitors import arms, cells, roles, truth

VERSION = "served_entity_name"
FRAMES = ("hours", "splits", "configurations")
COUNTS = ("rows", "predicted", "told", "labelled")
HOURS: dict[str, Any] = {
    "hour": pl.Int64,
    "version": pl.String,
    **dict.fromkeys(COUNTS, pl.Int64),
    "newest": pl.Int64,
}


@dataclass(slots=True)
class Tallied:
    """hours: per hour since the epoch and version the rows, those with a prediction, of these those
    with a label, all with a label, and the newest moment (microseconds). splits: as roles.splits.
    configurations: requests per version under the newest config_version. versions: all that the
    monitor tells apart. words: labels that are texts. most_index: the largest row_index."""

    hours: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=HOURS))
    splits: pl.DataFrame = field(default_factory=pl.DataFrame)
    configurations: pl.DataFrame = field(default_factory=pl.DataFrame)
    versions: set[str] = field(default_factory=set)
    words: int = 0
    most_index: int = 0

    def add(self, rows: pl.DataFrame, model: str | None, labels_are_json: bool) -> None:
        """More rows, with their labels as far as they are known."""
        label = cells.column(rows, "label")
        told = truth.is_told(label) if labels_are_json else label.is_not_null()
        self._count(_marked(rows, told))
        if labels_are_json:
            self.words += int(truth.are_words(label).sum())
        if model is not None and model in rows.columns:
            self.versions.update(rows[model].drop_nulls().cast(pl.String).unique().to_list())
        if "row_index" in rows.columns:
            highest = rows["row_index"].max()
            self.most_index = max(self.most_index, highest if isinstance(highest, int) else 0)
        self.splits = roles.later([self.splits, roles.splits(rows)])
        self._configure(rows)

    def relabel(self, before: pl.DataFrame, after: pl.DataFrame) -> None:
        """The same rows with other labels."""
        for sign, rows in ((-1, before), (1, after)):
            marked = _marked(rows, truth.is_told(rows["label"]))
            self._count(
                marked.with_columns(
                    rows=pl.lit(0),
                    predicted=pl.lit(0),
                    told=sign * pl.col("told").cast(pl.Int64),
                    labelled=sign * pl.col("labelled").cast(pl.Int64),
                )
            )
            self.words += sign * int(truth.are_words(rows["label"]).sum())

    def _count(self, marked: pl.DataFrame) -> None:
        both = pl.concat([self.hours, marked.select(pl.col(n).cast(t) for n, t in HOURS.items())])
        sums = [pl.col(name).sum() for name in COUNTS]
        self.hours = both.group_by("hour", "version").agg(*sums, pl.col("newest").max())

    def _configure(self, rows: pl.DataFrame) -> None:
        if not {"config_version", VERSION, "row_index"} <= set(rows.columns):
            return
        # Each request has one row of index 0, however many rows it has.
        counted = rows.group_by("config_version", version=VERSION).agg(
            requests=(pl.col("row_index") == 0).sum().cast(pl.Int64)
        )
        parts = [part for part in (self.configurations, counted) if part.width]
        both = pl.concat(parts, how="vertical_relaxed").drop_nulls("config_version")
        newest = both.filter(pl.col("config_version") == pl.col("config_version").max())
        self.configurations = newest.group_by("config_version", "version").agg(
            pl.col("requests").sum()
        )

    # --- what it says ------------------------------------------------------------------------

    @property
    def labelled(self) -> int:
        """Rows with a label."""
        return int(self.hours["labelled"].sum())

    def coverage(self, since: datetime) -> float | None:
        """Share of the answered rows that have a label; of whole hours since a moment."""
        recent = self.hours.filter(pl.col("hour") >= arms.microseconds(since) // arms.HOUR)
        predicted = int(recent["predicted"].sum())
        return int(recent["told"].sum()) / predicted if predicted else None

    def newest_configuration(self, version: str) -> tuple[int | None, int]:
        """The newest configuration version, and the requests of a version under it."""
        if self.configurations.is_empty():
            return None, 0
        requests = self.configurations.filter(pl.col("version") == version)["requests"].sum()
        return int(self.configurations["config_version"][0]), int(requests)

    def save(self, folder: Path) -> dict[str, Any]:
        """Put it into files; gives what `load` takes, JSON-able."""
        found: dict[str, Any] = {
            "versions": sorted(self.versions),
            "words": self.words,
            "most_index": self.most_index,
        }
        for name in FRAMES:
            found[name] = f"{name}-{uuid.uuid4().hex}.arrow"
            getattr(self, name).write_ipc(folder / found[name])
        return found

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> "Tallied":
        """What `save` gave. Raises OSError or a polars error where a file is gone or not whole."""
        frames: dict[str, Any] = {
            name: pl.read_ipc((folder / saved[name]).read_bytes()) for name in FRAMES
        }
        return cls(
            **frames,
            versions=set(saved["versions"]),
            words=saved["words"],
            most_index=saved["most_index"],
        )


def _marked(rows: pl.DataFrame, told: pl.Series) -> pl.DataFrame:
    """Counts of every row by itself."""
    moments = rows["__time"].dt.epoch("us")
    predicted = cells.column(rows, "prediction").is_not_null()
    return pl.DataFrame(
        {
            "hour": moments // arms.HOUR,
            "version": cells.column(rows, VERSION).cast(pl.String),
            "rows": pl.repeat(1, rows.height, eager=True),
            "predicted": predicted,
            "told": predicted & told,
            "labelled": told,
            "newest": moments,
        }
    )
