"""The dashboard process: Streamlit without its telemetry, file watcher and toolbar.

Writes `run/dashboard.ready` once the health route answers, removes it at the end, and ends on
SIGTERM with exit code 0.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import httpx2

from dashboard import api

POLL_SECONDS = 0.1
HEADINGS = ["2rem", "1.7rem", "1.35rem", "1.2rem", "1.05rem", "1rem"]  # h1 .. h6
APP = Path(__file__).with_name("app.py")


def options(host: str, port: int) -> list[str]:
    """Streamlit's command line."""
    chosen = {
        "server.address": host,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.runOnSave": "false",
        "server.maxUploadSize": "1",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "logger.level": "warning",
        "theme.base": "light",
        "theme.primaryColor": "#0B5CAD",
        "theme.textColor": "#1F2933",
        "theme.secondaryBackgroundColor": "#F4F6F9",
        "theme.baseRadius": "6px",
        "theme.baseFontSize": "15",
        "theme.showWidgetBorder": "true",
        "theme.paddingTop": "1rem",
        "theme.headingFontSizes": json.dumps(HEADINGS),
        "theme.paddingBottom": "3rem",
        "theme.metricValueFontSize": "1.7rem",
    }
    certificate, key = (os.environ.get(f"INFERLAKE_TLS_{name}") for name in ("CERTIFICATE", "KEY"))
    if certificate and key:
        chosen |= {"server.sslCertFile": certificate, "server.sslKeyFile": key}
    return ["run", str(APP), *(f"--{name}={value}" for name, value in chosen.items())]


def announce(host: str, port: int, ready: Path, ended: threading.Event) -> None:
    """Create the ready file when the server answers."""
    scheme = "https" if os.environ.get("INFERLAKE_TLS_CERTIFICATE") else "http"
    url = f"{scheme}://{host}:{port}/_stcore/health"
    with httpx2.Client(trust_env=False, timeout=2.0, verify=api.trust()) as client:
        while not ended.wait(POLL_SECONDS):
            try:
                if client.get(url).status_code == 200:
                    break
            except httpx2.TransportError:
                continue
    if not ended.is_set():
        ready.parent.mkdir(parents=True, exist_ok=True)
        ready.write_text(json.dumps({"pid": os.getpid()}))
        warm()


def warm() -> None:
    """Pay for the imports of charts and tables before the first visitor does."""
    for module in (
        "pandas",
        "pyarrow",
        "dashboard.evidence",
        "dashboard.shapes",
        "dashboard.configuring",
        "dashboard.metering",
    ):
        importlib.import_module(module)
    charts = importlib.import_module("dashboard.charts")
    charts.traffic([("", [("v1", 100.0)])]).to_json()


def main() -> int:
    host = os.environ.get("INFERLAKE_HOST", "127.0.0.1")
    port = int(os.environ.get("INFERLAKE_DASHBOARD_PORT", "8501"))
    data_dir = Path(os.environ.get("INFERLAKE_DATA_DIR", "inferlake-data"))
    ready = data_dir.absolute() / "run" / "dashboard.ready"
    ready.unlink(missing_ok=True)
    # Streamlit sets its own handler once it serves; before that a signal must end us as cleanly.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from streamlit.web import cli  # half a second of imports, behind the signal handler

    ended = threading.Event()
    threading.Thread(target=announce, args=(host, port, ready, ended), daemon=True).start()
    try:
        # Streamlit greets on standard output, which belongs to `inferlake up`.
        with contextlib.redirect_stdout(sys.stderr):
            cli.main(options(host, port), prog_name="streamlit", standalone_mode=False)
    finally:
        ended.set()
        ready.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
