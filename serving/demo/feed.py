"""The feed of `airport_hour`: what it wrote, what it repeated while it hung, what a request saw."""

import time
from datetime import datetime

import polars as pl

from capture import snapshots
from capture.settings import Settings
from serving.demo import control, models
from serving.features import FeatureEngineeringClient

PUBLISH_SECONDS = 30


class Feed:
    """Writes the feature table; `truth` holds every row as it should have been."""

    def __init__(
        self,
        client: FeatureEngineeringClient,
        settings: Settings,
        planes: pl.DataFrame,
        truth: pl.DataFrame,
    ) -> None:
        self.client = client
        self.settings = settings
        self.planes = planes
        self.truth = truth
        self.stale: pl.DataFrame | None = None
        self.repair_rows: pl.DataFrame | None = None

    def write_until(self, moment: datetime) -> None:
        """Make both feature tables; `airport_hour` with the rows known before `moment`."""
        self.client.create_table(name=models.PLANES, primary_keys=["tailnum"], df=self.planes)
        self.client.create_table(
            name=models.AIRPORT_HOUR,
            primary_keys=["origin", "hour"],
            timeseries_column="as_of",
            df=self.truth.filter(pl.col("as_of") < moment),
        )

    def hang(self, since: datetime, until: datetime) -> None:
        """From `since` each new hour repeats the last row of its airport, `as_of` included."""
        hours = self.truth.filter(pl.col("as_of").is_between(since, until, closed="left"))
        last = (
            self.truth.filter(pl.col("as_of") < since)
            .sort("as_of")
            .group_by("origin", maintain_order=True)
            .last()
        )
        self.stale = hours.select("origin", "hour").join(last.drop("hour"), on="origin")
        self.repair_rows = self.truth.filter(pl.col("as_of") >= since)
        self._append(self.stale.select(self.truth.columns))

    def repair(self) -> None:
        """Write what was missed, and everything after."""
        assert self.repair_rows is not None, "repair follows hang"
        self._append(self.repair_rows)

    def _append(self, rows: pl.DataFrame) -> None:
        self.client.write_table(name=models.AIRPORT_HOUR, df=rows, mode="append")
        self._wait_until_published(rows)

    def _wait_until_published(self, rows: pl.DataFrame) -> None:
        """Wait until requests see the newest of these rows."""
        wanted = rows.row(-1, named=True)
        deadline = time.monotonic() + PUBLISH_SECONDS
        while not self._visible(wanted):
            if time.monotonic() > deadline:
                raise control.Refused(f"{models.AIRPORT_HOUR} was not published in time.")
            time.sleep(0.05)

    def _visible(self, wanted: dict[str, object]) -> bool:
        snapshot = snapshots.Snapshot.open(self.settings.snapshots_dir, models.AIRPORT_HOUR)
        found = snapshot.get((wanted["origin"], wanted["hour"]))
        return found is not None

    def served(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The columns of v2 as the hung feed gave them to these flights."""
        assert self.stale is not None, "the feed has not hung yet"
        return rows.join(self.planes, on="tailnum", how="left", maintain_order="left").join(
            self.stale, on=["origin", "hour"], how="left", maintain_order="left"
        )
