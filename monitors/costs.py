"""What a thousand requests cost on each version, and whether that is worth a proposal.

Compared is the time in the model at the price of the replica it runs on, not the bill: that would
charge a canary for the idle hours of its replica, and so measure its share of the traffic. Without
prices the times alone are compared, where both versions run on the same kind of replica; else there
is no answer. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_REQUESTS = 200  # of each version
MUCH = 1.5  # times as dear
HOUR_MS = 3_600_000
# The rules of experiments.md that are reached with enough hours and labels, and found no advantage.
NO_ADVANTAGE = ("below_mde", "not_worse", "fading", "undecided")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one version since its experiment began. execution_ms: of one request, the mean;
    hour_price: of its kind of replica, None where there is none."""

    requests: int
    execution_ms: float
    replica: tuple[str, str | None]
    hour_price: float | None
    currency: str | None = None

    @property
    def per_1000(self) -> float | None:
        """Price of a thousand requests' time in the model."""
        if self.hour_price is None:
            return None
        return 1000 * self.execution_ms / HOUR_MS * self.hour_price


@dataclass(frozen=True, slots=True)
class Dearer:
    """How many times as dear the challenger is, and the sentences that say so with numbers."""

    ratio: float
    text: str
    times: str


def dearer(decision: Mapping[str, Any], known: Mapping[str, Cost]) -> Dearer | None:
    """Whether the challenger of a decision that shows no advantage is much dearer than its
    champion. None: it is not, or not enough is known."""
    names = str(decision.get("challenger")), str(decision.get("champion"))
    reasons = decision.get("reasons") or [""]
    challenger, champion = (known.get(name) for name in names)
    if reasons[0] not in NO_ADVANTAGE or challenger is None or champion is None:
        return None
    if min(challenger.requests, champion.requests) < LEAST_REQUESTS:
        return None
    dear, cheap = challenger.per_1000, champion.per_1000
    unit = challenger.currency or ""
    if dear is None or cheap is None:
        if challenger.replica != champion.replica:
            return None
        dear, cheap, unit = challenger.execution_ms, champion.execution_ms, "ms each"
    if cheap <= 0 or dear < MUCH * cheap:
        return None
    text = (
        f"{names[0]} costs {dear / cheap:.1f} times as much as {names[1]}: 1,000 requests "
        f"{dear:.3g} against {cheap:.3g} {unit}".rstrip()
    )
    times = ", ".join(
        f"{name} {each.execution_ms:.3g} ms from {each.requests:,} requests"
        for name, each in zip(names, (challenger, champion), strict=True)
    )
    return Dearer(dear / cheap, text, f"time in the model: {times}")
