"""`inferlake up`: claim a data directory, start everything, say that it is ready, end in order.

Children die with this process (SIGKILL, at once: after a crash of it the next `up` must find the
port free). Workers do not: they are orphaned to the next subreaper or to init, and the next
controller adopts them.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from capture import database, errors, logline, sealing, tls
from capture.settings import Settings
from serving import access_state, children, contract, processes, vault

log = logline.logger(__name__)

CODE_SECONDS = 600
LONGEST_SOCKET_PATH_BYTES = 107


class UpFailed(Exception):
    """`up` cannot start or go on; the message is one sentence for the person who typed it."""


def run(settings: Settings, dashboard: bool = True, wait_for_dashboard: bool = True) -> int:
    """Be the supervisor until a signal comes; gives the exit code. Raises UpFailed.

    Call it in the main thread of a process of its own: it takes over signals and orphans."""
    with (
        _claimed(settings, dashboard) as claimed,
        contextlib.closing(children.Signals()) as signals,
    ):
        database.migrate(claimed)
        _renew_seals(claimed)
        processes.become_subreaper()
        names = [name for name in children.MODULES if dashboard or name != children.DASHBOARD]
        environments = {name: _environment(claimed, name) for name in names}
        house = children.House(claimed, environments, signals)
        try:
            house.start()
            awaited = set(names) - (set() if wait_for_dashboard else {children.DASHBOARD})
            if house.wait_until_ready(awaited):
                _tell_ready(claimed, dashboard)
                house.watch_until_signalled()
        except children.DoesNotStart as error:
            raise UpFailed(str(error)) from None
        finally:
            house.stop()
    return 0


# --- before the start -----------------------------------------------------------------------------


@contextlib.contextmanager
def _claimed(settings: Settings, dashboard: bool) -> Iterator[Settings]:
    """Hold the data directory for this process; gives settings with nothing left to choose."""
    if settings.backend != "local":
        raise UpFailed(
            f"INFERLAKE_BACKEND={settings.backend} is not offered yet; without it replicas run on "
            "this machine."
        )
    settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute()})
    longest = len(os.fsencode(settings.run_dir / f"w-{'0' * 12}.sock"))
    if longest > LONGEST_SOCKET_PATH_BYTES:
        allowed = LONGEST_SOCKET_PATH_BYTES - longest + len(os.fsencode(settings.data_dir))
        raise UpFailed(f"The data directory's path is too long; at most {allowed} bytes are.")
    for folder in (settings.data_dir, settings.run_dir, settings.logs_dir, settings.wal_dir):
        _make(folder)
    _make(settings.mlflow_artifacts_dir)
    with (settings.run_dir / "up.lock").open("a", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpFailed(
                f"Another `inferlake up` uses {settings.data_dir}; stop it, or give --data-dir."
            ) from None
        for stale in settings.run_dir.glob("*.ready"):
            stale.unlink()
        yield settings.model_copy(
            update={
                **_tls(settings),
                **_ports(settings, dashboard),
                "admin_token": SecretStr(_admin_token(settings)),
                "service_token": SecretStr(secrets.token_urlsafe(32)),
            }
        )


def _tls(settings: Settings) -> dict[str, Path]:
    """Certificate and key, if given, each with its whole path. Raises UpFailed."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        if certificate is not key:
            given, missing = ("certificate", "key") if key is None else ("key", "certificate")
            raise UpFailed(f"--tls-{given} is given without --tls-{missing}; HTTPS takes both.")
        return {}
    try:
        tls.check(certificate, key)
    except tls.Unusable as error:
        raise UpFailed(str(error)) from None
    return {"tls_certificate": certificate.absolute(), "tls_key": key.absolute()}


def _ports(settings: Settings, dashboard: bool) -> dict[str, int]:
    """The ports to use, each free just now. Raises UpFailed."""
    port = _free_port(settings.host, settings.port, "--port")
    if not dashboard:
        return {"port": port}
    if settings.dashboard_port == port:
        raise UpFailed(f"Port {port} cannot be both the API's and the dashboard's.")
    pages = _free_port(settings.host, settings.dashboard_port, "--dashboard-port")
    return {"port": port, "dashboard_port": pages}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UpFailed(f"{folder} cannot be made: {error.strerror}.") from None


def _free_port(host: str, port: int, option: str) -> int:
    """This port, or a free one for 0. Raises UpFailed."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UpFailed(
                f"Port {port} on {host} cannot be used ({error.strerror}); "
                f"stop what uses it, or choose another with {option}."
            ) from None
        return int(probe.getsockname()[1])


def admin_token_path(settings: Settings) -> Path:
    """Where the bootstrap administrator's token lies, if `up` made it."""
    return settings.data_dir / "admin-token"


def _admin_token(settings: Settings) -> str:
    """The administrator's token: given, stored, or made now and stored for its owner alone."""
    if settings.admin_token is not None:
        given = settings.admin_token.get_secret_value()
        if not given or not all("!" <= character <= "~" for character in given):
            raise UpFailed("INFERLAKE_ADMIN_TOKEN must be printable ASCII without spaces.")
        return given
    path = admin_token_path(settings)
    if path.is_file():
        return path.read_text(encoding="ascii").strip()
    made = f"inferlake_{secrets.token_urlsafe(32)}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(made + "\n")
    return made


def _renew_seals(settings: Settings) -> None:
    """Seal with the key of the settings what an earlier one sealed. Raises UpFailed."""
    if settings.secret_key is None and settings.secret_key_before is None:
        return
    engine = database.open_engine(settings)
    try:
        sealing.check(settings)
        with database.transaction(engine) as connection:
            renewed, unknown = vault.renew(connection, settings)
    except errors.InvalidParameter as error:
        raise UpFailed(error.message) from None
    finally:
        engine.dispose()
    if renewed:
        log.info("secrets_sealed_anew", secrets=renewed)
    if unknown:
        advice = "give the key that sealed them as INFERLAKE_SECRET_KEY_BEFORE, or write them again"
        log.error("secrets_not_opened", secrets=unknown, advice=advice)


# --- what people are told -------------------------------------------------------------------------


def dashboard_link(settings: Settings) -> str:
    """A link that signs the administrator in to the dashboard, once, within ten minutes."""
    code = secrets.token_urlsafe(24)
    digest = hashlib.sha256(code.encode()).digest()
    expires_ms = (time.time_ns() // 1_000_000) + CODE_SECONDS * 1000
    engine = database.open_engine(settings)
    try:
        with database.transaction(engine) as connection:
            access_state.add_sign_in_code(connection, digest, contract.ADMIN_USER, expires_ms)
    finally:
        engine.dispose()
    return f"{_scheme(settings)}://{_shown(settings.host)}:{settings.dashboard_port}/?code={code}"


def _url(settings: Settings) -> str:
    return f"{_scheme(settings)}://{_shown(settings.host)}:{settings.port}"


def _scheme(settings: Settings) -> str:
    return "http" if settings.tls_certificate is None else "https"


def _shown(host: str) -> str:
    """A host as it stands in a URL; one that means "all addresses" is reached as this machine."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _tell_ready(settings: Settings, dashboard: bool) -> None:
    url = _url(settings)
    stored = admin_token_path(settings)
    token = f'"$(cat {stored})"' if stored.is_file() else "$INFERLAKE_ADMIN_TOKEN"
    lines = [f"inferlake serves at {url}", f"  data       {settings.data_dir}"]
    if settings.tls_certificate is not None:
        trusted = f"INFERLAKE_TLS_CERTIFICATE={settings.tls_certificate}"
        lines.append(f"  commands   export INFERLAKE_URL={url} {trusted}")
    if stored.is_file():
        lines.append(f"  token      {stored} (the administrator's; only you can read it)")
    if dashboard:
        lines.append(f"  dashboard  {dashboard_link(settings)}")
        lines.append("             signs you in once, within 10 minutes; `inferlake up` makes more")
    lines += [
        f"  next       export DATABRICKS_HOST={url} DATABRICKS_TOKEN={token}",
        "             then use the Databricks SDK, MLflow's deployments client or curl,",
        "             or see all of it on real data in a second terminal: inferlake demo",
        "  stop       Ctrl-C (open requests are answered first)",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
    print(f"ready {url}", flush=True)


def _environment(settings: Settings, name: str) -> dict[str, str]:
    """What a child sees. Tokens and keys go to those alone that use them."""
    environment = exported(settings)
    unsealing = (children.GATEWAY, children.CONTROLLER, children.MONITOR)
    kept = {
        "INFERLAKE_SECRET_KEY": unsealing,
        "INFERLAKE_SECRET_KEY_BEFORE": unsealing,
        "INFERLAKE_ADMIN_TOKEN": (children.GATEWAY,),
        "INFERLAKE_SERVICE_TOKEN": (children.GATEWAY, children.MONITOR),
    }
    for variable, users in kept.items():
        if name not in users:
            environment.pop(variable, None)
    if name == children.CONTROLLER:
        environment["INFERLAKE_STOP_WORKERS"] = "1"
    return environment


def exported(settings: Settings) -> dict[str, str]:
    """Our environment with these settings in it, for a child process."""
    environment = {k: v for k, v in os.environ.items() if k != "INFERLAKE_TOKEN"}
    chosen = {*settings.model_fields_set, "data_dir", "host", "port", "dashboard_port"}
    for name in chosen - {"url", "token", "mlflow_tracking_uri"}:
        value, variable = getattr(settings, name), f"INFERLAKE_{name.upper()}"
        if value is None:
            environment.pop(variable, None)
            continue
        environment[variable] = (
            value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        )
    environment["INFERLAKE_DATA_DIR"] = str(settings.data_dir.absolute())
    environment["INFERLAKE_URL"] = _url(settings)
    environment["MLFLOW_TRACKING_URI"] = settings.mlflow_uri
    environment["MLFLOW_REGISTRY_URI"] = settings.mlflow_uri
    environment["DO_NOT_TRACK"] = "1"
    return environment


# --- for programs ---------------------------------------------------------------------------------


class Running:
    """A whole server as a context: a child process that is `inferlake up`.

        with supervisor.Running(settings) as running:
            running.url, running.admin_token, running.dashboard_link()

    Entering waits for the ready line (`wait_for_dashboard=False`: not for the pages, which take the
    longest) and raises UpFailed; leaving drains and waits for the end. A port of 0 is chosen. The
    server's log lines go to `logs/up.log`. If this program is killed, the server drains and ends.
    """

    def __init__(
        self, settings: Settings, dashboard: bool = True, wait_for_dashboard: bool = True
    ) -> None:
        # Ports of 0 are chosen here, for the address must be known on both sides.
        for name in ("port", "dashboard_port"):
            if getattr(settings, name) == 0:
                chosen = _free_port(settings.host, 0, name)
                settings = settings.model_copy(update={name: chosen})
        self.settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute()})
        self._arguments = [] if dashboard else ["--no-dashboard"]
        if dashboard and not wait_for_dashboard:
            self._arguments.append("--dashboard-later")
        self.process: subprocess.Popen[str] | None = None
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._started = threading.Event()

    @property
    def url(self) -> str:
        return _url(self.settings)

    @property
    def admin_token(self) -> str:
        return _admin_token(self.settings)

    def dashboard_link(self) -> str:
        """A new link that signs the administrator in, once, within ten minutes."""
        return dashboard_link(self.settings)

    def dashboard_answers(self) -> bool:
        """The pages can be opened by now."""
        return (self.settings.run_dir / f"{children.DASHBOARD}.ready").exists()

    def __enter__(self) -> Self:
        _make(self.settings.logs_dir)
        self._keeper.start()
        self._started.wait()
        if self.process is None or self.process.stdout is None:
            raise UpFailed("The server's process cannot be started.")
        for line in self.process.stdout:
            if line.startswith("ready "):
                return self
        self.__exit__(None, None, None)
        raise UpFailed(self._last_words())

    def _keep(self) -> None:
        # A child that is tied to its parent is tied to the thread that started it: one that lives
        # as long as the child, not one of the caller's, which may come from a pool.
        try:
            with self.log_path.open("wb") as log_file:
                self.process = subprocess.Popen(
                    processes.tied(
                        [sys.executable, "-P", "-m", "serving.supervisor", *self._arguments],
                        signal.SIGTERM,
                    ),
                    env=exported(self.settings),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log_file,
                    text=True,
                    start_new_session=True,
                )
        finally:
            self._started.set()
        self.process.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process is not None and self.process.stdout is not None
        self.process.terminate()
        self._keeper.join()
        self.process.stdout.close()

    @property
    def log_path(self) -> Path:
        """The supervisor's own output."""
        return self.settings.logs_dir / "up.log"

    def _last_words(self) -> str:
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line and not line.startswith("{")]
        return said[-1] if said else f"The server did not start; more in {self.log_path}."


def main(arguments: list[str] | None = None) -> int:
    """`python -m serving.supervisor`: `inferlake up` with the settings of the environment."""
    parser = argparse.ArgumentParser(prog="python -m serving.supervisor")
    parser.add_argument("--no-dashboard", action="store_true")
    parser.add_argument("--dashboard-later", action="store_true", help="ready without the pages")
    options = parser.parse_args(arguments)
    given: dict[str, Any] = {}
    try:
        return run(Settings(**given), not options.no_dashboard, not options.dashboard_later)
    except UpFailed as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
