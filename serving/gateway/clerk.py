"""The gateway's SQL, in a thread of its own: new route tables in, demand out.

Requests are answered from memory: while the database is locked or gone, nothing here reaches them;
the last route table stays, and the thread tries again.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import sqlalchemy as sa

from capture import database, logline
from serving import changes_state, replica_state, state
from serving.gateway import replicas

log = logline.logger(__name__)

POLL_SECONDS = 0.05
# While a request waits for an entity without replicas: one from a template is there in 0.03 s.
EAGER_POLL_SECONDS, EAGER_SECONDS = 0.005, 2.0
PAUSE_AFTER_ERROR_SECONDS = 0.5
LEAST_DEMAND_SECONDS = 0.02  # at most this often in a burst of arrivals for a sleeping entity


def read_snapshot(engine: sa.Engine) -> tuple[int, state.Snapshot]:
    """What a route table is drawn from, now, and the count of changes up to it."""
    with database.reading(engine) as connection:
        return changes_state.counter(connection), state.snapshot(connection)


class Clerk:
    """Watches the counter `routes`, writes demand. `publish` is called in its thread."""

    def __init__(
        self,
        engine: sa.Engine,
        gateway: str,
        run_dir: Path,
        publish: Callable[[int, state.Snapshot], None],
    ) -> None:
        self._engine = engine
        self._gateway = gateway
        self._controller = run_dir / "controller.sock"
        self._publish = publish
        self._wake = threading.Event()
        self._stopped = False
        self._offered: Sequence[replicas.Load] | None = None
        self._urgent = False
        self._eager_until = 0.0
        self._written: dict[str, replicas.Load] = {}
        self._watch: changes_state.Watch | None = None
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="clerk", daemon=True)

    def start(self) -> None:
        """Forget the demand that an earlier gateway of this name left, then watch."""
        with database.transaction(self._engine) as connection:
            replica_state.clear_demand(connection, gateway=self._gateway)
        self._thread.start()

    def offer(self, loads: Sequence[replicas.Load], urgent: bool) -> None:
        """Have the present load written. Urgent: at once, and the controller is woken, because a
        request waits for an entity without replicas. Any thread."""
        self._offered = loads
        if urgent:
            self._urgent = True
            self._eager_until = time.monotonic() + EAGER_SECONDS
            self._wake.set()

    def poke(self) -> None:
        """Tell the controller to look at SQL now; it does so by itself anyway, a little later."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as message:
            message.setblocking(False)
            try:
                message.sendto(b"look", str(self._controller))
            except OSError:
                return  # no controller just now, or its box is full of such messages

    def close(self) -> None:
        """Stop, and take this gateway's demand back."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        with database.transaction(self._engine) as connection:
            replica_state.clear_demand(connection, gateway=self._gateway)

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._turn()
                self._failing = False
            except Exception as error:  # noqa: BLE001  a database may fail in many ways
                if not self._failing:
                    log.warning("state_unreachable", error=f"{type(error).__name__}: {error}"[:500])
                self._failing = True
                self._forget_watch()
                time.sleep(PAUSE_AFTER_ERROR_SECONDS)
            eager = time.monotonic() < self._eager_until
            self._wake.wait(EAGER_POLL_SECONDS if eager else POLL_SECONDS)
            self._wake.clear()
        self._forget_watch()

    def _turn(self) -> None:
        if self._urgent or self._offered is not None:
            self._write_demand()
        if self._watch is None:
            self._watch = changes_state.Watch(self._engine)
        if self._watch.changed():
            self._publish(*read_snapshot(self._engine))

    def _write_demand(self) -> None:
        urgent, self._urgent = self._urgent, False
        offered, self._offered = self._offered or (), None
        changed = [load for load in offered if self._written.get(load.served_entity_id) != load]
        if changed:
            rows = [
                replica_state.Demand(
                    load.served_entity_id,
                    self._gateway,
                    load.waiting,
                    load.in_flight,
                    load.last_request_ms,
                )
                for load in changed
            ]
            with database.transaction(self._engine) as connection:
                replica_state.set_demand(connection, rows)
            self._written.update({load.served_entity_id: load for load in changed})
        if urgent:
            self.poke()
            time.sleep(LEAST_DEMAND_SECONDS)

    def _forget_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
