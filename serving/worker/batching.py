"""Who shares a call to the model: whatever waits, without a timer. Pure.

The cost of a prediction is per call, not per row, so requests that wait at the same time are
joined. Nobody waits for others: a batch is what is there when the model becomes free.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol, TypeVar

MAX_REQUESTS = 64
MAX_ROWS = 4_096


class Waiting(Protocol):
    """A request that has been read. `shares`: it may share a call with requests of an equal
    value (which have the same columns); None: it must be alone."""

    @property
    def row_count(self) -> int: ...
    @property
    def shares(self) -> Hashable | None: ...


class Limits(NamedTuple):
    """The most that one call takes; a request over the limit of rows is a call of its own."""

    max_requests: int = MAX_REQUESTS
    max_rows: int = MAX_ROWS


W = TypeVar("W", bound=Waiting)


def batches(waiting: Sequence[W], limits: Limits) -> list[list[W]]:
    """Cut waiting requests into calls: each request is in exactly one, in order of arrival.

    Those that share come first: a request that must be alone may be the one that ends the process,
    and then nobody else is in line behind it."""
    shared: list[list[W]] = []
    alone: list[list[W]] = []
    open_calls: dict[Hashable, tuple[list[W], int]] = {}
    for one in waiting:
        if one.shares is None:
            alone.append([one])
            continue
        call, rows = open_calls.get(one.shares, ([], 0))
        if len(call) >= limits.max_requests or rows + one.row_count > limits.max_rows:
            call, rows = [], 0
        if not call:
            shared.append(call)
        call.append(one)
        open_calls[one.shares] = (call, rows + one.row_count)
    return shared + alone
