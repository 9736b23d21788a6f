"""One replica: frames in, batches to the model, frames out.

- A thread per connection reads frames. Probes and statistics it answers itself, so that a replica
  whose model thinks for a minute still shows that it lives; predictions it puts in line.
- The main thread takes whatever is in line, up to 64 requests and without a timer, and predicts.
- It accepts connections only when the model is loaded and warm: an answered probe means ready.
- At SIGTERM it answers what is in line, then ends.
"""

import gc
import os
import queue
import resource
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from capture import errors, logline
from serving import wire
from serving.worker import batching, model

log = logline.logger(__name__)

OUR_PACKAGES = ("capture", "dashboard", "monitors", "serving")
READ_BYTES, MOST_READ_BYTES = 1 << 18, 1 << 22
SEND_SECONDS = 10  # a gateway that does not take its answers for this long is given up
IDLE_SECONDS = 1.0
MOST_CANCELLED = 10_000


class Spec(msgspec.Struct, frozen=True):
    """What a replica is: the content of the file given by --spec."""

    endpoint: str
    entity: str
    served_entity_id: str
    socket: str
    model_path: str
    feature_spec: str | None = None
    snapshots_dir: str | None = None
    batch: bool | None = None
    max_batch: int = batching.MAX_REQUESTS
    max_answer_bytes: int = model.MOST_ANSWER_BYTES
    log: str | None = None


def read_spec(path: Path) -> Spec:
    """The spec in a file. Raises msgspec.ValidationError."""
    return msgspec.json.decode(path.read_bytes(), type=Spec)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that may be served, and its look-ups if it has some."""

    model: model.Model
    features: Any


def load(spec: Spec) -> Loaded:
    """Load and probe a model. Raises what loading raises."""
    features = _features(spec)
    leave_namespace()
    # The numpy way leaves names out by intention: the columns were put in order before.
    warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
    started = time.monotonic()
    loaded = model.Model(Path(spec.model_path), features, spec.batch, spec.max_answer_bytes)
    # What was loaded is never garbage: without this a collection pauses the worker for 0.13 s.
    gc.collect()
    gc.freeze()
    log.info(
        "model_loaded",
        entity=spec.entity,
        ways=loaded.proofs,
        batches=loaded.batches,
        seconds=round(time.monotonic() - started, 3),
    )
    return Loaded(loaded, features)


def serve(spec: Spec, loaded: Loaded | None = None) -> None:
    """Answer until SIGTERM, with a model that a template loaded before its fork, or one that is
    loaded now. Raises what loading raises."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    listener = _bind(spec.socket)
    if loaded is None:
        loaded = load(spec)
    Worker(spec, loaded, listener).run()


def _bind(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)  # under umask 077: for this user only
    listener.listen(128)
    return listener


def _features(spec: Spec) -> Any:
    """The look-ups of a model that has some; imported only then, for it needs lmdb."""
    beside = Path(spec.model_path) / "feature_spec.json"
    path = Path(spec.feature_spec) if spec.feature_spec else beside
    if not path.exists():
        return None
    if spec.snapshots_dir is None:
        raise ValueError("A model with a feature spec needs snapshots_dir in its spec file.")
    from serving.features import online

    return online.Lookup(orjson.loads(path.read_bytes()), Path(spec.snapshots_dir))


def leave_namespace() -> None:
    """Give our top-level names back: a model's own modules may be called `serving` or `capture`,
    and must win. What is imported already goes on working."""
    root = Path(__file__).absolute().parents[2]
    if not (root / "numpy").exists():  # installed among other packages: these must stay
        ours = {str(root), str(root.resolve())}
        sys.path[:] = [entry for entry in sys.path if str(Path(entry).absolute()) not in ours]
    for name in list(sys.modules):
        if name.partition(".")[0] in OUR_PACKAGES:
            del sys.modules[name]


class _Waiting(NamedTuple):
    """A request in line; `arrived`: perf_counter_ns."""

    connection: "_Connection"
    frame: wire.Request
    arrived: int


class _Item(NamedTuple):
    """A request that was read."""

    waiting: _Waiting
    ready: model.Ready

    @property
    def row_count(self) -> int:
        return self.ready.row_count

    @property
    def shares(self) -> Hashable | None:
        return self.ready.shares


class Worker:
    """A loaded model behind its socket."""

    def __init__(self, spec: Spec, loaded: Loaded, listener: socket.socket) -> None:
        self._spec = spec
        self._model = loaded.model
        self._listener = listener
        self._features = loaded.features
        self._line: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._limits = batching.Limits(max_requests=spec.max_batch)
        self._requests = self._calls = 0
        self._predicting_since: int | None = None
        self._pid = os.getpid()

    def run(self) -> None:
        """Answer until SIGTERM and until the line is empty."""
        signal.signal(signal.SIGTERM, lambda *_: self._line.put(None))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        dirty = False
        while True:
            try:
                first = self._line.get(timeout=IDLE_SECONDS if dirty else None)
            except queue.Empty:
                gc.collect()
                dirty = False
                continue
            if first is None:
                break
            self._answer(self._taken(first))
            dirty = True
        self._listener.close()
        Path(self._spec.socket).unlink(missing_ok=True)
        while not self._line.empty():
            found = self._line.get()
            if found is not None:
                self._answer(self._taken(found))
        log.info("worker_ended", entity=self._spec.entity, requests=self._requests)

    def _taken(self, first: _Waiting) -> list[_Waiting]:
        taken = [first]
        while len(taken) < self._spec.max_batch and not self._line.empty():
            found = self._line.get()
            if found is None:
                self._line.put(None)
                break
            taken.append(found)
        return taken

    # -- the main thread

    def _answer(self, taken: list[_Waiting]) -> None:
        items = [item for one in taken if (item := self._read(one)) is not None]
        for call in batching.batches(items, self._limits):
            # Looked at here, not when it was read: it may have waited for the calls before.
            batch = [item for item in call if self._is_wanted(item.waiting)]
            if not batch:
                continue
            begun = time.perf_counter_ns()
            self._predicting_since = begun
            outcomes = self._model.run([item.ready for item in batch])
            if os.getpid() != self._pid:
                # A child that the model forked and let return: the parent answers, on the socket
                # that both have.
                os._exit(0)
            self._predicting_since = None
            self._requests += len(batch)
            self._calls += 1
            self._send(batch, outcomes, begun)

    def _read(self, one: _Waiting) -> _Item | None:
        """The request, or None if it was refused."""
        frame = one.frame
        try:
            alone = bool(frame.flags & wire.ALONE)
            return _Item(one, self._model.read(frame.payload, frame.content_type, alone))
        except errors.InferlakeError as error:
            self._refuse(one, error)
        except Exception as error:  # noqa: BLE001  our own bug: one request's, not the worker's
            outcome = model.failure(error)
            one.connection.send(_packed(one, outcome, None, time.perf_counter_ns()))
        return None

    def _is_wanted(self, one: _Waiting) -> bool:
        """Whether somebody still waits; answers a request that was taken back, or is too late."""
        if one.frame.id in one.connection.cancelled:
            one.connection.cancelled.discard(one.frame.id)
            taken_back = wire.Answer(one.frame.id, 499, wire.JSON, 0, 0, 0, 0, "request", b"")
            one.connection.send(wire.pack_answer(taken_back))
            return False
        waited_ms = (time.perf_counter_ns() - one.arrived) // 1_000_000
        if one.frame.deadline_ms and waited_ms > one.frame.deadline_ms:
            busy = f"'{self._spec.entity}' is busy: {waited_ms / 1000:.1f} s in line."
            self._refuse(one, errors.Unavailable(busy))
            return False
        return True

    def _refuse(self, one: _Waiting, error: errors.InferlakeError) -> None:
        refusal = model.refusal(error)
        one.connection.send(_packed(one, refusal, None, time.perf_counter_ns()))

    def _send(self, batch: list[_Item], outcomes: list[model.Outcome], begun: int) -> None:
        """Answer a batch with one write per connection."""
        frames: dict[_Connection, list[bytes]] = {}
        for item, outcome in zip(batch, outcomes, strict=True):
            connection = item.waiting.connection
            packed = _packed(item.waiting, outcome, item.ready, begun)
            frames.setdefault(connection, []).append(packed)
        for connection, packed_frames in frames.items():
            connection.send(b"".join(packed_frames))
        for item, outcome in zip(batch, outcomes, strict=True):
            if outcome.cause is not None:
                log.error(
                    "model_raised",
                    request=_shown(item.waiting.frame.id),
                    stack=model.stack(outcome.cause),
                )

    # -- other threads

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return  # closed at the end
            connection = _Connection(accepted)
            target, name = self._converse, "connection"
            threading.Thread(target=target, args=(connection,), name=name, daemon=True).start()

    def _converse(self, connection: "_Connection") -> None:
        reader = wire.request_reader()
        try:
            while data := connection.receive(reader.missing_bytes):
                arrived = time.perf_counter_ns()
                for frame in reader.feed(data):
                    self._sort(connection, frame, arrived)
        except wire.BrokenStream as error:
            log.warning("stream_broken", error=str(error))
        finally:
            connection.close()

    def _sort(self, connection: "_Connection", frame: wire.Request, arrived: int) -> None:
        if frame.kind == wire.PREDICT:
            self._line.put(_Waiting(connection, frame, arrived))
        elif frame.kind == wire.CANCEL:
            if len(connection.cancelled) >= MOST_CANCELLED:
                connection.cancelled.clear()
            connection.cancelled.add(frame.id)
        else:
            body = orjson.dumps(self._report())
            answer = wire.Answer(frame.id, 200, wire.JSON, 0, 0, 0, 0, None, body)
            connection.send(wire.pack_answer(answer))

    def _report(self) -> dict[str, Any]:
        since = self._predicting_since
        thinking = 0 if since is None else (time.perf_counter_ns() - since) // 1_000_000
        return {
            "entity": self._spec.entity,
            "served_entity_id": self._spec.served_entity_id,
            "pid": os.getpid(),
            "ways": self._model.proofs,
            "batches": self._model.batches,
            "counts": dict(self._model.counts),
            "requests": self._requests,
            "calls": self._calls,
            "waiting": self._line.qsize(),
            "predicting_ms": thinking,
            "feature_misses": self._features.misses if self._features is not None else {},
            "rss_bytes": _resident_bytes(),
        }


class _Connection:
    """A gateway's or the controller's end; any thread may send."""

    def __init__(self, accepted: socket.socket) -> None:
        self.cancelled: set[int] = set()
        self._socket = accepted
        self._lock = threading.Lock()
        timeout = struct.pack("ll", SEND_SECONDS, 0)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    def receive(self, missing_bytes: int) -> bytes:
        """What came in; empty at the end."""
        try:
            return self._socket.recv(max(READ_BYTES, min(missing_bytes, MOST_READ_BYTES)))
        except OSError:
            return b""

    def send(self, data: bytes) -> None:
        """Send, or give the connection up: whoever asked will ask another replica."""
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError as error:
            log.warning("answer_not_sent", bytes=len(data), error=str(error))
            self.close()

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other end was faster
        self._socket.close()


def _packed(one: _Waiting, outcome: model.Outcome, ready: model.Ready | None, begun: int) -> bytes:
    sides = ready.sides if ready is not None else None
    return wire.pack_answer(
        wire.Answer(
            one.frame.id,
            outcome.status,
            wire.JSON,
            outcome.rows,
            (begun - one.arrived) // 1000,
            outcome.features_us,
            outcome.predict_us,
            outcome.error_source,
            outcome.body,
            sides.client_request_id if sides is not None else None,
            sides.usage_context if sides is not None else None,
            outcome.looked_up,
        )
    )


def _shown(frame_id: int) -> str:
    """The end of a request's id as its client has it in `x-request-id`, dash and all, so that a
    search of the log for it finds the line: of the id's 32 digits the wire carries the last 16."""
    digits = f"{frame_id:016x}"
    return f"{digits[:4]}-{digits[4:]}"


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()
