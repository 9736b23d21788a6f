"""A window against its baseline, and against the window before: what drifted, how far, in words.

Pure: profiles in, comparisons out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from monitors import baseline, distances, kept, profile, watched

NAMES = {
    "ks": "KS distance",
    "wasserstein": "Wasserstein distance",
    "wasserstein_normed": "normed Wasserstein distance",
    "psi": "PSI",
    "js_distance": "JS distance",
    "tv_distance": "total variation",
    "l_infinity_distance": "largest change of a share",
    "null_share": "change of the null share",
}

Window = Mapping[kept.Group, kept.Profile]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One column of one group in one window, compared. `found`: every distance by short name."""

    key: kept.WindowKey
    version: str | None
    column: str
    kind: str
    drift_type: str
    compared_with: tuple[datetime, datetime] | None
    judgement: distances.Judgement
    found: Mapping[str, distances.Distance]
    n: int
    n_baseline: int
    null_share: float | None
    null_share_baseline: float | None
    text: str

    @property
    def decisive(self) -> distances.Distance | None:
        """The distance that the judgement names."""
        return self.found.get(self.judgement.metric) if self.judgement.metric else None

    def columns(self) -> dict[str, Any]:
        """Its part of a row of the drift table."""
        judged, decisive = self.judgement, self.decisive
        return {
            "column_name": self.column,
            "drift_type": self.drift_type,
            **distances.table_names(self.found),
            "kind": self.kind,
            "status": judged.status,
            "severity": judged.severity,
            "metric": judged.metric,
            "value": decisive.value if decisive else None,
            "threshold": decisive.threshold if decisive else None,
            "bound": decisive.bound if decisive else None,
            "bounds": orjson.dumps(
                {name: d.bound for name, d in self.found.items() if d.bound is not None}
            ).decode(),
            "pvalue": decisive.pvalue if decisive else None,
            "effect": judged.effect_over_threshold,
            "n": self.n,
            "n_baseline": self.n_baseline,
            "null_share": self.null_share,
            "null_share_baseline": self.null_share_baseline,
            "text": self.text,
        }


def with_baseline(
    key: kept.WindowKey,
    window: Window,
    reference: baseline.Baseline,
    shape: watched.Shape,
    columns: Mapping[str, watched.Column],
) -> Iterator[Comparison]:
    """Every group of a window against the baseline; columns that it lacks are left out."""
    reference = reference.of(key.slice)
    together = sum(1 for version, _ in reference.profiles if version is None)
    several = len({version for version, _ in window if version is not None}) > 1
    for (version, column), current in window.items():
        group = reference.group(version, column, shape.outputs)
        if (None, column) not in reference.profiles:
            continue
        mixed = column in shape.outputs and bool(reference.versions) and several
        reason = None
        if version is None and mixed:
            reason = "several versions answered; each is compared on its own"
        elif group not in reference.profiles:
            reason = f"the baseline holds no answers of {version}"
        maxima = reference.maxima.get((*group, key.granularity or ""))
        yield _compare(
            key,
            (version, column),
            columns[column].kind,
            current,
            reference.profiles.get(group) or reference.profiles[None, column],
            kept.BASELINE,
            None,
            together,
            maxima,
            reason,
        )


def with_previous(
    key: kept.WindowKey,
    window: Window,
    before: kept.WindowKey,
    previous: Window,
    shape: watched.Shape,
    columns: Mapping[str, watched.Column],
) -> Iterator[Comparison]:
    """A window against the window before: every column of all versions together, and the answers of
    each version. What versions were *asked* is split at random, and so the same for all."""
    together = sum(1 for version, _ in window if version is None)
    span = before.span
    for (version, column), current in window.items():
        of_interest = version is None or column in shape.outputs
        if of_interest and (version, column) in previous:
            yield _compare(
                key,
                (version, column),
                columns[column].kind,
                current,
                previous[version, column],
                kept.CONSECUTIVE,
                span,
                together,
                None,
                None,
            )


def _compare(
    key: kept.WindowKey,
    group: kept.Group,
    kind: str,
    current: kept.Profile,
    other: kept.Profile,
    drift_type: str,
    compared_with: tuple[datetime, datetime] | None,
    together: int,
    maxima: Mapping[str, float] | None,
    reason: str | None,
) -> Comparison:
    found = distances.compare(current, other)
    judged = distances.judge(
        found, kind, current.rows, other.rows, max(together, 1), own_maxima=maxima
    )
    if reason is not None:
        judged = distances.Judgement("undefined", None, None, None, [reason])
    return Comparison(
        key=key,
        version=group[0],
        column=group[1],
        kind=kind,
        drift_type=drift_type,
        compared_with=compared_with,
        judgement=judged,
        found=found,
        n=current.rows,
        n_baseline=other.rows,
        null_share=_share(current),
        null_share_baseline=_share(other),
        text=_words(group[1], judged, found, current, maxima),
    )


def _share(one: kept.Profile) -> float | None:
    percentage = profile.percent_null(one)
    return None if percentage is None else percentage / 100


def _words(
    column: str,
    judged: distances.Judgement,
    found: Mapping[str, distances.Distance],
    current: kept.Profile,
    maxima: Mapping[str, float] | None,
) -> str:
    decisive = found.get(judged.metric) if judged.metric else None
    if decisive is None or decisive.value is None:
        return f"{column}: {'; '.join(judged.reasons) or judged.status.replace('_', ' ')}"
    name = NAMES.get(judged.metric or "", judged.metric)
    text = f"{column}: {name} {decisive.value:.3g}"
    if decisive.threshold is not None:
        text += f", limit {decisive.threshold:.3g}"
    own = (maxima or {}).get(judged.metric or "")
    if own is not None:
        text += f", the baseline's own windows reach {own:.3g}"
    return f"{text} ({current.rows:,} rows)"
