"""Numbers of a refresh that alert rules look at, each with its words. Pure, save `capture_lag`,
which reads the committer's note."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import orjson
import polars as pl

from monitors import alerts, comparisons, intake, kept, metric_rows, watched

FEWEST_ROWS = 50  # for shares of missing values
FEWEST_REQUESTS = 10  # for error rates and latencies
FEWEST_LABELS = 100
NEWEST_FOR_AGE = 5
MOST_VALUES = 3
CONFIDENCE = 1.96


def wilson_low(events: int, n: int) -> float:
    """Lower end of the two-sided 95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0
    z2, share = CONFIDENCE**2, events / n
    centre = share + z2 / (2 * n)
    half = CONFIDENCE * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z2 / n))


def of_window(key: kept.WindowKey) -> tuple[str, str]:
    start, end = key.span
    return start.isoformat(), end.isoformat()


def drift(
    found: Iterable[comparisons.Comparison], shape: watched.Shape, metrics: Collection[str]
) -> Iterator[alerts.Fact]:
    """Judgements and distances of windows against the baseline. Answers count per version, other
    columns for all versions together."""
    for one in found:
        if one.drift_type != kept.BASELINE:
            continue
        by_version = one.column in shape.outputs and shape.model_id_col is not None
        if (one.version is not None) != by_version:
            continue
        if "drift" in metrics:
            yield _judged(one)
        if "null_share" in metrics:
            yield _nulls(one)
        for name in metrics:
            if name in one.found and name not in ("drift", "null_share"):
                enough = one.judgement.status in ("ok", "drifted")
                yield _fact(
                    one,
                    name,
                    one.found[name].value if enough else None,
                    f"{_whose(one)}{one.column}: {comparisons.NAMES.get(name, name)} "
                    f"{_shown(one.found[name].value)} in {one.key.spoken} "
                    f"({one.n:,} rows)",
                )


def _judged(one: comparisons.Comparison) -> alerts.Fact:
    decisive = one.decisive
    known = one.judgement.status in ("ok", "drifted")
    value = decisive.value if known and decisive else None
    if known and value is None:
        value = 0.0  # well, and no distance stands out
    return alerts.Fact(
        metric="drift",
        column=one.column,
        served_entity=one.version,
        value=value,
        n=one.n,
        window=of_window(one.key),
        text=f"{_whose(one)}{one.text} in {one.key.spoken}",
        granularity=one.key.granularity,
        threshold=decisive.threshold if decisive else None,
        severity=one.judgement.severity if one.judgement.status == "drifted" else None,
        slice=one.key.slice,
    )


def _nulls(one: comparisons.Comparison) -> alerts.Fact:
    value = None
    if one.n >= FEWEST_ROWS and one.null_share is not None:
        value = one.null_share - (one.null_share_baseline or 0.0)
    now, usual = one.null_share or 0.0, one.null_share_baseline or 0.0
    text = (
        f"{_whose(one)}{one.column} is missing in {now:.0%} of {one.n:,} rows in "
        f"{one.key.spoken}, {usual:.1%} in the baseline"
    )
    return _fact(one, "null_share", value, text)


def _fact(one: comparisons.Comparison, metric: str, value: float | None, text: str) -> alerts.Fact:
    return alerts.Fact(
        metric=metric,
        column=one.column,
        served_entity=one.version,
        value=value,
        n=one.n,
        window=of_window(one.key),
        text=text,
        granularity=one.key.granularity,
        slice=one.key.slice,
    )


def _whose(one: comparisons.Comparison) -> str:
    of = f"{one.version}: " if one.version is not None else ""
    return alerts.spoken(one.key.slice) + of


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def quality(
    key: kept.WindowKey,
    groups: Mapping[str | None, metric_rows.TableGroup],
    metrics: Collection[str],
) -> Iterator[alerts.Fact]:
    """Quality metrics of each version."""
    for version, group in groups.items():
        if version is None and len(groups) > 1:
            continue
        for name in metrics:
            found = group.measured.get(name)
            if found is None:
                continue
            n = int(found.get("n") or 0)
            enough = n >= FEWEST_LABELS or name.startswith("label_")
            whose = alerts.spoken(key.slice) + (f"{version}: " if version else "")
            yield alerts.Fact(
                metric=name,
                column=None,
                served_entity=version,
                value=found.get("value") if enough else None,
                n=n,
                window=of_window(key),
                text=f"{whose}{name} is {_shown(found.get('value'))} in "
                f"{key.spoken} ({n:,} labels)",
                granularity=key.granularity,
                slice=key.slice,
            )


# --- serving -------------------------------------------------------------------------------------


def failed() -> pl.Expr:
    """True for a request at whose failure the model or the server is at fault."""
    by_model = pl.col("error_source") == "model"
    return (by_model | (pl.col("status_code") >= 500)).fill_null(False)


def serving(
    key: kept.WindowKey,
    rows: pl.DataFrame,
    shape: watched.Shape,
    columns: Mapping[str, watched.Column],
    metrics: Collection[str],
    known_versions: Iterable[str],
) -> Iterator[alerts.Fact]:
    """Error rate and p99 of each version in one window. `rows`: the window's judged rows."""
    if not {"status_code", "error_source"} <= set(rows.columns):
        return
    requests = rows.unique("databricks_request_id", keep="first", maintain_order=True)
    sent = {name: one for name, one in columns.items() if name not in shape.outputs}
    parts: dict[str | None, pl.DataFrame] = {None: requests}
    if shape.model_id_col is not None:
        split = requests.partition_by(shape.model_id_col, as_dict=True)
        parts = {version: part for (version,), part in split.items() if version is not None}
        parts |= {version: requests.clear() for version in known_versions if version not in parts}
    for version, part in parts.items():
        if "error_rate" in metrics:
            yield _error_rate(key, version, part, sent, requests.height)
        if "p99_ms" in metrics:
            yield _slowness(key, version, part)


def _error_rate(
    key: kept.WindowKey,
    version: str | None,
    rows: pl.DataFrame,
    columns: Mapping[str, watched.Column],
    all_requests: int,
) -> alerts.Fact:
    marked = rows.with_columns(__failed=failed())
    n, events = rows.height, int(marked["__failed"].sum())
    whose = f" of {version}" if version else ""
    enough = n >= FEWEST_REQUESTS
    cut = alerts.spoken(key.slice)
    return alerts.Fact(
        metric="error_rate",
        column=None,
        served_entity=version,
        value=events / n if enough else None,
        n=n,
        window=of_window(key),
        text=f"{cut}{events:,} of {n:,} requests{whose} failed ({events / max(n, 1):.1%}) in "
        f"{key.spoken}"
        if n
        else f"{cut}no requests{whose} in {key.spoken}",
        granularity=key.granularity,
        certain=wilson_low(events, n) if enough else None,
        explanation=explained(marked, columns) if events else None,
        idle=n == 0 and all_requests >= FEWEST_REQUESTS,
        slice=key.slice,
    )


def _slowness(key: kept.WindowKey, version: str | None, rows: pl.DataFrame) -> alerts.Fact:
    value = None
    if rows.height >= FEWEST_REQUESTS and "execution_duration_ms" in rows.columns:
        value = rows["execution_duration_ms"].quantile(0.99, "linear")
    whose = f" of {version}" if version else ""
    cut = alerts.spoken(key.slice)
    return alerts.Fact(
        metric="p99_ms",
        column=None,
        served_entity=version,
        value=value,
        n=rows.height,
        window=of_window(key),
        text=f"{cut}p99 of the model time{whose} is {_shown(value)} ms in {key.spoken} "
        f"({rows.height:,} requests)",
        granularity=key.granularity,
        slice=key.slice,
    )


def explained(rows: pl.DataFrame, columns: Mapping[str, watched.Column]) -> str | None:
    """Which values of one request column the failures fall on: `By carrier: MQ 4 of 5, AA 2 of 3.`

    The column is the one with the strongest association (Cramér's V, corrected for the number of
    values after Bergsma 2013, so that a column of ids explains nothing)."""
    best: tuple[float, str] | None = None
    for name, column in columns.items():
        if column.kind == "categorical" and name in rows.columns:
            strength = _association(rows, name)
            if strength > 0 and (best is None or strength > best[0]):
                best = (strength, name)
    if best is None:
        return None
    worst = (
        rows.group_by(best[1])
        .agg(events=pl.col("__failed").sum(), n=pl.len())
        .filter(pl.col("events") > 0)
        .sort(["events", best[1]], descending=[True, False])
        .head(MOST_VALUES)
    )
    shown = ", ".join(
        f"{'null' if value is None else value} {events:,} of {n:,}"
        for value, events, n in worst.select(best[1], "events", "n").iter_rows()
    )
    return f"By {best[1]}: {shown}."


def _association(rows: pl.DataFrame, name: str) -> float:
    counts = rows.group_by(name).agg(events=pl.col("__failed").sum(), n=pl.len())
    n, events = rows.height, int(counts["events"].sum())
    values = counts.height
    if values < 2 or events in (0, n) or n < 2:
        return 0.0
    share = events / n
    squares = ((counts["events"] - counts["n"] * share) ** 2 / counts["n"]).sum()
    phi2 = float(squares) / (n * share * (1 - share))
    corrected = max(0.0, phi2 - (values - 1) / (n - 1))
    values_corrected = values - (values - 1) ** 2 / (n - 1)
    smaller = min(values_corrected, 2 - 1 / (n - 1)) - 1
    return math.sqrt(corrected / smaller) if smaller > 0 else 0.0


def feature_age(rows: pl.DataFrame, column: str, until: datetime) -> alerts.Fact:
    """Age of a looked-up time in the newest rows: median over five of request time - column."""
    value, n = None, 0
    window: tuple[str, str] | None = None
    if column in rows.columns and "__time" in rows.columns:
        known = rows.select("__time", at=intake.as_times(rows[column])).drop_nulls()
        newest = known.filter(pl.col("__time") <= until).sort("__time").tail(NEWEST_FOR_AGE)
        n = newest.height
        if n:
            ages = (newest["__time"] - newest["at"]).dt.total_microseconds() / 3.6e9
            median = ages.median()
            value = float(median) if isinstance(median, (int, float)) else None
            ends = newest["__time"]
            window = (ends[0].isoformat(), ends[-1].isoformat())
    return alerts.Fact(
        metric="feature_age_hours",
        column=column,
        served_entity=None,
        value=value,
        n=n,
        window=window,
        text=f"{column} is {_shown(value)} hours older than the newest requests",
    )


def capture_lag(run_dir: Path, now_ms: int) -> alerts.Fact:
    """Seconds since the last commit while requests wait in the log; 0 when none waits."""
    value = None
    try:
        note = orjson.loads((run_dir / "committed.json").read_bytes())
        newest = max((t["last_commit_ms"] for t in note["tables"].values()), default=now_ms)
        waiting = note["backlog_bytes"] > 0
        value = max(0.0, (now_ms - newest) / 1000) if waiting else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        value = None
    return alerts.Fact(
        metric="capture_lag_seconds",
        column=None,
        served_entity=None,
        value=value,
        n=1,
        window=None,
        text=f"the record is {_shown(value)} seconds behind",
    )
