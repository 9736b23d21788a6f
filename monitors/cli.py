"""Commands on monitors, alerts and webhooks: calls of the HTTP API, printed for a person.

`inferlake` mounts the three apps. Modules are imported when a command runs, so that `--help` is
instant. Exit code 0: done; 1: the server refused or does not answer, with one sentence on standard
error; 2: wrong use.
"""

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import typer

OURS = "/api/1.0"
UNITY = "/api/2.1/unity-catalog/tables"
POLL_SECONDS = 0.2
TIMEOUT_SECONDS = 60.0

monitors_app = typer.Typer(help="Monitors of tables.", no_args_is_help=True)
alerts_app = typer.Typer(help="Alerts and their rules.", no_args_is_help=True)
webhooks_app = typer.Typer(help="Receivers of events.", no_args_is_help=True)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where everything is kept.  [default: ./inferlake-data]", show_default=False),
]
Body = Annotated[Path, typer.Option("-f", "--file", help="JSON body; - reads standard input.")]
Optional = typer.Option(show_default=False)


def fail(message: str) -> NoReturn:
    """End with 1 and one sentence on standard error."""
    print(message, file=sys.stderr)
    raise typer.Exit(1)


def call(
    method: str,
    path: str,
    body: Any = None,
    data_dir: Path | None = None,
    query: dict[str, Any] | None = None,
) -> Any:
    """The decoded reply of the server; ends the command when it refuses."""
    import httpx2

    from capture import tls
    from capture.settings import Settings

    given: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir}
    settings = Settings(**given)
    token = settings.token or settings.admin_token
    stored = settings.data_dir / "admin-token"
    if token is None and not stored.exists():
        fail(f"There is no token in {stored}; set INFERLAKE_TOKEN, or name the server's data.")
    text = token.get_secret_value() if token is not None else stored.read_text("ascii").strip()
    asked = {name: value for name, value in (query or {}).items() if value is not None}
    try:
        answer = httpx2.request(
            method,
            settings.url.rstrip("/") + path,
            json=body,
            params=asked,
            headers={"Authorization": f"Bearer {text}"},
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            verify=tls.trust(settings.tls_certificate),
        )
        found = answer.json()
    except tls.Unusable as error:
        fail(str(error))
    except (httpx2.HTTPError, ValueError) as error:
        fail(tls.no_answer(settings.url, error))
    if answer.status_code >= 400:
        said = found.get("message") if isinstance(found, dict) else None
        fail(str(said or f"The server answered {answer.status_code}."))
    return found


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Aligned columns under their names; nothing found is a header alone."""
    lines = [[column.upper() for column in columns]]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    # Names and messages come from others: no control character reaches the terminal.
    return "".join(character if character.isprintable() else " " for character in str(value))


def _monitor(name: str) -> str:
    return f"{UNITY}/{quote(name, safe='')}/monitor"


# --- monitors ------------------------------------------------------------------------------------


@monitors_app.command("list")
def list_monitors(data_dir: DataDir = None) -> None:
    """Monitors, their state and the column that is farthest over its limit."""
    found = call("GET", f"{OURS}/monitors", data_dir=data_dir, query={"page_size": 1000})
    rows = [
        {
            **one,
            "last_refresh": (one["last_refresh"] or {}).get("state"),
            "worst_column": (one["worst_column"] or {}).get("column"),
            "effect": (one["worst_column"] or {}).get("effect"),
        }
        for one in found["monitors"]
    ]
    columns = ("table", "endpoint", "status", "last_refresh", "worst_column", "effect")
    table(rows, columns)


@monitors_app.command("show")
def show_monitor(name: str, data_dir: DataDir = None) -> None:
    """One monitor as JSON."""
    print(json.dumps(call("GET", _monitor(name), data_dir=data_dir), indent=2))


@monitors_app.command("create")
def create_monitor(name: str, file: Body, data_dir: DataDir = None) -> None:
    """Watch a table; the body is that of POST .../monitor."""
    print(json.dumps(call("POST", _monitor(name), _read(file), data_dir), indent=2))


@monitors_app.command("update")
def update_monitor(name: str, file: Body, data_dir: DataDir = None) -> None:
    """Replace the fields that the body gives; it is that of PUT .../monitor."""
    print(json.dumps(call("PUT", _monitor(name), _read(file), data_dir), indent=2))


def _read(file: Path) -> Any:
    """The JSON in a file; ends the command when there is none."""
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return json.loads(raw)
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}.")
    except ValueError as error:
        fail(f"{file} is not valid JSON: {error}.")


@monitors_app.command("delete")
def delete_monitor(name: str, data_dir: DataDir = None) -> None:
    """Forget a monitor; its metric tables stay."""
    call("DELETE", _monitor(name), data_dir=data_dir)


@monitors_app.command("refresh")
def refresh_monitor(
    name: str,
    until: Annotated[str | None, typer.Option(help="End of what is judged (RFC 3339).")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for its end.")] = True,
    data_dir: DataDir = None,
) -> None:
    """Judge what is new now."""
    path = f"{_monitor(name)}/refreshes"
    body = {} if until is None else {"until": until}
    found = call("POST", path, body, data_dir)
    while wait and found["state"] in ("PENDING", "RUNNING"):
        time.sleep(POLL_SECONDS)
        found = call("GET", f"{path}/{found['refresh_id']}", data_dir=data_dir)
    said = f"refresh {found['refresh_id']} {found['state']}"
    said += f": {_cell(found['message'])}" if found.get("message") else ""
    if found["state"] in ("FAILED", "CANCELED"):
        fail(said)
    print(said)


@monitors_app.command("refreshes")
def list_refreshes(name: str, data_dir: DataDir = None) -> None:
    """The newest 25 refreshes, how far they are and what they said."""
    found = call("GET", f"{_monitor(name)}/refreshes", data_dir=data_dir)
    rows = [
        {**one, "started": _time(one["start_time_ms"]), "ended": _time(one.get("end_time_ms"))}
        for one in found["refreshes"]
    ]
    columns = ("refresh_id", "state", "trigger", "started", "ended", "progress", "message")
    table(rows, columns)


def _time(unix_ms: int | None) -> str | None:
    if unix_ms is None:
        return None
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(" ", "seconds")


@monitors_app.command("cancel")
def cancel_refresh(name: str, refresh_id: int, data_dir: DataDir = None) -> None:
    """End a refresh: at once if it waits, between two files if it runs."""
    call("POST", f"{_monitor(name)}/refreshes/{refresh_id}/cancel", data_dir=data_dir)


@monitors_app.command("drift")
def show_drift(
    name: str,
    served_entity: Annotated[str | None, Optional] = None,
    slice_: Annotated[
        str | None, typer.Option("--slice", help="EXPRESSION=VALUE of a slice.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """The newest window of every column, the farthest over its limit first."""
    path = f"{OURS}/monitors/{quote(name, safe='')}/drift"
    query = {"served_entity": served_entity, "slice": slice_}
    found = call("GET", path, data_dir=data_dir, query=query)
    rows = [
        {"column": one["name"], **one["cells"][-1], "window": one["cells"][-1]["window"][0]}
        for one in found["columns"]
    ]
    table(rows, ("column", "window", "status", "severity", "metric", "value", "threshold", "n"))


@monitors_app.command("quality")
def show_quality(name: str, data_dir: DataDir = None) -> None:
    """The newest window of every metric and version, with its 95 % interval."""
    found = call("GET", f"{OURS}/monitors/{quote(name, safe='')}/quality", data_dir=data_dir)
    rows = [
        {**one, **one["points"][-1], "window": one["points"][-1]["window"][0]}
        for one in found["series"]
    ]
    table(rows, ("served_entity", "metric", "window", "value", "low", "high", "labelled", "rows"))


# --- alerts --------------------------------------------------------------------------------------


@alerts_app.command("list")
def list_alerts(
    endpoint: Annotated[str | None, Optional] = None,
    state: Annotated[str, typer.Option(help="open or closed")] = "open",
    data_dir: DataDir = None,
) -> None:
    """Alerts, newest first."""
    query = {"endpoint": endpoint, "state": state, "page_size": 1000}
    found = call("GET", f"{OURS}/alerts", data_dir=data_dir, query=query)
    table(found["alerts"], ("id", "endpoint", "severity", "opened_time", "message"))


@alerts_app.command("rules")
def list_rules(endpoint: Annotated[str | None, Optional] = None, data_dir: DataDir = None) -> None:
    """Rules, in the order they were made."""
    query = {"endpoint": endpoint, "page_size": 1000}
    found = call("GET", f"{OURS}/alert-rules", data_dir=data_dir, query=query)
    rows = [
        {**one, "condition": "{operator} {threshold:g}".format(**one["condition"])}
        for one in found["alert_rules"]
    ]
    columns = ("id", "endpoint", "name", "metric", "column", "condition", "severity", "enabled")
    table(rows, columns)


@alerts_app.command("acknowledge")
def acknowledge_alert(alert_id: str, data_dir: DataDir = None) -> None:
    """Say that somebody looks after it."""
    call("POST", f"{OURS}/alerts/{quote(alert_id, safe='')}/acknowledge", {}, data_dir)


@alerts_app.command("mute")
def mute_alert(
    alert_id: str,
    until: Annotated[str, typer.Option(help="RFC 3339 time.")],
    reason: Annotated[str | None, Optional] = None,
    data_dir: DataDir = None,
) -> None:
    """No events of this cause until then."""
    body = {"until": until, **({"reason": reason} if reason else {})}
    call("POST", f"{OURS}/alerts/{quote(alert_id, safe='')}/mute", body, data_dir)


# --- webhooks ------------------------------------------------------------------------------------


def _webhook(webhook_id: str, what: str = "") -> str:
    return f"{OURS}/webhooks/{quote(webhook_id, safe='')}{what}"


@webhooks_app.command("list")
def list_webhooks(data_dir: DataDir = None) -> None:
    """Receivers and the events that they asked for."""
    found = call("GET", f"{OURS}/webhooks", data_dir=data_dir, query={"page_size": 1000})
    table(found["webhooks"], ("id", "url", "events", "description"))


@webhooks_app.command("create")
def create_webhook(
    url: str,
    event: Annotated[list[str], typer.Option(help="alert.*, endpoint.promoted, ...; repeat it.")],
    description: Annotated[str | None, Optional] = None,
    format: Annotated[str, typer.Option(help="standard, or slack for Slack's own hooks.")] = (
        "standard"
    ),
    data_dir: DataDir = None,
) -> None:
    """Register a receiver; prints its id and, this once, its secret."""
    body = {"url": url, "events": event, "format": format}
    if description:
        body["description"] = description
    found = call("POST", f"{OURS}/webhooks", body, data_dir)
    print(found["id"], found["secret"])


@webhooks_app.command("delete")
def delete_webhook(webhook_id: str, data_dir: DataDir = None) -> None:
    """Forget a receiver and what was on its way to it."""
    call("DELETE", _webhook(webhook_id), data_dir=data_dir)


@webhooks_app.command("test")
def test_webhook(webhook_id: str, data_dir: DataDir = None) -> None:
    """Send an event `webhook.test`."""
    print(call("POST", _webhook(webhook_id, "/test"), {}, data_dir)["id"])


@webhooks_app.command("rotate-secret")
def rotate_secret(webhook_id: str, data_dir: DataDir = None) -> None:
    """A new secret, printed this once; the old one goes on for a day."""
    print(call("POST", _webhook(webhook_id, "/rotate-secret"), {}, data_dir)["secret"])


@webhooks_app.command("deliveries")
def list_deliveries(webhook_id: str, data_dir: DataDir = None) -> None:
    """What was sent or waits, newest first, and why the last attempt failed."""
    query = {"page_size": 1000}
    found = call("GET", _webhook(webhook_id, "/deliveries"), data_dir=data_dir, query=query)
    columns = ("id", "event", "state", "attempts", "next_attempt_time", "last_error")
    table(found["deliveries"], columns)


@webhooks_app.command("redeliver")
def redeliver(webhook_id: str, delivery_id: str, data_dir: DataDir = None) -> None:
    """Try a delivery again, whatever became of it."""
    what = f"/deliveries/{quote(delivery_id, safe='')}/redeliver"
    call("POST", _webhook(webhook_id, what), {}, data_dir)
