"""May a request come in now, and for how long may it wait? Pure: `now` is monotonic seconds."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from capture import errors

PERIOD_SECONDS = {"minute": 60.0}
LEAST_QUEUE, QUEUE_PER_CONCURRENCY = 256, 32
RETRY_SHARE, LEAST_RETRIES = 0.2, 3
MOST_BUCKETS = 50_000


class Bucket:
    """Tokens that refill evenly: `calls` per period, all of them at once if nobody called."""

    __slots__ = ("_left", "_most", "_per_second", "_since")

    def __init__(self, calls: int, period_seconds: float, now: float) -> None:
        self._most = self._left = float(calls)
        self._per_second = calls / period_seconds
        self._since = now

    def take(self, now: float) -> float:
        """Use up a token, and give 0; or give the seconds until there is one: infinite for a bucket
        of 0 calls."""
        left = min(self._most, self._left + (now - self._since) * self._per_second)
        self._since = now
        if left >= 1:
            self._left = left - 1
            return 0.0
        self._left = left
        return (1 - left) / self._per_second if self._per_second else math.inf

    def give_back(self) -> None:
        """Have the token again that was just used up."""
        self._left += 1


class Counted(NamedTuple):
    """A rate limit as it counts one caller's calls; equal where calls are counted together."""

    endpoint_id: str
    whose: str  # in words
    calls: int
    period: str


def counted(
    endpoint_id: str, limits: Sequence[Mapping[str, Any]], user: str
) -> tuple[Counted, ...]:
    """The limits of an endpoint that count a user's calls."""
    return tuple(
        Counted(endpoint_id, whose, int(limit["calls"]), limit.get("renewal_period") or "minute")
        for limit in limits
        if (whose := _counted(limit, user)) is not None and limit.get("calls") is not None
    )


class RateLimits:
    """The rate limits of one gateway, by endpoint and by what each limit counts. A bucket lives on
    as long as its limit does not change, whatever else of the endpoint changes."""

    def __init__(self) -> None:
        # By use, the one unused for longest first (as in access.FailedLogins).
        self._buckets: OrderedDict[Counted, Bucket] = OrderedDict()

    def admit(self, limits: Sequence[Counted], now: float) -> None:
        """Count one call, against every limit or against none.

        Raises RequestLimitExceeded, with the time after which a call will pass."""
        for place, limit in enumerate(limits):
            wait = self._bucket(limit, now).take(now)
            if wait > 0:
                for earlier in limits[:place]:
                    self._buckets[earlier].give_back()
                raise _over(limit, wait)

    def _bucket(self, key: Counted, now: float) -> Bucket:
        found = self._buckets.get(key)
        if found is None:
            seconds = PERIOD_SECONDS.get(key.period, 60.0)
            found = self._buckets[key] = Bucket(key.calls, seconds, now)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return found


def _counted(limit: Mapping[str, Any], user: str) -> str | None:
    """Whose calls a limit counts, in words; None: not this user's."""
    key = limit.get("key") or "endpoint"
    principal = limit.get("principal")
    if key == "user":
        return None if principal not in (None, user) else f"user '{user}'"
    if key == "service_principal":
        return f"user '{user}'" if principal == user else None
    return "this endpoint" if key == "endpoint" else None


def _over(limit: Counted, wait_seconds: float) -> errors.InferlakeError:
    refusal = errors.RequestLimitExceeded(
        f"{limit.calls} calls per {limit.period} for {limit.whose}."
    )
    refusal.retry_after = 60 if math.isinf(wait_seconds) else max(1, math.ceil(wait_seconds))
    return refusal


def queue_length(concurrency: int, configured: int) -> int:
    """Most requests that may wait for an entity. `configured`: 0 for the rule."""
    return configured or max(LEAST_QUEUE, QUEUE_PER_CONCURRENCY * concurrency)


def check_queue(waiting: int, longest: int, entity: str) -> None:
    """Raises QueueFull when the line is as long as it may be."""
    if waiting >= longest:
        raise errors.QueueFull(f"{waiting} requests are waiting for '{entity}'.")


def may_retry(retrying: int, active: int) -> bool:
    """Whether one more request may be tried a second time: a fifth of the active ones, at least 3,
    so that a broken model does not get its load doubled."""
    return retrying < max(LEAST_RETRIES, int(RETRY_SHARE * active))


def longest_wait_seconds(
    lost_at: float | None, now: float, queue_seconds: float, start_seconds: float
) -> float:
    """How long a request may wait in line. `lost_at`: when the entity's last replica was lost, None
    if it has some or slept; an entity that sleeps at zero may take as long to start as a model to
    answer, one that crashed is back soon or not at all."""
    return queue_seconds if lost_at is not None and now - lost_at < 60 else start_seconds
