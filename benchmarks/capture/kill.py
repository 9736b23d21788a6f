"""How many acknowledged rows are lost, doubled or torn over many SIGKILLs? Bar: none.

    python benchmarks/capture/kill.py --kills 300

Two writers, as two gateways of one node, append to the log, one of them under `power`, and say
through a pipe what was accepted. They, the committer, or everything is killed at random moments, a
process group at a time, and started again. Dead writers' open segments get garbage tails. Commits
are as dense as they can be. Three legs share the kills:

    loop       a bare committer loop; in some rounds the writers meet writes that fall short
    process    `python -m capture` with its maintenance child, which is also killed alone
    full disk  the loop on a small disk that is full half of the time

In the end everything is committed, unpacked, read back and compared: of the payload tables, then of
the unpacked ones. One line a leg; exit code 1 if a row is not as it should be.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import psutil

from capture import (
    blocks,
    committer,
    contexts,
    database,
    delta,
    delta_history,
    delta_log,
    errors,
    exchanges,
    names,
    unpack,
    wal,
)
from capture.settings import Settings

TABLES = ("kill.capture.a_payload", "kill.capture.b_payload")
DAY_US = 86_400_000_000
START_SECONDS = 60.0
COMMIT_SECONDS = 10.0  # longest wait for one; on a full disk there may be none
FINISH_SECONDS = 180.0
PAUSE_SECONDS = 0.002  # between appends: enough rows to lose, few enough to compare
CONTEXT = contexts.packed(
    contexts.Context(
        sampling_fraction=1.0,
        served_entity_id=None,
        requester=None,
        endpoint_id="kill",
        served_entity_name="v1",
        model_name=None,
        model_version=None,
        config_version=1,
        route_share=None,
        route_split=None,
        shadow=False,
        content_type=None,
    )
)
SMALL_DISK_BYTES = 256 << 20
SMALL_SEGMENTS = {"wal_seal_bytes": 1 << 16, "wal_seal_seconds": 0.02}
# So that most kills fall into a commit, and a reserve fits on the small disk.
DENSE = committer.Limits(batch_rows=2_000, reserve_bytes=2 << 20)
Garbage = Callable[[random.Random, bytes], bytes]  # what comes behind the bytes of a segment
GARBAGE: tuple[Garbage, ...] = (
    lambda chance, segment: b"",
    lambda chance, segment: chance.randbytes(chance.randint(1, 5000)),
    lambda chance, segment: bytes(chance.randint(1, 5000)),
    lambda chance, segment: segment[64 : 64 + chance.randint(1, 300)],
    lambda chance, segment: b"ILB1" + chance.randbytes(36),
    lambda chance, segment: changed_block(segment),
)
# A process is forked from one that has imported everything: a round takes less than a second.
forking = multiprocessing.get_context("forkserver")
forking.set_forkserver_preload(["capture.committer", "capture.database", "capture.wal"])


def whole_bytes(segment: bytes) -> int:
    """Where the last whole block of a segment ends; without a whole header, its end."""
    try:
        return blocks.read_segment(segment)[1].end
    except blocks.NotASegment:
        return len(segment)


def changed_block(segment: bytes) -> bytes:
    """The last whole block of a segment, with a byte of a row changed."""
    found = blocks.read_segment(segment)[1].blocks if segment else []
    if not found:
        return b""
    block = segment[found[-1].offset : found[-1].offset + found[-1].length]
    place = block.index(b'"digest": "') + len(b'"digest": "')
    return block[:place] + b"x" + block[place + 1 :]


def settings_of(data_dir: Path) -> Settings:
    """Segments far smaller and shorter than usual, so that commits are dense."""
    return Settings(data_dir=data_dir, **SMALL_SEGMENTS)  # type: ignore[arg-type]


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def content(name: str) -> str:
    """The request of a row: tells whether it came back whole."""
    text = "ü" * int(digest(name)[:2], 16)
    record = {"name": name, "digest": digest(name), "text": text}
    return json.dumps({"dataframe_records": [record]}, ensure_ascii=False)


def row(name: str, time_us: int) -> exchanges.Exchange:
    """A request as the gateway logs it. name: the text of a UUID, which becomes its id."""
    return exchanges.exchange(
        CONTEXT,
        time_ns=time_us * 1000,
        number=UUID(name).int,
        status=200,
        request=content(name).encode(),
        response=b'{"predictions": [0.5]}',
        cap_bytes=1 << 20,
        usage_context=json.dumps({"name": name}).encode(),
    )


# The processes that are killed -------------------------------------------------------------------


def write(
    data_dir: Path, seed: int, power: bool, short_writes: bool, group: int, answer: Any
) -> None:
    """Append for ever; tell the names of rows after `append` returned. group: to be killed with."""
    _begin(group)
    chance = random.Random(seed)
    settings = settings_of(data_dir)
    log = wal.Log(settings.wal_dir, settings)
    os.write(answer.fileno(), b"started\n")
    number = 0
    while True:
        found = [
            str(UUID(int=seed << 64 | number + n)) for n in range(chance.choice((1, 1, 3, 16)))
        ]
        number += len(found)
        # Around midnight, so that batches have two dates.
        now_us = 20_000 * DAY_US + chance.randint(-1000, 1000)
        if short_writes and chance.random() < 0.05:
            _limit_files(chance.randint(0, 1 << 16))
        try:
            log.append(chance.choice(TABLES), "payload", [row(n, now_us) for n in found], power)
        except errors.LogFull:
            _limit_files(resource.RLIM_INFINITY)
        else:
            os.write(answer.fileno(), ("\n".join(found) + "\n").encode())
        log.tick()
        time.sleep(PAUSE_SECONDS)


def _limit_files(size: int) -> None:
    """Writes beyond this size of a file fall short, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def commit(data_dir: Path) -> None:
    """Commit for as long as the benchmark lives."""
    _begin(0)
    settings = settings_of(data_dir)
    one = committer.Committer(settings, limits=DENSE)
    parent = os.getppid()
    while os.getppid() == parent:  # nobody else ends it, should the benchmark be killed
        # On a full disk even a turn may fail; the process's loop lives on, and so does this one.
        with contextlib.suppress(OSError):
            one.turn()


def _begin(group: int) -> None:
    os.setpgid(0, group)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # refused writes would fill the screen


@dataclass(slots=True)
class Writer:
    """A writer process, and what it said was accepted."""

    process: Any
    answers: Any
    accepted: list[str] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    reader: threading.Thread | None = None

    def listen(self) -> None:
        with os.fdopen(os.dup(self.answers.fileno()), "rb") as lines:
            for line in lines:
                if line == b"started\n":
                    self.started.set()
                elif line.endswith(b"\n"):
                    self.accepted.append(line.decode().strip())

    def bury(self) -> list[str]:
        """After its death: everything that was accepted."""
        self.process.join()
        assert self.reader is not None
        self.reader.join()
        self.answers.close()
        return self.accepted


@dataclass(frozen=True, slots=True)
class Jobs:
    """What the processes run, and what dead writers' segments get; a planted fault has its own (see
    faults.py)."""

    write: Callable[..., None] = write
    commit: Callable[[Path], None] = commit
    garbage: tuple[Garbage, ...] = GARBAGE


class Writers:
    """Two gateways of a node, in one process group."""

    def __init__(self, data_dir: Path, seed: int, short_writes: bool, job: Callable[..., None]):
        self._all: list[Writer] = []
        self.group = 0
        for place in range(2):
            answers, answer = forking.Pipe(duplex=False)
            power = (seed + place) % 2 == 1
            arguments = (data_dir, 2 * seed + place, power, short_writes, self.group, answer)
            process = forking.Process(target=job, args=arguments)
            process.start()
            answer.close()
            writer = Writer(process, answers)
            writer.reader = threading.Thread(target=writer.listen)
            writer.reader.start()
            assert writer.started.wait(START_SECONDS), "A writer did not start."
            self.group = self.group or process.pid
            self._all.append(writer)

    def kill(self) -> list[str]:
        """Kill both at once; everything that was accepted."""
        os.killpg(self.group, signal.SIGKILL)
        return [name for writer in self._all for name in writer.bury()]


class Committing:
    """The committer, with whatever children it has, in a process group of its own."""

    def __init__(self, data_dir: Path, whole_process: bool, job: Callable[[Path], None]) -> None:
        if whole_process:
            small = {f"INFERLAKE_{name.upper()}": str(n) for name, n in SMALL_SEGMENTS.items()}
            environment = {**os.environ, **small, "INFERLAKE_DATA_DIR": str(data_dir)}
            self._process: Any = subprocess.Popen(
                [sys.executable, "-m", "capture"],
                env=environment,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            return
        self._process = forking.Process(target=job, args=(data_dir,))
        self._process.start()
        end = time.monotonic() + START_SECONDS
        while os.getpgid(self._process.pid) != self._process.pid:
            assert time.monotonic() < end, "The committer did not start."
            time.sleep(0.001)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        if isinstance(self._process, subprocess.Popen):
            self._process.wait()
        else:
            self._process.join()

    def kill_child(self) -> bool:
        """Kill the maintenance process alone; False if there is none just now."""
        children = psutil.Process(self._process.pid).children()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        return bool(children)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It stands still: what is done meanwhile is there before it looks."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)


# The disk ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A small disk of its own on a folder; False where only root may make one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        # Lazily, since we hold the state database open for as long as we live.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled_now_and_then(folder: Path, chance: random.Random) -> Iterator[None]:
    """The disk is full, then has space, then is full: for moments of chance."""
    over = threading.Event()
    filler = folder / "filler"

    def fill() -> None:
        while not over.wait(chance.uniform(0.05, 0.4)):
            disk = os.statvfs(folder)
            left = chance.randint(0, 256 << 10)
            with filler.open("wb") as file, contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - left)
            over.wait(chance.uniform(0.05, 0.4))
            filler.unlink()

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        filler.unlink(missing_ok=True)


# The run -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the rows."""

    kills: int
    accepted: int
    commits: int
    lost: int
    doubled: int
    torn: int
    unpacked_lost: int
    unpacked_doubled: int
    unpacked_torn: int
    examples: tuple[str, ...]  # names of some rows that are not as they should be

    @property
    def is_clean(self) -> bool:
        wrong = (self.lost, self.doubled, self.torn)
        return not any((*wrong, self.unpacked_lost, self.unpacked_doubled, self.unpacked_torn))

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.accepted} rows accepted, {self.commits} commits: "
            f"lost {self.lost}, doubled {self.doubled}, torn {self.torn}; unpacked: "
            f"lost {self.unpacked_lost}, doubled {self.unpacked_doubled}, torn {self.unpacked_torn}"
        )


class Run:
    """Writers and a committer on a data directory, killed and started again."""

    def __init__(self, data_dir: Path, seed: int, whole_process: bool, jobs: Jobs) -> None:
        self._settings = settings_of(data_dir)
        self._chance = random.Random(seed)
        self._whole_process = whole_process
        self._jobs = jobs
        self._rounds = 0
        self.accepted: list[str] = []
        self.kills = 0
        database.migrate(self._settings)
        self._committing = self._committer()
        self._writers = self._pair()

    def _committer(self) -> Committing:
        return Committing(self._settings.data_dir, self._whole_process, self._jobs.commit)

    def _pair(self) -> Writers:
        self._rounds += 1
        short_writes = self._rounds % 4 >= 2
        return Writers(self._settings.data_dir, self._rounds, short_writes, self._jobs.write)

    def round(self) -> None:
        """Wait for a moment of chance, kill something, start it again."""
        # One kill in four falls anywhere, perhaps into a start; the others after a commit at least,
        # since on a busy machine starts are all that would be killed.
        if self._chance.random() < 0.75:
            self._await_commit()
        # A whole process needs time to unpack, too.
        time.sleep(self._chance.uniform(0.0, 2.0 if self._whole_process else 0.3))
        victim = self._chance.choice(("writers", "committer", "everything"))
        if victim == "committer":
            alone = self._whole_process and self._chance.random() < 0.5
            if not (alone and self._committing.kill_child()):
                self._committing.kill()
                self._committing = self._committer()
        elif victim == "writers":
            self._bury()
            with self._committing.stopped():
                self._spoil()
            self._writers = self._pair()
        else:
            self._committing.kill()
            self._bury()
            self._spoil()
            self._committing, self._writers = self._committer(), self._pair()
        self.kills += 1

    def _await_commit(self) -> None:
        before, end = self._commits(), time.monotonic() + COMMIT_SECONDS
        while self._commits() == before and time.monotonic() < end:
            time.sleep(0.002)

    def _commits(self) -> list[int]:
        paths = [delta.path_of(self._settings, table) for table in TABLES]
        return [max(delta_log.commit_versions(path), default=-1) for path in paths]

    def _bury(self) -> None:
        self.accepted += self._writers.kill()

    def _spoil(self) -> None:
        """Put garbage behind the blocks that killed writers left open, over whatever is there."""
        for path in self._settings.wal_dir.glob("*/*.open"):
            # On a full disk there is no room for garbage, or for half of it.
            with contextlib.suppress(OSError), path.open("r+b") as file:
                segment = file.read()
                file.seek(whole_bytes(segment))
                file.write(self._chance.choice(self._jobs.garbage)(self._chance, segment))

    def end(self) -> None:
        """Kill everything for the last time."""
        self._committing.kill()
        self._bury()


def run(
    data_dir: Path,
    kills: int,
    seed: int = 0,
    whole_process: bool = False,
    is_full: bool = False,
    jobs: Jobs = Jobs(),
) -> Outcome:
    """Kill `kills` times; see what the tables hold. is_full: fill the disk of `data_dir`."""
    with contextlib.ExitStack() as stack:
        one = Run(data_dir, seed, whole_process, jobs)
        stack.callback(one.end)
        if is_full:
            stack.enter_context(filled_now_and_then(data_dir, random.Random(seed)))
        while one.kills < kills:
            one.round()
    settings = settings_of(data_dir)
    _finish(settings)
    return _outcome(settings, one.accepted, one.kills)


def _finish(settings: Settings) -> None:
    one = committer.Committer(settings)
    end = time.monotonic() + FINISH_SECONDS

    def left() -> list[Path]:
        return [*settings.wal_dir.glob("*/*.seg"), *settings.wal_dir.glob("*/*.open")]

    while left():
        one.finish()  # may take minutes by itself, where much was left
        assert not left() or time.monotonic() < end, "The log was not taken in."
    for table in TABLES:
        unpack.follow(settings, table)


def _read(settings: Settings, tables: list[str], columns: list[str]) -> pl.DataFrame:
    paths = [str(delta.path_of(settings, table)) for table in tables]
    return pl.concat([pl.read_delta(path, columns=columns) for path in paths])


def _outcome(settings: Settings, accepted: list[str], kills: int) -> Outcome:
    columns = ["databricks_request_id", "request", "usage_context"]
    found = _read(settings, list(TABLES), columns)
    counts = Counter(found["databricks_request_id"])
    torn = [
        name
        for name, request, context in found.iter_rows()
        if request != content(name) or context != {"name": name}
    ]
    lost = [name for name in accepted if name not in counts]
    doubled = [name for name, count in counts.items() if count > 1]

    unpacked = [str(names.table_name(table).sibling("unpacked")) for table in TABLES]
    typed = _read(settings, unpacked, ["databricks_request_id", "name", "digest"])
    typed_counts = Counter(typed["databricks_request_id"])
    typed_torn = [row for row in typed.iter_rows() if row[1:] != (row[0], digest(row[0]))]
    typed_lost = counts.keys() - typed_counts.keys()
    typed_doubled = [name for name, count in typed_counts.items() if count > 1]

    paths = [delta.path_of(settings, table) for table in TABLES]
    commits = sum(delta_history.files_since(path, -1).version for path in paths)
    examples = (*lost[:5], *doubled[:5], *torn[:5], *list(typed_lost)[:5], *typed_doubled[:5])
    return Outcome(
        kills,
        len(accepted),
        commits,
        len(lost),
        len(doubled),
        len(torn),
        len(typed_lost),
        len(typed_doubled),
        len(typed_torn),
        examples,
    )


# The legs ----------------------------------------------------------------------------------------


def legs(kills: int) -> dict[str, int]:
    """How many of the kills each leg has."""
    process, full_disk = kills // 7, kills // 6
    return {"loop": kills - process - full_disk, "process": process, "full disk": full_disk}


def run_leg(leg: str, folder: Path, kills: int, seed: int) -> tuple[str, Outcome]:
    """What ran, and what became of the rows."""
    if leg != "full disk":
        return leg, run(folder, kills, seed, whole_process=leg == "process")
    with small_disk(folder) as is_small:
        said = f"full disk (tmpfs of {SMALL_DISK_BYTES >> 20} MiB)"
        if not is_small:
            said = "full disk (short writes by RLIMIT_FSIZE, for only root can mount)"
        return said, run(folder, kills, seed, is_full=is_small)


def main() -> None:
    """All legs."""
    parser = argparse.ArgumentParser(description="Rows lost, doubled, torn over SIGKILLs.")
    parser.add_argument("--kills", type=int, default=100, help="300 take eight minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leg", choices=list(legs(0)), help="only this one")
    given = parser.parse_args()
    shares = {given.leg: given.kills} if given.leg else legs(given.kills)
    clean = True
    for leg, kills in shares.items():
        folder = Path(tempfile.mkdtemp(prefix="inferlake-kill-"))
        said, outcome = run_leg(leg, folder, kills, given.seed)
        print(
            f"{'ok    ' if outcome.is_clean else 'MISSED'} {said}: {outcome} (bar: 0)", flush=True
        )
        if outcome.is_clean:
            shutil.rmtree(folder)
        else:
            print(f"The folder is kept: {folder}; examples: {', '.join(outcome.examples)}")
            clean = False
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
