"""Which requests were recorded lately: whether a label that comes in belongs to one of them, before
it is committed."""

from uuid import UUID

MOST_IDS = 200_000


class RecentIds:
    """Ids of requests recorded since the start, at least the `most` newest: our own as numbers, the
    clients' as texts."""

    def __init__(self, most: int = MOST_IDS) -> None:
        self._most = most
        # Two sets, the older one dropped whole: to forget ids one by one costs more than to add.
        self._newer: set[int | str] = set()
        self._older: set[int | str] = set()

    def add(self, number: int, client_id: bytes = b"") -> None:
        """Note a recorded request: our number, its client's id if that gave one."""
        newer = self._newer
        newer.add(number)
        if client_id:
            newer.add(client_id.decode())
        if len(newer) >= self._most:
            self._newer, self._older = set(), newer

    def has(self, known: int | str) -> bool:
        """Whether a request of this number, or of this id of its client, was recorded."""
        return known in self._newer or known in self._older

    def has_request(self, request_id: str) -> bool:
        """Whether a request of this id of ours, a UUID, was recorded."""
        try:
            return self.has(UUID(request_id).int)
        except ValueError:
            return False

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)
