"""`inferlake doctor`: what can be wrong with a data directory and its server, and what to do."""

import contextlib
import fcntl
import importlib.metadata
import json
import platform
import shutil
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import alembic.runtime.migration
import alembic.script
import sqlalchemy as sa

from capture import committer, database, exchanges, mending, names, tls, unpack, wal_files
from capture.settings import Settings
from serving import processes

GIB = 1 << 30
LOW_DISK_BYTES = 2 * GIB
SOON = timedelta(days=14)
PACKAGES = ("inferlake", "deltalake", "pyarrow", "mlflow-skinny", "scikit-learn", "streamlit")
BY_ITSELF = "`inferlake up` mends it, or `inferlake doctor --mend`"
BY_CONSENT = "stop the server; `inferlake doctor --mend` saves what can be saved"
PROCESSES = ("gateway", "controller", "committer", "monitor", "dashboard")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `advice`: what to do, empty where there is nothing to do."""

    subject: str
    found: str
    ok: bool = True
    advice: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order in which problems are best mended. Changes nothing."""
    findings = list(_data_dir(settings))
    if findings[-1].ok:
        for check in (_disk, _database, _server, _certificate, _log, _tables):
            findings.extend(_safely(check, settings))
    findings.extend(_versions())
    return findings


def _safely(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> list[Finding]:
    """A check that cannot be made is a finding, and the others go on."""
    try:
        return list(check(settings))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the doctor tells
        subject = check.__name__.strip("_").replace("_", " ")
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Finding(subject, f"could not be checked ({reason})", False, "see the reason")]


def _data_dir(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    if not folder.is_dir():
        yield Finding(
            "data directory", f"{folder} is not there", False, "give --data-dir, or `inferlake up`"
        )
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "data directory",
            f"{folder} can be read by others (mode {mode:o})",
            False,
            f"chmod 700 {folder}",
        )
    yield Finding("data directory", str(folder))


def _disk(settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(settings.data_dir).free
    enough = free >= LOW_DISK_BYTES
    advice = "" if enough else "make room; recording stops when the disk is full"
    yield Finding("disk", f"{free / GIB:.1f} GiB free", enough, advice)


def _database(settings: Settings) -> Iterator[Finding]:
    script = alembic.script.ScriptDirectory.from_config(database.alembic_configuration(settings))
    newest = script.get_current_head()
    engine = database.open_engine(settings)
    try:
        with database.reading(engine) as connection:
            present = alembic.runtime.migration.MigrationContext.configure(
                connection
            ).get_current_revision()
            if engine.dialect.name == "sqlite":
                sound = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            else:
                sound = connection.execute(sa.text("select 'ok'")).scalar()
    finally:
        engine.dispose()
    if sound != "ok":
        yield Finding("database", f"damaged ({sound})", False, "restore inferlake.db from a copy")
    elif present != newest:
        found = f"schema {present or 'none'}, this version needs {newest}"
        yield Finding("database", found, False, "`inferlake up` brings it up to date")
    else:
        yield Finding("database", f"sound, schema {present}")


def _server(settings: Settings) -> Iterator[Finding]:
    alive = {name: _alive(settings.run_dir / f"{name}.ready") for name in PROCESSES}
    if not any(alive.values()):
        yield Finding("server", "does not run", True, "start it with `inferlake up`")
        yield from _ports(settings)
        return
    for name, runs in alive.items():
        if runs:
            yield Finding(name, "runs")
        elif name == "dashboard":
            yield Finding(name, "does not run (perhaps by --no-dashboard)")
        else:
            where = settings.logs_dir / f"{name}.log"
            yield Finding(name, "does not run", False, f"its reason stands in {where}")
    yield _health(settings)


def _alive(ready: Path) -> bool:
    try:
        pid = int(json.loads(ready.read_text(encoding="utf-8"))["pid"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return processes.identity(pid) is not None


def _health(settings: Settings) -> Finding:
    url = f"{settings.url.rstrip('/')}/health"
    try:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=tls.trust(settings.tls_certificate)),
        )
        with opener.open(url, timeout=5) as reply:
            return Finding("API", f"{url} answers {reply.status}")
    except urllib.error.HTTPError as error:
        return Finding("API", f"{url} answers {error.code}", False, "wait, or see logs/gateway.log")
    except tls.Unusable as error:
        return Finding("API", str(error), False, "set INFERLAKE_TLS_CERTIFICATE")
    except OSError as error:
        reason = getattr(error, "reason", error)
        return Finding("API", f"{url} does not answer ({reason})", False, "set INFERLAKE_URL")


def _certificate(settings: Settings) -> Iterator[Finding]:
    if settings.tls_certificate is None:
        return
    try:
        expires = tls.expires_at(settings.tls_certificate)
    except tls.Unusable as error:
        yield Finding("certificate", str(error), False, "set INFERLAKE_TLS_CERTIFICATE")
        return
    good = expires - datetime.now(UTC) >= SOON
    advice = "" if good else "renew it, then start the server again"
    yield Finding("certificate", f"valid until {expires:%Y-%m-%d %H:%MZ}", good, advice)


def _ports(settings: Settings) -> Iterator[Finding]:
    for name, port in (("--port", settings.port), ("--dashboard-port", settings.dashboard_port)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                advice = f"stop what uses it, or choose another with {name}"
                yield Finding(f"port {port}", str(error.strerror), False, advice)
            else:
                yield Finding(f"port {port}", "free")


def _log(settings: Settings) -> Iterator[Finding]:
    waiting = wal_files.waiting_bytes(settings)
    share = waiting / settings.wal_backlog_bytes
    advice = "" if share < 0.5 else "see that the committer runs; logs/committer.log tells why not"
    found = f"{waiting / (1 << 20):.1f} MiB wait to be committed ({share:.0%} of what may)"
    yield Finding("write-ahead log", found, share < 0.5, advice)
    refused = sorted(settings.wal_dir.glob("*/*.refused"))
    if refused:
        found = f"{len(refused)} hold requests that could not be read, the first: {refused[0].name}"
        advice = "logs/committer.log tells why; rename to .seg what another version can read"
        yield Finding("segments set aside", found, False, advice)


def _tables(settings: Settings) -> Iterator[Finding]:
    if "://" in settings.tables_root:
        yield Finding("tables", f"{settings.tables_root} is not looked at")
        return
    folders = _folders(settings)
    broken = {folder: found for folder in folders if (found := _broken(folder))}
    for found in broken.values():
        yield from found
    sound = len(folders) - len(broken)
    yield Finding("tables", f"{sound} of {len(folders)} are sound", not broken)


def _folders(settings: Settings) -> list[Path]:
    return [path.parent for path in sorted(Path(settings.tables_root).glob("*/*/*/_delta_log"))]


def _broken(folder: Path) -> list[Finding]:
    name = ".".join(folder.parts[-3:])
    return [
        Finding(name, damage.found, False, BY_ITSELF if damage.by_itself else BY_CONSENT)
        for damage in mending.examine(folder)
    ]


# Mending -----------------------------------------------------------------------------------------


def mend(settings: Settings) -> list[Finding]:
    """Mend damaged tables, as far as it can be done, then look at everything as `examine` does."""
    with contextlib.ExitStack() as stack:
        if not _is_alone(settings, stack):
            advice = "stop it, then call `inferlake doctor --mend` again"
            return [Finding("mending", "the server runs", False, advice)]
        done = [*_mended(settings)]
    return [*done, *examine(settings)]


def _is_alone(settings: Settings, stack: contextlib.ExitStack) -> bool:
    """Whether nobody writes to the tables, nor can begin to before the stack is left."""
    for lock in (
        settings.run_dir / "up.lock",
        settings.wal_dir / "committer.lock",
        settings.wal_dir / "maintenance.lock",
    ):
        lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = stack.enter_context(lock.open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _mended(settings: Settings) -> Iterator[Finding]:
    folders = {".".join(folder.parts[-3:]): folder for folder in _folders(settings)}
    damaged = {name for name, folder in folders.items() if mending.examine(folder)}
    for name in sorted(damaged):
        yield from _told(name, mending.mend_log(folders[name]))
    # Rows that wait in the log come first: what is then still in no commit is lost otherwise.
    committer.Committer(settings).finish()
    waits = any(settings.wal_dir.glob("*/*.seg"))
    for name in sorted(damaged):
        if any(not damage.by_itself for damage in mending.examine(folders[name])):
            yield from _told(name, mending.mend_files(folders[name]))
            if not waits and not name.endswith("_unpacked"):
                yield from _told(name, mending.restore(folders[name]))
        payload = str(names.table_name(name).sibling("payload"))
        if name.endswith("_unpacked") and payload in folders:
            unpack.complete(settings, payload)


def _told(name: str, done: list[str]) -> list[Finding]:
    return [Finding(name, text) for text in done]


def _versions() -> Iterator[Finding]:
    yield Finding("Python", platform.python_version())
    compiled = Path(exchanges.__file__).suffix == ".so"
    yield Finding("gateway", "compiled" if compiled else "interpreted")
    for name in PACKAGES:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "is not installed", False, "install inferlake again")
