"""Numbers, times and codes as a person reads them: unit, sign and time zone said. Pure."""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

NOTHING = "–"
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:&^=])")

DISTANCES = {
    "ks": "Kolmogorov-Smirnov distance",
    "wasserstein": "Wasserstein distance",
    "wasserstein_normed": "Wasserstein distance in standard deviations",
    "psi": "PSI",
    "js_distance": "Jensen-Shannon distance",
    "tv_distance": "total variation distance",
    "l_infinity_distance": "largest difference of one share",
    "chi_squared": "chi-squared statistic",
    "cramers_v": "Cramér's V",
}
METRICS = {
    "roc_auc": "AUC",
    "auc": "AUC",
    "accuracy": "accuracy",
    "log_loss": "log loss",
    "brier": "Brier score",
    "error_rate": "error rate",
    "latency_p95": "latency p95",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "rmse": "root mean squared error",
    "f1": "F1",
    "p99_ms": "latency p99",
    "capture_lag_seconds": "capture lag",
    "null_share": "share of nulls",
    "feature_age_hours": "age of a looked-up feature",
    "drift": "drift",
}
RATES = ("accuracy", "recall", "precision", "error_rate")
REASONS = {
    "no_data": "no request of this experiment has arrived",
    "sample_ratio": "the observed split is not the configured one",
    "labels_uneven": "one version receives fewer labels than the other",
    "no_labels": "a version has no label yet",
    "min_labels": "too few labels",
    "zero_variance": "all values are equal",
    "labels_immature": "many labels are still on their way",
    "worse": "the challenger is worse",
    "slice_regression": "worse in a slice",
    "min_hours": "the agreed running time is not over",
    "fading": "the effect shrinks with time",
    "better": "the challenger is better",
    "not_worse": "the challenger is not worse",
    "below_mde": "a gain that is worth a change is ruled out",
    "undecided": "the interval still holds both answers",
    "lost_to": "another challenger is better",
}
STATUSES = {
    "ok": "within its limits",
    "drifted": "drifted",
    "not_enough_data": "not enough rows to judge",
    "undefined": "cannot be computed",
}
ACTIONS = {
    "promote": "Promote",
    "roll_back": "Roll back",
    "hold": "Hold",
    "keep_collecting": "Keep collecting",
}


def plain(text: object) -> str:
    """Text of unknown origin for a place that reads Markdown: shown as it stands, on one line."""
    return MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def cut(text: str, longest: int) -> str:
    """One line of at most `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def moment(value: object) -> datetime | None:
    """Aware UTC time of RFC 3339 text or of unix milliseconds; None where it is neither."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value / 1000, UTC)
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def clock(value: object) -> str:
    """A time with day and zone: `8 Oct 2013 14:00 UTC`."""
    at = moment(value) if not isinstance(value, datetime) else value
    return NOTHING if at is None else f"{at.day} {at:%b %Y %H:%M} UTC"


def day(value: object) -> str:
    """A UTC day: `8 Oct 2013`."""
    at = moment(value) if not isinstance(value, datetime) else value
    return NOTHING if at is None else f"{at.day} {at:%b %Y}"


def window(bounds: Iterable[object]) -> str:
    """A half-open window: one day is named once, anything else by both ends."""
    ends = [moment(bound) for bound in bounds]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return NOTHING
    start, end = ends[0], ends[1]
    seconds = (end - start).total_seconds()
    if seconds == 86_400 and start.hour == start.minute == 0:
        return day(start)
    if seconds < 86_400:
        return f"{day(start)} {start:%H:%M} to {end:%H:%M} UTC"
    return f"{day(start)} to {day(end)}"


def duration(seconds: float | None) -> str:
    """A length of time in the unit that reads best: `1.2 s`, `14 min`, `31 h`, `3 days`."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200 and seconds != 3_600:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} days"


def ago(value: object, now: datetime) -> str:
    """How long before `now`: `3 min ago`; the time itself where it is more than a week."""
    at = moment(value) if not isinstance(value, datetime) else value
    if at is None:
        return NOTHING
    seconds = (now - at).total_seconds()
    return f"{duration(seconds)} ago" if 0 <= seconds < 7 * 86_400 else clock(at)


def count(value: object) -> str:
    """A whole number with separators: `14,200`."""
    number = figure(value)
    if number is None:
        return NOTHING
    return f"{number:,.0f}" if abs(number) < 1e15 else f"{number:.3g}"


def age_of_id(request_id: str, now: datetime) -> float:
    """Seconds since a request with this id came in; of what is no UUIDv7: infinite."""
    try:
        given = UUID(request_id)
    except ValueError:
        return math.inf
    if given.version != 7:
        return math.inf
    return now.timestamp() - (given.int >> 80) / 1000


def several(number: float, thing: str) -> str:
    """`1 rule`, `3 rules`."""
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"


def amount(value: object, unit: str = "") -> str:
    """Three significant digits and the unit; very large and small ones in powers of ten."""
    number = figure(value)
    if number is None:
        return NOTHING
    size = abs(number)
    if size >= 1000:
        text = f"{number:,.0f}" if size < 1e9 else f"{number:.3g}"
    elif size >= 100:
        text = f"{number:.0f}"
    elif size >= 10:
        text = f"{number:.1f}"
    elif size >= 0.001 or size == 0:
        text = f"{number:.{2 if size >= 1 else 3}f}".rstrip("0").rstrip(".") if size else "0"
    else:
        text = f"{number:.2g}"
    return f"{text} {unit}".rstrip()


def signed(value: object, like: float | None = None) -> str:
    """A difference: its sign is always said. like: a number whose decimals are taken."""
    number = figure(value)
    if number is None:
        return NOTHING
    size = abs(number if like is None else like)
    if size == 0:
        return "0"
    if size >= 100:
        return f"{number:+,.0f}" if size < 1e9 else f"{number:+.3g}"
    return (
        f"{number:+.3f}" if size >= 0.01 else f"{number:+.4f}" if size >= 5e-5 else f"{number:+.1e}"
    )


def interval(bounds: object) -> str:
    """`[-0.158, -0.019]`, or a dash where there is none."""
    ends = pair(bounds)
    if ends is None:
        return NOTHING
    widest = max(ends, key=abs)
    return f"[{signed(ends[0], widest)}, {signed(ends[1], widest)}]"


def percent(share: object, digits: int | None = None) -> str:
    """A share 0..1 as a percentage: `62 %`, `0.27 %`."""
    number = figure(share)
    value = None if number is None else figure(number * 100)
    if value is None:
        return NOTHING
    if digits is None:
        digits = 0 if abs(value) >= 10 or value == 0 else 1 if abs(value) >= 1 else 2
    return f"{value:.{digits}f} %"


def split(routes: Iterable[tuple[str, float]]) -> str:
    """`v1 90 %, v2 10 %`, largest first; versions without traffic last and named so."""
    ordered = sorted(routes, key=lambda route: (-route[1], route[0]))
    return ", ".join(f"{name} {share:g} %" for name, share in ordered) or NOTHING


def figure(value: object) -> float | None:
    """A finite number, else None: missing stays missing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value == value and abs(value) != float("inf") else None


def pair(bounds: object) -> tuple[float, float] | None:
    """Both ends of an interval as numbers, else None."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return None
    low, high = figure(bounds[0]), figure(bounds[1])
    return None if low is None or high is None else (low, high)


def metric(name: str) -> str:
    """A metric or distance by its name in a sentence."""
    return METRICS.get(name) or DISTANCES.get(name) or name.replace("_", " ")


def reason(code: str) -> str:
    """A reason of a decision in words; slices and guardrails keep their name."""
    head, _, tail = code.partition(":")
    words = REASONS.get(head)
    if words is None:
        return f"{metric(head)} crossed its limit"
    return f"{words} ({tail})" if tail else words


def status(cell: Mapping[str, Any]) -> str:
    """The judgement on a column and window in a few words."""
    given = str(cell.get("status") or "undefined")
    return STATUSES.get(given, given)


def statistic(cell: Mapping[str, Any]) -> str:
    """The judgement on a column and window in a sentence: value, threshold, both row counts."""
    rows = f"{count(cell.get('n'))} rows against {count(cell.get('n_baseline'))}"
    name, value = cell.get("metric"), figure(cell.get("value"))
    if cell.get("text"):  # the server's own words know every limit, the baseline's windows too
        return f"{cell['text']}; {count(cell.get('n_baseline'))} rows in the baseline."
    if value is None or not name:
        return f"No answer: {status(cell)}; {rows}."
    said = f"{metric(str(name))} {amount(value)}, threshold {amount(cell.get('threshold'))}"
    bound = figure(cell.get("bound"))
    if bound:
        said += f" (known to {amount(bound)})"
    return f"{said[0].upper()}{said[1:]}; {rows}."
