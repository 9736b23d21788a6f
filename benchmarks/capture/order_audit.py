"""Is everything on disk before somebody relies on it? Bar: 0 violations of the order of writes.

    python benchmarks/capture/order_audit.py

SIGKILL says nothing about power: what was written survives it, synced or not. So a real gateway, on
an endpoint that acknowledges under `power`, and the real committer run under strace, and the order
of their system calls is compared with these rules:

1. A reply leaves only after the block with its row was written to a log segment, the segment synced
   after that, and the entries that lead to the segment (itself, its incarnation) were synced.
2. A segment is taken away (unlinked, or made a spare file) only after each table in it has a commit
   that covers it, and the commit file, `_delta_log` and the entries of new folders were synced
   after that commit.
3. A commit is made only after its data files and their entries were synced.
4. Payload commits are unpacked only after they were synced: a version that a power cut takes comes
   again with other rows.

`audit` is the checker, pure. The requests name a served entity that is not there: such answers are
recorded like all others, and need no model.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import httpx2

from capture import database
from capture.settings import Settings
from serving import state

PATIENCE_SECONDS = 240
CLIENTS = 8
TOKEN = "audit"
CALLS = (
    "openat,mkdir,mkdirat,write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync,"
    "link,linkat,rename,renameat,renameat2,unlink,unlinkat"
)
SHOWN_BYTES = 1 << 18  # of each write: a commit must be read whole


# What was called ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """A system call that succeeded. start, end: its place among all beginnings and ends."""

    call: str
    start: int
    end: int
    path: str  # of a descriptor its file, else the first path that was named
    target: str = ""  # the second path: new name of a link or a rename
    data: str = ""  # what was written, a character a byte
    is_new: bool = False  # the file was, perhaps, made by this call


_WHOLE = re.compile(r"(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)")
_BEGUN = re.compile(r"(\d+)\s+(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+)\s+<\.\.\. (\w+) resumed>(.*)\)\s+= (-?\d+|\?)(.*)")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"(\.\.\.)?')
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")
_OPENED = re.compile(r"<([^>]*)>")


def parse(lines: Iterable[str], first: int = 0) -> list[Event]:
    """Events of `strace -f -y`, in order of their ends. Pure.

    Raises ValueError if a commit was not shown whole."""
    begun: dict[tuple[str, str], tuple[int, str]] = {}
    found: list[Event] = []
    for place, line in enumerate(lines, first):
        if match := _BEGUN.match(line):
            begun[match[1], match[2]] = (place, match[3])
            continue
        start, before = place, ""
        if match := _RESUMED.match(line):
            start, before = begun.pop((match[1], match[2]), (place, ""))
        else:
            match = _WHOLE.match(line)
        if match and match[4] not in ("-1", "?"):
            found.append(_event(match[2], start, place, before + match[3], match[5]))
    return found


def _event(call: str, start: int, end: int, arguments: str, result: str) -> Event:
    texts = [match[1] for match in _TEXT.finditer(arguments)]
    if call == "openat":
        opened = _OPENED.search(result)
        is_new = "O_CREAT" in arguments
        return Event(call, start, end, opened[1] if opened else texts[0], is_new=is_new)
    if descriptor := _DESCRIPTOR.match(arguments):
        if "_delta_log/" in descriptor[1] and any(cut for _, cut in _TEXT.findall(arguments)):
            raise ValueError(f"A commit was not shown whole: {descriptor[1]}")
        # Piece by piece: a digit that begins one would end the octal escape before it.
        shown = "".join(t.encode("latin-1", "replace").decode("unicode_escape") for t in texts)
        return Event(call, start, end, descriptor[1], data=shown)
    return Event(call, start, end, texts[0], texts[1] if len(texts) > 1 else "", is_new=True)


# The rules ---------------------------------------------------------------------------------------

_SYNCS = frozenset({"fsync", "fdatasync"})
_WRITES = frozenset({"write", "writev", "pwrite64"})
_SENDS = frozenset({"write", "writev", "sendto", "sendmsg"})
_RENAMES = frozenset({"rename", "renameat", "renameat2"})
_LINKS = _RENAMES | {"link", "linkat"}
_UNLINKS = frozenset({"unlink", "unlinkat"})
_MAKES = frozenset({"mkdir", "mkdirat"})
_SEGMENT = re.compile(r"(.*/wal/([0-9a-f-]{36}))/(\d{20})(?:-\d+)?\.(?:open|seg)")
_COMMIT = re.compile(r"(.*)/_delta_log/\d{20}\.json")
_REPLY = re.compile(r"HTTP/1\.1 \d+ .*?databricks-request-id: ([0-9a-f-]{36})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Audit:
    """What was looked at, and what was wrong with it."""

    replies: int
    segments: int
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Commit:
    event: Event  # the link that made it visible
    table: str
    files: tuple[str, ...]
    transactions: dict[str, int]


def audit(gateway: Sequence[Event], committer: Sequence[Event]) -> Audit:
    """Every violation of the rules above, in words. Pure."""
    blocks = [
        (found, event)
        for event in gateway
        if event.call in _WRITES and (found := _SEGMENT.fullmatch(event.path))
    ]
    replies = [
        (match[1], event)
        for event in gateway
        if event.call in _SENDS and event.path.startswith("socket:")
        for match in _REPLY.finditer(event.data)
    ]
    held: dict[tuple[str, int], str] = {}
    for found, event in blocks:
        key = (found[2], int(found[3]))
        held[key] = held.get(key, "") + event.data
    written = [(f"{found[1]}/{found[3]}", event) for found, event in blocks]
    wrong = [text for one, reply in replies for text in _early(one, reply, written, gateway)]

    commits = _commits(committer)
    taken = [
        (found, event)
        for event in committer
        if _takes_away(event) and (found := _SEGMENT.fullmatch(event.path))
    ]
    for found, event in taken:
        key = (found[2], int(found[3]))
        wrong += _uncovered(key, held.get(key, ""), event, commits, committer)
    wrong += [text for one in commits for text in _torn(one, commits, committer)]
    return Audit(len(replies), len(taken), tuple(wrong))


def _takes_away(event: Event) -> bool:
    return event.call in _UNLINKS or (event.call in _RENAMES and "/wal/spare/" in event.target)


def _is_synced(events: Sequence[Event], path: str, after: int, before: int) -> bool:
    return any(
        event.call in _SYNCS and event.path == path and event.start > after and event.end < before
        for event in events
    )


def _early(
    one: str, reply: Event, written: Sequence[tuple[str, Event]], events: Sequence[Event]
) -> Iterator[str]:
    in_log = UUID(one).bytes.decode("latin-1")
    segment, block = next((put for put in written if in_log in put[1].data), ("", None))
    if block is None or block.end >= reply.start:
        yield f"reply {one}: its block was not written before it"
        return
    opened = f"{segment}.open"
    sealed = {e.target for e in events if e.call in _RENAMES and e.path == opened}
    if not any(_is_synced(events, name, block.end, reply.start) for name in (opened, *sealed)):
        yield f"reply {one}: the segment was not synced between its block and the reply"
    folder = str(PurePosixPath(segment).parent)
    made = [e for e in events if e.call == "openat" and e.is_new and e.path == opened]
    made += [e for e in events if e.call in _RENAMES and e.target == opened]
    if made and not _is_synced(events, folder, made[0].end, reply.start):
        yield f"reply {one}: the entry of the segment was not synced"
    moved = [e for e in events if e.call in _RENAMES and e.target == folder]
    log = str(PurePosixPath(folder).parent)
    if moved and not _is_synced(events, log, moved[0].end, reply.start):
        yield f"reply {one}: the entry of the incarnation was not synced"


def _commits(events: Sequence[Event]) -> list[_Commit]:
    texts: dict[str, str] = {}
    found: list[_Commit] = []
    for event in events:
        if event.call in _WRITES and "/_delta_log/" in event.path:
            texts[event.path] = texts.get(event.path, "") + event.data
        place = _COMMIT.fullmatch(event.target) if event.call in _LINKS else None
        if place is None:
            continue
        actions = [json.loads(line) for line in texts.get(event.path, "").splitlines()]
        files = tuple(f"{place[1]}/{one['add']['path']}" for one in actions if "add" in one)
        known = {one["txn"]["appId"]: one["txn"]["version"] for one in actions if "txn" in one}
        found.append(_Commit(event, place[1], files, known))
    return found


def _uncovered(
    key: tuple[str, int],
    block: str,
    taking: Event,
    commits: Sequence[_Commit],
    events: Sequence[Event],
) -> Iterator[str]:
    app_id, sequence = key
    tables = {one.table for one in commits}
    wanted = {table for table in tables if ".".join(PurePosixPath(table).parts[-3:]) in block}
    for table in sorted(wanted or {"?"}):
        covering = [
            one
            for one in commits
            if one.table == table
            and one.transactions.get(app_id, -1) >= sequence
            and one.event.end < taking.start
        ]
        if not covering:
            yield f"segment {app_id}/{sequence}: taken away before a commit of {table} covers it"
            continue
        for text in _unsynced(covering[0], taking, events):
            yield f"segment {app_id}/{sequence}: {text}"


def _unsynced(commit: _Commit, taking: Event, events: Sequence[Event]) -> Iterator[str]:
    link = commit.event
    if not _is_on_disk(commit, taking.start, events):
        yield f"{link.target} was not synced before the taking away"
    folder = str(PurePosixPath(link.target).parent)
    if not _is_synced(events, folder, link.end, taking.start):
        yield f"{folder} was not synced between the commit and the taking away"
    yield from _unled(link.target, taking.start, events)


def _is_on_disk(commit: _Commit, before: int, events: Sequence[Event]) -> bool:
    """Whether the bytes of a commit were synced: as what it was written to, before it got its name,
    or by its name, in time."""
    link = commit.event
    last = max(e.end for e in events if e.call in _WRITES and e.path == link.path)
    return _is_synced(events, link.path, last, link.start) or _is_synced(
        events, link.target, link.end, before
    )


def _unled(path: str, before: int, events: Sequence[Event]) -> Iterator[str]:
    """New folders above a path whose entries were not synced in time."""
    for event in events:
        is_above = event.call in _MAKES and path.startswith(f"{event.path}/")
        folder = str(PurePosixPath(event.path).parent)
        if is_above and not _is_synced(events, folder, event.end, before):
            yield f"the entry of folder {event.path} was not synced in time"


def _torn(commit: _Commit, commits: Sequence[_Commit], events: Sequence[Event]) -> Iterator[str]:
    link = commit.event
    for file in commit.files:
        writes = [e.end for e in events if e.call in _WRITES and e.path == file]
        if not _is_synced(events, file, max(writes, default=link.start), link.start):
            yield f"data file {file} was not synced before its commit"
        made = [e.end for e in events if e.call == "openat" and e.is_new and e.path == file]
        folder = str(PurePosixPath(file).parent)
        if not _is_synced(events, folder, max(made, default=link.start), link.start):
            yield f"the entry of data file {file} was not synced before its commit"
        yield from _unled(file, link.start, events)
    for app_id, version in commit.transactions.items():
        payload = app_id.removeprefix("unpack:").replace(".", "/")
        for other in commits if app_id.startswith("unpack:") else ():
            number = int(PurePosixPath(other.event.target).stem)
            is_taken = other.table.endswith(f"/{payload}") and number <= version
            if is_taken and not _is_on_disk(other, link.start, events):
                yield f"{other.event.target} was unpacked before it was synced"


# The run -----------------------------------------------------------------------------------------


def can_trace() -> bool:
    """Whether strace is here and may trace."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return done.returncode == 0


def run(
    data_dir: Path,
    requests: int = 200,
    gateway: Sequence[str] = ("-m", "serving.gateway"),
    committer: Sequence[str] = ("-m", "capture"),
) -> Audit:
    """Requests through a gateway while the committer runs, both traced; then the audit.

    gateway, committer: what Python runs, as a planted fault has its own (see faults.py)."""
    settings = Settings(data_dir=data_dir)
    _make_endpoint(settings)
    traces = data_dir / "gateway.trace", data_dir / "committer.trace"
    with (
        _traced(settings, committer, traces[1], "committer"),
        _traced(settings, gateway, traces[0], "gateway") as ready,
    ):
        _ask(ready["port"], requests)
        _until(lambda: not list(settings.wal_dir.glob("*/*.seg")))
        unpacked = Path(settings.tables_root) / "main" / "d" / "audited_unpacked"
        _until(lambda: (unpacked / "_delta_log" / f"{1:020}.json").exists())
    shown = [parse(trace.read_text("latin-1").splitlines()) for trace in traces]
    return audit(*shown)


def _make_endpoint(settings: Settings) -> None:
    database.migrate(settings)
    endpoint = state.Endpoint(
        *("a" * 32, "audited", "admin", None, 1, 1, None, None, "NOT_UPDATING", None, None),
        *(False, [], None, None, None, None, False, None, 1),
    )
    entity = {"id": "1", "name": "v1", "entity_name": "main.d.m", "entity_version": "1"}
    route = {"served_model_name": "v1", "served_entity_name": "v1", "traffic_percentage": 100}
    table = {"catalog_name": "main", "schema_name": "d", "table_name_prefix": "audited"}
    config = {
        "served_entities": [{**entity, "workload_size": "Small"}],
        "traffic_config": {"routes": [route], "sticky": None},
        "auto_capture_config": {**table, "enabled": True, "acknowledgement": "power"},
    }
    engine = database.open_engine(settings)
    told: dict[str, Any] = {"created_by": "admin", "reason": None, "origin": "user", "now_ms": 1}
    with database.transaction(engine) as connection:
        state.insert_endpoint(connection, endpoint)
        state.accept_configuration(connection, endpoint, config, at_once=True, **told)
    engine.dispose()


@contextlib.contextmanager
def _traced(
    settings: Settings, program: Sequence[str], trace: Path, name: str
) -> Iterator[dict[str, int]]:
    ready, told = settings.run_dir / f"{name}.ready", {"pid": 0}
    shown = ["-f", "-y", "-s", str(SHOWN_BYTES), "-e", f"trace={CALLS}", "-o", str(trace)]
    process = subprocess.Popen(
        ["strace", "--seccomp-bpf", *shown, sys.executable, *program],
        env={
            **os.environ,
            "INFERLAKE_DATA_DIR": str(settings.data_dir),
            "INFERLAKE_ADMIN_TOKEN": TOKEN,
            "INFERLAKE_SERVICE_TOKEN": "the-service-token",
            "INFERLAKE_PORT": "0",
            "INFERLAKE_WAL_SEAL_SECONDS": "0.05",
            "DO_NOT_TRACK": "1",
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(lambda: ready.exists() or process.poll() is not None)
        assert process.poll() is None, f"The {name} did not start."
        told = json.loads(ready.read_text())
        yield told
        os.kill(told["pid"], signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()  # strace: what it traces goes on
            process.wait()
            if told["pid"]:
                os.kill(told["pid"], signal.SIGKILL)


def _until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "The condition did not come true in time."
        time.sleep(0.02)


def _ask(port: int, requests: int) -> None:
    path = "/serving-endpoints/audited/served-models/not-there/invocations"
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}

    def client() -> None:
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as api:
            for _ in range(requests // CLIENTS):
                answer = api.post(path, content=b'{"dataframe_records": [{"x": 1}]}')
                assert answer.status_code == 404, answer.text

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """The audit on a data directory of its own."""
    parser = argparse.ArgumentParser(description="The order of writes and syncs under `power`.")
    parser.add_argument("--requests", type=int, default=400)
    given = parser.parse_args()
    if not can_trace():
        sys.exit("strace is needed, and the right to trace.")
    folder = Path(tempfile.mkdtemp(prefix="inferlake-audit-"))
    found = run(folder, given.requests)
    for text in found.violations[:20]:
        print(text)
    is_good = not found.violations and found.replies >= given.requests and found.segments > 0
    print(
        f"{'ok    ' if is_good else 'MISSED'} {found.replies} replies, {found.segments} segments: "
        f"{len(found.violations)} violations (bar: 0)"
    )
    if is_good:
        shutil.rmtree(folder)
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
