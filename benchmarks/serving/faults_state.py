"""Rows of the fault matrix: the state database is locked or gone, a full disk, a jumping clock."""

import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from faults_ground import SUM, Answer, Figure, House, clocked, entity, failed, plus, unclean, until

DISK_BYTES = 256 << 20
START_SECONDS, WELL_SECONDS = 10, 5


def state_locked(house: House, seconds: float = 12) -> list[Figure]:
    """The state database is locked: queries go on from memory, a control call waits or is told."""
    house.create("remembered", entity(SUM))
    path = house.settings.data_dir / "inferlake.db"
    with house.load("remembered", 100, plus(1)) as load, ThreadPoolExecutor(1) as pool:
        until(lambda: load.first_good_after(0))
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        body = {"tags": [{"key": "a", "value": "b"}]}
        call = pool.submit(
            house.api.patch, "/api/2.0/serving-endpoints/remembered/tags",
            json={"add_tags": body["tags"]},
        )  # fmt: skip
        time.sleep(seconds)
        lock.execute("ROLLBACK")
        lock.close()
        told = call.result().status_code
    return [
        Figure("failed", failed(load.answers), most=0),
        Figure("control call: status", told, most=503, least=200),
        Figure("control call: wrong", float(told not in (200, 503)), most=0),
        Figure("requests", len(load.answers)),
    ]


def state_gone(house: House, seconds: float = 60) -> list[Figure]:
    """The state database is gone, then there again: queries go on from memory, a control call
    waits or is told, and afterwards changes work."""
    house.create("bereft", entity(SUM))
    folder = house.settings.data_dir
    aside = folder / "aside"
    aside.mkdir()
    tags = "/api/2.0/serving-endpoints/bereft/tags"
    with house.load("bereft", 100, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        files = sorted(folder.glob("inferlake.db*"))
        for file in files:
            file.rename(aside / file.name)
        gone = time.monotonic()
        during = house.api.patch(tags, json={"add_tags": [{"key": "a", "value": "b"}]}).status_code
        time.sleep(max(0.0, gone + seconds - time.monotonic()))
        for file in folder.glob("inferlake.db*"):  # made anew by who looked for one
            file.unlink()
        for file in files:
            (aside / file.name).rename(file)
        until(lambda: house.api.patch(tags, json={"delete_tags": ["a"]}).status_code == 200)
    return [
        Figure("failed", failed(load.answers), most=0),
        Figure("control call: status", during, most=503, least=200),
        Figure("control call: wrong", float(during not in (200, 500, 503)), most=0),
        Figure("requests", len(load.answers)),
    ]


@contextmanager
def small_disk(folder: Path, size: int = DISK_BYTES) -> Iterator[Path]:
    """A disk of its own that is small. Raises PermissionError where none may be mounted."""
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise PermissionError("Mounting needs root.")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def disk_full(house: House) -> list[Figure]:
    """The disk fills under load, the server is started again, space comes back: clean answers all
    the way, and it is well again. The house lies on a disk of its own."""
    table = {"catalog_name": "main", "schema_name": "default", "enabled": True}
    house.create("filled", entity(SUM), auto_capture_config=table)
    filler = house.settings.data_dir.parent / "filler"
    answers: list[Answer] = []
    with house.load("filled", 100, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        _fill(filler)
        time.sleep(5)
    answers += load.answers
    house.end()
    started = house.start()
    until(lambda: house.ask("filled", plus(1))[0].status)
    answers += house.ask("filled", *[plus(1)] * 10)
    filler.unlink()
    freed = time.monotonic()
    until(lambda: house.ask("filled", plus(1))[0].status == 200)
    well = time.monotonic() - freed
    return [
        Figure("unclean", unclean(answers), most=0),
        clocked("start on a full disk, s", started, most=START_SECONDS),
        clocked("well after space, s", well, most=WELL_SECONDS),
        Figure("refused", failed(answers)),
    ]


# Imported by every Python process of the server at its start: a clock that is wrong by as many
# seconds as a file says.
WRONG_CLOCK = """
import os, time
path, true_time, true_ns, seen = os.environ["FAULTS_CLOCK"], time.time, time.time_ns, [-1.0, 0.0]
def wrong_by():
    if time.monotonic() - seen[0] > 0.05:
        with open(path) as file:
            seen[:] = time.monotonic(), float(file.read() or seen[1])
    return seen[1]
time.time = lambda: true_time() + wrong_by()
time.time_ns = lambda: true_ns() + int(wrong_by()) * 10**9
"""


def wrong_clock(folder: Path) -> dict[str, str]:
    """Environment of a server whose clock can be set: `FAULTS_CLOCK` names the file."""
    place = folder / "clock"
    place.mkdir()
    (place / "sitecustomize.py").write_text(WRONG_CLOCK)
    (place / "seconds").write_text("0")
    before = os.environ.get("PYTHONPATH")
    path = str(place) if before is None else f"{place}{os.pathsep}{before}"
    return {"PYTHONPATH": path, "FAULTS_CLOCK": str(place / "seconds")}


def clock_jumps(house: House, pause_seconds: float = 4) -> list[Figure]:
    """The clock jumps a day ahead, then two days back: nobody is refused, nothing is restarted, and
    control goes on. The house has a `wrong_clock`."""
    house.create("timeless", entity(SUM))
    clock = house.settings.data_dir.parent / "clock" / "seconds"
    names = ("gateway", "controller", "committer", "monitor")
    before = [house.pid(name) for name in names], house.worker_pids("timeless")
    with house.load("timeless", 50, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        for days in (1, -1):
            clock.write_text(str(days * 86_400))
            time.sleep(pause_seconds)
        kept = before == ([house.pid(name) for name in names], house.worker_pids("timeless"))
        house.update("timeless", entity(SUM, "2"))
    return [
        Figure("failed", failed(load.answers), most=0),
        Figure("processes kept", float(kept), least=1),
        Figure("requests", len(load.answers)),
    ]


def _fill(path: Path) -> None:
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()


ROWS = {each.__name__: each for each in (state_locked, state_gone, disk_full, clock_jumps)}
