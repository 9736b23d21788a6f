"""Are the numbers of the demo right? Recomputed from its Delta tables with scipy and scikit-learn.

    python benchmarks/demo/recompute.py [--data-dir ./inferlake-demo]

No module of this project takes part. Three things are computed anew from the recorded rows and the
labels, and compared with what was stored beside them: the estimate of every decision of the first
experiment, the drift of every week and column against the baseline, and the quality of every week
and version. Prints one table; exit status 1 if a difference is larger than its bound.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import distance
from sklearn import metrics

Floats = NDArray[np.float64]

SCHEMA = Path("tables/main/flights")
MONITORED, LABELS = "flight_delay_unpacked", "flight_delay_labels"
VERSION = "served_entity_name"
CHAMPION, CHALLENGER = "v1", "v2"
FIRST = 1  # number of the experiment
WINDOW = timedelta(hours=24)  # of the labels, as the experiment's policy has it
TAU, ALPHA = 0.03, 0.05
PSI_FLOOR = 1e-4  # of a share, so that an empty bin gives no infinity
ROUNDING = 1e-6  # on top of a bound that is stored

# What is promised of profiles against raw values; a bound stored beside the value takes its place.
NUMERIC = dict.fromkeys(("ks", "wasserstein_normed"), 0.002)
NUMERIC |= dict.fromkeys(("psi", "js_distance", "tv_distance"), 0.005)
CATEGORICAL = {"chi_squared": 1e-5, "js_distance": 1e-6, "tv_distance": 1e-6}
QUALITY = {"labelled rows": 0.0, "accuracy": 1e-9, "log loss": 1e-9, "ROC AUC": 0.001}


@dataclass(slots=True)
class Check:
    """One line of the printed table. A value that one side alone has differs by infinity."""

    what: str
    bound: str
    compared: int = 0
    largest: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.compared > 0 and not self.failures


class Report:
    """The lines of the table."""

    def __init__(self) -> None:
        self.checks: dict[str, Check] = {}

    def compare(
        self,
        what: str,
        where: str,
        computed: float | None,
        stored: float | None,
        allowed: float,
        relative: bool = False,
        stated: bool = False,
    ) -> None:
        """Count one pair of values. `stated`: `allowed` was stored beside this very value. Two
        undefined values agree, and are not counted."""
        kind = "as stored" if stated else f"{allowed:g}{' relative' if relative else ''}"
        check = self.checks.setdefault(f"{what}|{stated}", Check(what, kind))
        if computed is None and stored is None:
            return
        check.compared += 1
        apart = inf if computed is None or stored is None else abs(computed - stored)
        if relative and apart and computed:
            apart /= abs(computed)
        check.largest = max(check.largest, apart)
        if not apart <= allowed:
            check.failures.append(f"{where}: computed {computed}, stored {stored}")

    def print(self) -> bool:
        """The table, then what failed; True if nothing did."""
        print(f"{'what':36}  {'compared':>8}  {'largest difference':>18}  {'bound':14}")
        for check in sorted(self.checks.values(), key=lambda check: check.what):
            verdict = "ok" if check.ok else f"FAIL ({len(check.failures)})"
            numbers = f"{check.compared:8,}  {check.largest:18.3g}"
            print(f"{check.what:36}  {numbers}  {check.bound:14}  {verdict}")
        failed = [check for check in self.checks.values() if not check.ok]
        for check in failed:
            for failure in check.failures[:5] or ["nothing to compare"]:
                print(f"  {check.what}, {failure}")
        return not failed


def read(data_dir: Path, name: str, version: int | None = None) -> pl.DataFrame:
    """A Delta table of the demo, as it is or as it was at a commit version."""
    return pl.read_delta(str(data_dir / SCHEMA / name), version=version)


def labelled(rows: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """The recorded rows with `label` (0, 1 or null) and `label_time`. The newest label counts."""
    keys = ["client_request_id", "row_index"]
    newest = labels.sort("received_time").unique(keys, keep="last")
    chosen = newest.select(*keys, pl.col("label").cast(pl.Float64), "label_time")
    return rows.join(chosen, on=keys, how="left")


# The experiment


def experiment(report: Report, data_dir: Path) -> None:
    """Every decision of the first experiment: label counts, effect and interval of the log loss.

    Each is computed from the tables as they were at the commit versions that it names: labels
    that were committed a moment later are older than decisions that could not know them."""
    decisions = read(data_dir, "flight_delay_decisions").filter(
        pl.col("experiment") == FIRST,
        pl.col("challenger") == CHALLENGER,
        pl.col("kind") == "full",
    )
    for row in decisions.sort("decided_time").iter_rows(named=True):
        moment, stored = row["decided_time"], json.loads(row["decision"])["metrics"]["log_loss"]
        rows = read(data_dir, MONITORED, row["unpacked_commit_version"])
        labels = read(data_dir, LABELS, row["labels_commit_version"])
        seen = judged(labelled(rows, labels), moment)
        where = f"{moment:%Y-%m-%d %H:%M}"
        for version in (CHAMPION, CHALLENGER):
            count = seen.filter(pl.col(VERSION) == version).height
            report.compare("experiment: labels", where, count, stored["n"][version], 0.0)
        effect, low, high = estimate(seen)
        ends = stored["interval"] or (None, None)
        report.compare("experiment: effect", where, effect, stored["effect"], 1e-9, relative=True)
        for end, kept in zip((low, high), ends, strict=True):
            report.compare("experiment: interval", where, end, kept, 1e-6, relative=True)


def judged(rows: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    """Drawn, answered and labelled rows whose time for a label was over at this moment."""
    return rows.filter(
        pl.col(VERSION).is_in([CHAMPION, CHALLENGER]),
        pl.col("route_split").is_not_null(),
        pl.col("status_code") < 500,
        pl.col("error_source").fill_null("") != "model",
        pl.col("prediction").is_not_null(),
        pl.col("label").is_not_null(),
        pl.col("event_time") <= moment - WINDOW,
        pl.col("label_time") <= moment,
        pl.col("label_time") - pl.col("event_time") <= WINDOW,
    )


def estimate(rows: pl.DataFrame) -> tuple[float | None, float | None, float | None]:
    """Effect, low and high end of the always-valid interval.

    Mantel-Haenszel over strata of UTC day and split; the larger of the pooled and the robust
    standard error, times the root of the design effect of units that come back."""
    strata = rows.with_columns(
        y=pl.when(pl.col("label") == 1)
        .then(-pl.col("score").log())
        .otherwise(-(1 - pl.col("score")).log()),
        challenger=(pl.col(VERSION) == CHALLENGER).cast(pl.Float64),
        day=pl.col("event_time").dt.date(),
    ).partition_by("day", "route_split")
    weight = moved = pooled = 0.0
    parts: list[tuple[Floats, Floats, float, pl.Series]] = []
    for stratum in strata:
        c, y, n = stratum["challenger"].to_numpy(), stratum["y"].to_numpy(), stratum.height
        n1 = float(c.sum())
        if not 0 < n1 < n:
            continue
        h = n1 * (n - n1) / n
        weight += h
        moved += h * float(y[c == 1].mean() - y[c == 0].mean())
        pooled += h * float(y.var(ddof=1))
        parts.append((c - c.mean(), y - y.mean(), sqrt(n / (n - 1)), stratum["unit_id"]))
    if not weight:
        return None, None, None
    effect = moved / weight
    u = np.concatenate([c * (y - effect * c) * root for c, y, root, _ in parts])
    units = np.unique(pl.concat([part[3] for part in parts]).to_numpy(), return_inverse=True)[1]
    by_unit = np.bincount(units, u)
    squares = float(u @ u)
    design = max(1.0, float(by_unit @ by_unit) / squares) if squares else 1.0
    se = max(sqrt(pooled), sqrt(squares)) / weight * sqrt(design)
    if not se:
        return effect, None, None
    r = (TAU / se) ** 2
    half = se * sqrt((1 + 1 / r) * log((1 + r) / ALPHA**2))
    return effect, effect - half, effect + half


# Drift


def drift(
    report: Report, rows: pl.DataFrame, reference: pl.DataFrame, stored: pl.DataFrame
) -> None:
    """Every week and column, all versions together, against the baseline."""
    together = stored.filter(pl.col("drift_type") == "BASELINE", pl.col(VERSION).is_null())
    weeks = {
        start: rows.filter(pl.col("event_time") >= start, pl.col("event_time") < end)
        for start, end in together.select(pl.col("window").struct.unnest()).unique().iter_rows()
    }
    for row in together.sort(pl.col("window").struct.field("start")).iter_rows(named=True):
        start, column, kind = row["window"]["start"], row["column_name"], row["kind"]
        current = of_versions_with(rows, weeks[start], column)
        where = f"{start:%Y-%m-%d} {column}"
        report.compare("drift: rows", where, current.len(), row["n"], 0.0)
        base, week = reference[column].drop_nulls(), current.drop_nulls()
        if kind == "numeric":
            found = numeric(week.to_numpy(), base.to_numpy())
            values = table_values(row, float(base.to_numpy().std()))
            tolerances = NUMERIC
        else:
            found, values, tolerances = categorical(week, base), table_values(row, 1), CATEGORICAL
        for name, tolerance in tolerances.items():
            relative = name == "chi_squared"
            bounds = json.loads(row["bounds"])
            stated = name in bounds
            allowed = bounds[name] + ROUNDING if stated else tolerance
            given = (where, found.get(name), values[name], allowed, relative, stated)
            report.compare(f"drift: {kind} {name}", *given)


def of_versions_with(rows: pl.DataFrame, week: pl.DataFrame, column: str) -> pl.Series:
    """The week's values of a column. Rows of a version that never, in any week, had a value of it
    do not count: that version does not use the feature."""
    users = rows.filter(pl.col(column).is_not_null())[VERSION].unique()
    return week.filter(pl.col(VERSION).is_in(users.implode()))[column]


def table_values(row: dict[str, Any], deviation: float) -> dict[str, float | None]:
    """The stored distances by name; Wasserstein in standard deviations of the baseline."""
    ks, chi_squared, moved = row["ks_test"], row["chi_squared_test"], row["wasserstein_distance"]
    return {
        "ks": ks["statistic"] if ks else None,
        "wasserstein_normed": None if moved is None else moved / deviation,
        "psi": row["population_stability_index"],
        "chi_squared": chi_squared["statistic"] if chi_squared else None,
        "js_distance": row["js_distance"],
        "tv_distance": row["tv_distance"],
    }


def numeric(week: Floats, base: Floats) -> dict[str, float]:
    """The distances of two samples; none where the week has no value."""
    if not len(week):
        return {}
    p, q = (np.maximum(shares(side, base, 10), PSI_FLOOR) for side in (week, base))
    thirtieths = [shares(side, base, 30) for side in (week, base)]
    return {
        "ks": float(stats.ks_2samp(week, base, method="asymp").statistic),
        "wasserstein_normed": float(stats.wasserstein_distance(week, base) / base.std()),
        "psi": float(((p - q) * np.log(p / q)).sum()),
        "js_distance": float(distance.jensenshannon(*thirtieths, base=2)),
        "tv_distance": float(np.abs(thirtieths[0] - thirtieths[1]).sum() / 2),
    }


def shares(values: Floats, base: Floats, parts: int) -> Floats:
    """Shares of the values between the quantiles of the baseline; one on an edge lies below."""
    edges = np.unique(np.quantile(base, np.arange(1, parts) / parts))
    found = np.searchsorted(edges, values, side="left")
    return np.bincount(found, minlength=len(edges) + 1) / len(values)


def categorical(week: pl.Series, base: pl.Series) -> dict[str, float]:
    """The distances of the two columns of counts; none where the week has no value."""
    if not len(week):
        return {}
    counts = [side.value_counts(name="n").rename({side.name: "value"}) for side in (week, base)]
    both = counts[0].join(counts[1], on="value", how="full", suffix="_base").fill_null(0)
    table = both.select("n", "n_base").to_numpy().T
    p, q = table / table.sum(axis=1, keepdims=True)
    return {
        "chi_squared": float(stats.chi2_contingency(table).statistic),
        "js_distance": float(distance.jensenshannon(p, q, base=2)),
        "tv_distance": float(np.abs(p - q).sum() / 2),
    }


# Quality


def quality(report: Report, rows: pl.DataFrame, stored: pl.DataFrame) -> None:
    """Every week and version, and all versions together."""
    whole = stored.filter(pl.col("column_name") == ":table", pl.col("log_type") == "INPUT")
    for row in whole.sort(pl.col("window").struct.field("start")).iter_rows(named=True):
        span, version = row["window"], row[VERSION]
        of_group = rows.filter(
            pl.col("event_time") >= span["start"],
            pl.col("event_time") < span["end"],
            pl.lit(True) if version is None else pl.col(VERSION) == version,
        )
        where = f"{span['start']:%Y-%m-%d} {version or 'all versions'}"
        report.compare("quality: rows", where, of_group.height, row["count"], 0.0)
        found = scored(of_group.drop_nulls(["prediction", "label"]))
        realized = json.loads(row["quality"])["realized"]
        area_bound = realized["roc_auc"].get("bound")
        values = {
            "labelled rows": realized["accuracy"]["n"],
            "accuracy": row["accuracy_score"],
            "log loss": row["log_loss"],
            "ROC AUC": (row["roc_auc_score"] or {}).get("macro"),
        }
        for name, tolerance in QUALITY.items():
            if found.get(name) is None and values[name] is None:
                continue  # one class alone: both say that there is none
            stated = name == "ROC AUC" and area_bound is not None
            allowed = area_bound + ROUNDING if stated else tolerance
            given = (where, found.get(name), values[name], allowed)
            report.compare(f"quality: {name}", *given, stated=stated)


def scored(rows: pl.DataFrame) -> dict[str, float | None]:
    """What scikit-learn says of labelled rows; ROC AUC only where both classes are there."""
    if not rows.height:
        return {"labelled rows": 0.0}
    label, score = rows["label"].to_numpy(), rows["score"].to_numpy()
    area = float(metrics.roc_auc_score(label, score)) if len(np.unique(label)) == 2 else None
    return {
        "labelled rows": float(rows.height),
        "accuracy": float(metrics.accuracy_score(label, rows["prediction"].to_numpy())),
        "log loss": float(metrics.log_loss(label, score, labels=[0.0, 1.0])),
        "ROC AUC": area,
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Recompute the numbers of the demo.")
    parser.add_argument("--data-dir", type=Path, default=Path("inferlake-demo"))
    data_dir = parser.parse_args(arguments).data_dir
    if not (data_dir / SCHEMA / MONITORED).is_dir():
        print(f"{data_dir} holds no tables of the demo: {SCHEMA / MONITORED} is missing there.")
        return 2
    report = Report()
    experiment(report, data_dir)
    rows, reference = read(data_dir, MONITORED), read(data_dir, "flight_delay_baseline")
    drift(report, rows, reference, read(data_dir, f"{MONITORED}_drift_metrics"))
    with_labels = labelled(rows, read(data_dir, LABELS))
    quality(report, with_labels, read(data_dir, f"{MONITORED}_profile_metrics"))
    return 0 if report.print() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
