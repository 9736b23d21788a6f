"""How many acknowledged rows are lost, doubled or torn over many SIGKILLs? Bar: none.

    python benchmarks/capture/kill.py --kills 1000

Writers append to the log and say through a pipe what was accepted; they and the committer are
killed at random moments. Dead writers' open segments get garbage tails; some writers meet writes
that fall short, as on a full disk. Commits are as dense as they can be. In the end everything is
committed, read back and compared. `--committer process` kills the real process with its
maintenance child instead of a bare loop.
"""

import argparse
import hashlib
import json
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from capture import committer, database, delta, delta_history, errors, rows, wal
from capture.settings import Settings

TABLES = ("kill.capture.a_payload", "kill.capture.b_payload")
DAY_US = 86_400_000_000
START_SECONDS = 60.0
FINISH_SECONDS = 900.0
DENSE = committer.Limits(batch_rows=2_000)  # so that most kills fall into a commit
GARBAGE: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    lambda chance, segment: b"",
    lambda chance, segment: chance.randbytes(chance.randint(1, 5000)),
    lambda chance, segment: bytes(chance.randint(1, 5000)),
    lambda chance, segment: segment[64 : 64 + chance.randint(1, 300)],
    lambda chance, segment: b"ILB1" + chance.randbytes(36),
)


def settings_of(data_dir: Path) -> Settings:
    """Segments far smaller and shorter than usual, so that commits are dense."""
    small = {"wal_seal_bytes": 1 << 16, "wal_seal_seconds": 0.02}
    return Settings(data_dir=data_dir, **small)  # type: ignore[arg-type]


def content(name: str) -> str:
    """The request of a row: tells whether it came back whole."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    text = "ü" * int(digest[:2], 16)
    return json.dumps({"name": name, "digest": digest, "text": text}, ensure_ascii=False)


def row(name: str, time_us: int) -> rows.Payload:
    return rows.Payload(
        request_date=time_us // DAY_US,
        databricks_request_id=name,
        client_request_id=None,
        request_time=time_us,
        status_code=200,
        sampling_fraction=1.0,
        execution_duration_ms=1,
        request=content(name),
        response="{}",
        served_entity_id=None,
        logging_error_codes=None,
        requester=None,
        endpoint_id="kill",
        served_entity_name="v1",
        model_name=None,
        model_version=None,
        config_version=1,
        route_share=None,
        route_split=None,
        unit_id=None,
        shadow=False,
        looked_up=None,
        usage_context={"name": name},
        error_source=None,
        request_encoding="utf-8",
        content_type=None,
        gateway_us=0,
        queue_us=0,
        features_us=0,
        predict_us=0,
    )


# The processes that are killed -------------------------------------------------------------------


def write(data_dir: Path, seed: int, power: bool, short_writes: bool) -> None:
    """Append for ever; print the names of rows after `append` returned."""
    chance = random.Random(seed)
    settings = settings_of(data_dir)
    log = wal.Log(settings.wal_dir, settings)
    number = 0
    while True:
        names = [f"{seed}-{number + n}" for n in range(chance.choice((1, 1, 3, 16)))]
        number += len(names)
        # Around midnight, so that batches have two dates.
        now_us = 20_000 * DAY_US + chance.randint(-1000, 1000)
        if short_writes and chance.random() < 0.05:
            _limit_files(chance.randint(0, 1 << 16))
        try:
            log.append(chance.choice(TABLES), "payload", [row(n, now_us) for n in names], power)
        except errors.LogFull:
            _limit_files(resource.RLIM_INFINITY)
        else:
            os.write(1, ("\n".join(names) + "\n").encode())
        log.tick()


def _limit_files(size: int) -> None:
    """Writes beyond this size of a file fall short, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def commit(data_dir: Path) -> None:
    """Commit for ever."""
    settings = settings_of(data_dir)
    one = committer.Committer(settings, limits=DENSE)
    committer.write_whole(settings.run_dir / "committer.ready", json.dumps({"pid": os.getpid()}))
    while True:
        one.turn()


# The run -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Writer:
    """A writer process, and what it said was accepted."""

    process: subprocess.Popen[bytes]
    accepted: list[str] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)
    reader: threading.Thread | None = None

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.accepted.append(line.decode().strip())
                self.first.set()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.reader is not None and self.process.stdout is not None
        self.reader.join()
        self.process.stdout.close()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the rows."""

    kills: int
    accepted: int
    lost: int
    doubled: int
    torn: int
    commits: int
    examples: tuple[str, ...]  # names of some rows that are not as they should be

    @property
    def is_clean(self) -> bool:
        return self.lost == self.doubled == self.torn == 0


def _start_writer(data_dir: Path, seed: int, power: bool, short_writes: bool) -> Writer:
    flags = ["--power"] * power + ["--short-writes"] * short_writes
    command = [sys.executable, __file__, "write", str(data_dir), str(seed), *flags]
    # Only the pipe is watched; refused writes would fill the screen.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    writer = Writer(process)
    writer.reader = threading.Thread(target=writer.listen)
    writer.reader.start()
    return writer


def _start_committer(data_dir: Path, whole_process: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "commit", str(data_dir)]
    environment = {**os.environ, "INFERLAKE_DATA_DIR": str(data_dir)}
    if whole_process:
        command = [sys.executable, "-m", "capture"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    ready = settings_of(data_dir).run_dir / "committer.ready"
    end = time.monotonic() + START_SECONDS
    while not (ready.exists() and json.loads(ready.read_text())["pid"] == process.pid):
        assert time.monotonic() < end, "The committer did not start."
        time.sleep(0.01)
    return process


def _spoil(directory: Path, chance: random.Random) -> None:
    """Put garbage behind what killed writers left open."""
    for path in directory.glob("*/*.open"):
        with path.open("r+b") as file:
            segment = file.read()
            file.write(chance.choice(GARBAGE)(chance, segment))


def run(
    data_dir: Path,
    kills: int,
    seed: int = 0,
    whole_process: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Kill writers and committers in turn, `kills` times in all; see what the tables hold."""
    chance = random.Random(seed)
    settings = settings_of(data_dir)
    database.migrate(settings)
    accepted: list[str] = []
    committing = _start_committer(data_dir, whole_process)
    done = round_number = 0
    while done < kills:
        power, short_writes = round_number % 2 == 1, round_number % 4 >= 2
        writer = _start_writer(data_dir, round_number, power, short_writes)
        assert writer.first.wait(START_SECONDS), "The writer did not start."
        time.sleep(chance.uniform(0.0, 0.3))  # the moment of a kill is chance; nothing is awaited
        if done + 1 < kills:
            committing.send_signal(signal.SIGKILL)
            committing.wait()
            committing = _start_committer(data_dir, whole_process)
            done += 1
            time.sleep(chance.uniform(0.0, 0.5))
        writer.kill()
        done += 1
        _stopped(committing, lambda: _spoil(settings.wal_dir, chance))
        accepted += writer.accepted
        round_number += 1
        if round_number % 25 == 0:
            tell(f"{done} kills, {len(accepted)} rows accepted")
    committing.send_signal(signal.SIGKILL)
    committing.wait()
    _finish(settings)
    return _outcome(settings, accepted, done)


def _stopped(process: subprocess.Popen[bytes], job: Callable[[], None]) -> None:
    """Do something while the committer stands still: garbage is there before it looks."""
    process.send_signal(signal.SIGSTOP)
    job()
    process.send_signal(signal.SIGCONT)


def _finish(settings: Settings) -> None:
    one = committer.Committer(settings)
    end = time.monotonic() + FINISH_SECONDS
    while list(settings.wal_dir.glob("*/*.seg")) + list(settings.wal_dir.glob("*/*.open")):
        one.finish()
        assert time.monotonic() < end, "The log was not taken in."


def _outcome(settings: Settings, accepted: list[str], kills: int) -> Outcome:
    paths = [delta.path_of(settings, table) for table in TABLES]
    columns = ["databricks_request_id", "request", "usage_context"]
    found = pl.concat([pl.read_delta(str(path), columns=columns) for path in paths])
    counts = Counter(found["databricks_request_id"])
    torn = [
        name
        for name, request, context in found.iter_rows()
        if request != content(name) or context != {"name": name}
    ]
    lost = [name for name in accepted if name not in counts]
    doubled = [name for name, count in counts.items() if count > 1]
    commits = sum(delta_history.files_since(path, -1).version for path in paths)
    numbers = kills, len(accepted), len(lost), len(doubled), len(torn), commits
    return Outcome(*numbers, (*lost[:5], *doubled[:5], *torn[:5]))


def main() -> None:
    """The long form, or one of its processes."""
    parser = argparse.ArgumentParser(description="Rows lost, doubled, torn over SIGKILLs.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--committer", choices=("loop", "process"), default="loop")
    jobs = parser.add_subparsers(dest="job")
    writing = jobs.add_parser("write")
    writing.add_argument("data_dir", type=Path)
    writing.add_argument("writer_seed", type=int)
    writing.add_argument("--power", action="store_true")
    writing.add_argument("--short-writes", action="store_true")
    jobs.add_parser("commit").add_argument("data_dir", type=Path)
    given = parser.parse_args()
    if given.job == "write":
        write(given.data_dir, given.writer_seed, given.power, given.short_writes)
    elif given.job == "commit":
        commit(given.data_dir)
    folder = Path(tempfile.mkdtemp(prefix="inferlake-kill-"))
    whole = given.committer == "process"
    outcome = run(folder, given.kills, given.seed, whole, lambda line: print(line, flush=True))
    if outcome.is_clean:
        shutil.rmtree(folder)
    else:
        print(f"The folder is kept: {folder}; examples: {', '.join(outcome.examples)}")
    print(
        f"{outcome.kills} kills, {outcome.accepted} rows accepted, {outcome.commits} commits: "
        f"lost {outcome.lost}, doubled {outcome.doubled}, torn {outcome.torn}"
    )
    sys.exit(0 if outcome.is_clean else 1)


if __name__ == "__main__":
    main()
