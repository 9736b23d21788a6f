"""Which requests were recorded lately: whether a label that comes in belongs to one of them, before
it is committed."""

from uuid import UUID

MOST_IDS = 200_000
TOGETHER = 256


class RecentIds:
    """Ids of requests recorded since the start, at least the `most` newest: our own as numbers, the
    clients' as texts."""

    def __init__(self, most: int = MOST_IDS) -> None:
        self._most = most
        # Two sets, the older one dropped whole: to forget ids one by one costs more than to add.
        # Ids are added some at a time, for a large set is in nobody's cache.
        self._fresh: list[int | str] = []
        self._newer: set[int | str] = set()
        self._older: set[int | str] = set()

    def add(self, number: int, client_id: bytes = b"") -> None:
        """Note a recorded request: our number, its client's id if that gave one."""
        fresh = self._fresh
        fresh.append(number)
        if client_id:
            fresh.append(client_id.decode())
        if len(fresh) >= TOGETHER:
            self._take_in()

    def _take_in(self) -> None:
        self._newer.update(self._fresh)
        self._fresh.clear()
        if len(self._newer) >= self._most:
            self._newer, self._older = set(), self._newer

    def has(self, known: int | str) -> bool:
        """Whether a request of this number, or of this id of its client, was recorded."""
        self._take_in()
        return known in self._newer or known in self._older

    def has_request(self, request_id: str) -> bool:
        """Whether a request of this id of ours, a UUID, was recorded."""
        try:
            return self.has(UUID(request_id).int)
        except ValueError:
            return False

    def __len__(self) -> int:
        return len(self._fresh) + len(self._newer) + len(self._older)
