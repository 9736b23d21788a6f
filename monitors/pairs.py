"""Two versions asked the same requests, in the shadow or in a replay: which answers better?

Every request has both answers, so the gain is measured within requests: no strata, no sample
ratio. It is ready for the first step of a ramp at most, never promoted: a label may depend on the
answer that was really given, and behind a copy waits no user. Source: experiments.md, "Mirror
(shadow) and replay".
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import ceil, isfinite, log, sqrt
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, cells, measures, policies, sequential

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

SIDES = ("champion", "challenger")
UNPAIRED = ("auc", "precision")  # of all answers together, not of one request
SAME = 1e-9  # relative difference up to which two numbers are the same answer


@dataclass(frozen=True, slots=True)
class Answers:
    """One version's answers: its failures, and the column of any name as its own."""

    side: str
    frame: pl.DataFrame
    labelled: Flags
    failed: Flags

    def column(self, name: str, rows: Ints) -> pl.Series:
        """The values of a column at these positions: the version's where it has one of its own."""
        own = f"{self.side}_{name}"
        return cells.column(self.frame, own if own in self.frame.columns else name).gather(rows)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean gain per request (good direction positive) of n requests in which both have a value."""

    n: int
    units: int
    value: dict[str, float]
    gain: float
    se: float | None
    interval: tuple[float, float] | None
    design_effect: float
    log_e: float | None
    log_e_better: float | None
    log_e_worse: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the pairs say. action: ready, hold or keep_collecting. agreement: share of the requests
    that both answered in which they answered the same."""

    action: str
    reasons: list[str]
    summary: str
    champion: str
    challenger: str
    now: datetime
    requests: int
    dropped: int
    agreement: float | None
    error_rate: dict[str, float | None]
    errors_log_e_worse: float | None
    latency_ms: dict[str, float | None]
    metric: Difference | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; now as RFC 3339."""
        found = asdict(self)
        found["now"] = self.now.isoformat().replace("+00:00", "Z")
        if self.metric is not None and self.metric.interval is not None:
            found["metric"]["interval"] = list(self.metric.interval)
        return found


def evaluate(
    rows: pl.DataFrame, policy: Mapping[str, Any] | policies.Policy, now: datetime
) -> Outcome:
    """One row per request: request_time, request_id, unit_id, label, label_time and, for either
    side, champion_ or challenger_ prediction, score, status_code, latency_ms. A challenger without
    a status was never asked: a dropped copy.

    Raises ValueError on a bad policy: the versions have to be named, and an AUC or a precision is
    not a mean over requests."""
    if not isinstance(policy, policies.Policy):
        policy = policies.Policy.parse(policy)
    if policy.champion is None or policy.challenger is None:
        raise ValueError("policy: champion and challenger are missing; name both versions.")
    if policy.primary.kind == "auc" or policy.primary.name in UNPAIRED:
        raise ValueError(
            f"policy.primary.name: '{policy.primary.name}' is no mean over requests; take "
            "accuracy, recall, or a loss."
        )
    at = arms.microseconds(now)
    known = rows.filter(cells.instants(cells.column(rows, "request_time")) <= at)
    known = known.unique("request_id", keep="first", maintain_order=True)
    asked = known.filter(cells.column(known, "challenger_status_code").is_not_null())
    with np.errstate(over="ignore", invalid="ignore"):
        sides = [_answers(asked, side, at) for side in SIDES]
        return _outcome(asked, sides, known.height - asked.height, policy, now)


def _answers(asked: pl.DataFrame, side: str, now: int) -> Answers:
    status = cells.numbers(cells.column(asked, f"{side}_status_code"))
    told = (cells.instants(cells.column(asked, "label_time")) <= now).fill_null(False).to_numpy()
    there = cells.present(cells.column(asked, f"{side}_prediction"))
    labelled = (status < 500) & there & told & cells.present(cells.column(asked, "label"))
    return Answers(side, asked, labelled, status >= 500)


def _outcome(
    asked: pl.DataFrame,
    sides: list[Answers],
    dropped: int,
    policy: policies.Policy,
    now: datetime,
) -> Outcome:
    champion, challenger = str(policy.champion), str(policy.challenger)
    metric = _difference(asked, sides, policy)
    worse = _more_errors(sides, policy)
    failing = worse is not None and worse >= log(1 / policy.crossing_alpha)
    hours = _hours(asked, sides)
    action, reason = _verdict(metric, failing, hours, asked.height, policy)
    names = dict(zip(SIDES, (champion, challenger), strict=True))
    return Outcome(
        action=action,
        reasons=[reason],
        summary=_summary(action, reason, metric, asked.height, policy),
        champion=champion,
        challenger=challenger,
        now=now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC),
        requests=asked.height,
        dropped=dropped,
        agreement=_agreement(asked, sides),
        error_rate={names[s.side]: _mean(s.failed.astype(float)) for s in sides},
        errors_log_e_worse=worse,
        latency_ms={names[s.side]: _latency(s, asked.height) for s in sides},
        metric=metric,
    )


def _difference(
    asked: pl.DataFrame, sides: list[Answers], policy: policies.Policy
) -> Difference | None:
    metric = policy.primary
    found = [measures.sample(side, metric) for side in sides]
    rows, first, second = np.intersect1d(found[0].rows, found[1].rows, return_indices=True)
    n = len(rows)
    if n == 0:
        return None
    y0, y1 = found[0].values[first], found[1].values[second]
    d = metric.sign * (y1 - y0)
    gain = float(d.mean())
    units = cells.texts(cells.column(asked, "unit_id")).gather(rows)
    alone = units.is_null().to_numpy()
    u = d - gain
    squares = float(np.dot(u, u))
    code = np.unique(units.drop_nulls().hash().to_numpy(), return_inverse=True)[1]
    per_unit = np.bincount(code, u[~alone]) if len(code) else np.empty(0)
    clustered = float(np.dot(per_unit, per_unit)) + float(np.dot(u[alone], u[alone]))
    design = max(1.0, clustered / squares) if squares > 0 else 1.0
    se = _standard_error(d, squares, metric.kind == "binary") * sqrt(design)
    known = isfinite(gain) and isfinite(se) and se > 1e-12 * abs(gain) and metric.mde is not None
    evidence = interval = None
    if known and metric.mde is not None:
        half = sequential.half_width(se, metric.mde, policy.decisive_alpha)
        interval = (gain - half, gain + half)
        evidence = sequential.evidence(gain, se, metric.mde)
    return Difference(
        n=n,
        units=len(per_unit) + int(alone.sum()),
        value={str(policy.champion): float(y0.mean()), str(policy.challenger): float(y1.mean())},
        gain=gain,
        se=se if known else None,
        interval=interval,
        design_effect=design,
        log_e=None if evidence is None else evidence.two_sided,
        log_e_better=None if evidence is None else evidence.better,
        log_e_worse=None if evidence is None else evidence.worse,
    )


def _standard_error(d: Floats, squares: float, binary: bool) -> float:
    """Of the mean of d; right and wrong answers that never differ may still do so once."""
    n = len(d)
    se = sqrt(squares / max(n - 1, 1) / n)
    if binary and se == 0:
        p = (float(np.abs(d).sum()) + 1) / (n + 2)
        return sqrt(p * (1 - p) / n)
    return se


def _more_errors(sides: list[Answers], policy: policies.Policy) -> float | None:
    """ln e-value of "the challenger fails more often than the margin allows": of the requests in
    which exactly one failed, does it hold more than its odds?"""
    guardrail = next((g for g in policy.guardrails if g.kind == "error_rate"), None)
    champion, challenger = (side.failed for side in sides)
    if guardrail is None or len(champion) == 0:
        return None
    p0 = (int(champion.sum()) + 0.5) / (len(champion) + 1)
    odds = (p0 + guardrail.margin) / p0
    ones, zeros = int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
    return sequential.tilted([odds / (odds + 1)], [ones], [zeros], sequential.UPWARDS)


def _verdict(
    found: Difference | None, failing: bool, hours: int, requests: int, policy: policies.Policy
) -> tuple[str, str]:
    """The first rule that applies."""
    metric = policy.primary
    if requests == 0:
        return "keep_collecting", "no_data"
    if failing:
        return "hold", "error_rate"
    if found is None:
        return "keep_collecting", "no_labels"
    if found.n < policy.labels_needed(metric) or found.units < policy.min_units:
        return "keep_collecting", "min_labels"
    if found.interval is None:
        return "keep_collecting", "zero_variance"
    low, high = found.interval
    if high < metric.bound:
        return "hold", "worse"
    if hours < policy.min_hours:
        return "keep_collecting", "min_hours"
    if low > metric.bound:
        return "ready", "better" if metric.mode == "superiority" else "not_worse"
    if metric.mode == "superiority" and metric.mde is not None and high < metric.mde:
        return "hold", "below_mde"
    return "keep_collecting", "undecided"


def _summary(
    action: str, reason: str, found: Difference | None, requests: int, policy: policies.Policy
) -> str:
    lead = {"ready": "Ready for a first share", "hold": "Hold"}.get(action, "Keep collecting")
    pair = f"{policy.challenger} against {policy.champion} on the same {requests:,} requests"
    if found is None or found.interval is None:
        return f"{lead}: {pair}, {reason}."
    low, high = found.interval
    return (
        f"{lead}: {pair}, {policy.primary.name} {found.gain:+.4g} [{low:+.4g}, {high:+.4g}] in the "
        f"good direction from {found.n:,} labels, {reason}."
    )


def _agreement(asked: pl.DataFrame, sides: list[Answers]) -> float | None:
    both = [cells.column(asked, f"{side.side}_prediction") for side in sides]
    there = cells.present(both[0]) & cells.present(both[1]) & ~sides[0].failed & ~sides[1].failed
    return _mean(same(both[0], both[1])[there].astype(float))


def same(one: pl.Series, other: pl.Series) -> Flags:
    """Where two versions answered the same: texts are equal, and numbers but for the last digits,
    their own or those of a usual answer: these depend on who else was in a micro-batch
    (serving.md, fact 10)."""
    if not (cells.numeric(one.dtype) and cells.numeric(other.dtype)):
        return cells.equal(one, other)
    both = cells.numbers(one), cells.numbers(other)
    sizes = np.abs(np.concatenate(both))
    sizes = sizes[~np.isnan(sizes)]
    usual = float(np.median(sizes)) if len(sizes) else 0.0
    return np.isclose(*both, rtol=SAME, atol=SAME * usual)


def _latency(side: Answers, count: int) -> float | None:
    """The 95 % quantile of answered requests."""
    ms = cells.numbers(side.column("latency_ms", np.arange(count)))
    ms = ms[~side.failed & ~np.isnan(ms)]
    return float(np.quantile(ms, 0.95)) if len(ms) else None


def _hours(asked: pl.DataFrame, sides: list[Answers]) -> int:
    """From the first request that both have a label for to the last, rounded up."""
    both = sides[0].labelled & sides[1].labelled
    time = cells.instants(cells.column(asked, "request_time")).to_numpy()[both]
    return ceil((time.max() - time.min()) / arms.HOUR) if len(time) else 0


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
