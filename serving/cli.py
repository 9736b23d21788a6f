"""The command line. Commands import what they need when they run, so that `--help` is instant.

Exit code 0: done; 2: wrong use; 1: everything else, with one sentence on standard error.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from capture.settings import Settings

app = typer.Typer(
    name="inferlake",
    help="Serve MLflow models, record every request, and shift traffic on evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
token = typer.Typer(help="Bearer tokens of people and programs.", no_args_is_help=True)
endpoints = typer.Typer(help="Serving endpoints.", no_args_is_help=True)
tables = typer.Typer(help="Recorded tables.", no_args_is_help=True)
app.add_typer(token, name="token")
app.add_typer(endpoints, name="endpoints")
app.add_typer(tables, name="tables")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where everything is kept.  [default: ./inferlake-data]", show_default=False),
]
BodyFile = Annotated[Path, typer.Option("-f", "--file", help="JSON body; - reads standard input.")]

SERVING = "/api/2.0/serving-endpoints"
OURS = "/api/1.0"


class CommandFailed(Exception):
    """What a command cannot do, in one sentence."""


# --- the server -----------------------------------------------------------------------------------


@app.command()
def up(
    data_dir: DataDir = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API.", show_default="8000")] = None,
    dashboard_port: Annotated[
        int | None, typer.Option(help="Port of the dashboard.", show_default="8501")
    ] = None,
    no_dashboard: Annotated[
        bool, typer.Option("--no-dashboard", help="Without the pages.")
    ] = False,
) -> None:
    """Run the server: API, models, recording, monitors, dashboard. Ends on Ctrl-C or SIGTERM."""
    from serving import supervisor

    settings = _settings(data_dir=data_dir, host=host, port=port, dashboard_port=dashboard_port)
    try:
        raise typer.Exit(supervisor.run(settings, dashboard=not no_dashboard))
    except supervisor.UpFailed as error:
        raise CommandFailed(str(error)) from None


@app.command()
def demo(
    data_dir: Annotated[Path, typer.Option(help="Made anew each time.")] = Path("inferlake-demo"),
    every: Annotated[
        int | None, typer.Option(min=1, help="Replay only every Nth flight.", show_default=False)
    ] = None,
    exit: Annotated[bool, typer.Option("--exit", help="End when done; else keep serving.")] = False,
) -> None:
    """The main job on real data, from nothing to a recommendation and a promotion."""
    from capture import errors
    from serving import supervisor
    from serving.demo import run

    try:
        raise typer.Exit(run.run(data_dir, every, exit))
    except (errors.InferlakeError, supervisor.UpFailed) as error:
        raise CommandFailed(str(error)) from None


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Look at everything that can be wrong, and say what to do about it."""
    from serving import doctor as checks

    findings = checks.examine(_settings(data_dir=data_dir))
    for finding in findings:
        mark = "ok     " if finding.ok else "problem"
        advice = f" -> {finding.advice}" if finding.advice else ""
        print(f"{mark}  {finding.subject}: {finding.found}{advice}")
    problems = sum(not finding.ok for finding in findings)
    if problems:
        noun = "problem" if problems == 1 else "problems"
        raise CommandFailed(f"{problems} {noun} found; the lines above say what to do.")


# --- tokens ---------------------------------------------------------------------------------------


@token.command("create")
def create_token(
    user: Annotated[str | None, typer.Option(help="Whose token.", show_default="you")] = None,
    comment: Annotated[str | None, typer.Option(help="What it is for.", show_default=False)] = None,
    lifetime_seconds: Annotated[
        int | None, typer.Option(min=1, help="Until it expires.", show_default="never")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a token and print it, alone and once."""
    body = {"user": user, "comment": comment, "lifetime_seconds": lifetime_seconds}
    given = {key: value for key, value in body.items() if value is not None}
    print(_call("POST", f"{OURS}/tokens", given, data_dir=data_dir)["token"])


@token.command("list")
def list_tokens(data_dir: DataDir = None) -> None:
    """Tokens that are valid."""
    found = _pages(f"{OURS}/tokens", "tokens", data_dir)
    _table(found, ("id", "user", "comment", "created_time", "expires_time"))


@token.command("revoke")
def revoke_token(token_id: str, data_dir: DataDir = None) -> None:
    """Make a token worthless at once."""
    _call("DELETE", f"{OURS}/tokens/{_quoted(token_id)}", data_dir=data_dir)


# --- endpoints ------------------------------------------------------------------------------------


@endpoints.command("list")
def list_endpoints(data_dir: DataDir = None) -> None:
    """Endpoints, their state and their traffic."""
    found = _call("GET", SERVING, data_dir=data_dir).get("endpoints") or []
    rows = [
        {
            "name": each["name"],
            "ready": each["state"]["ready"],
            "update": each["state"]["config_update"],
            "traffic": _traffic(each),
        }
        for each in found
    ]
    _table(rows, ("name", "ready", "update", "traffic"))


@endpoints.command("get")
def get_endpoint(name: str, data_dir: DataDir = None) -> None:
    """One endpoint as JSON."""
    _json(_call("GET", f"{SERVING}/{_quoted(name)}", data_dir=data_dir))


@endpoints.command("create")
def create_endpoint(file: BodyFile, data_dir: DataDir = None) -> None:
    """Create an endpoint from a JSON file (the body of POST /api/2.0/serving-endpoints)."""
    _json(_call("POST", SERVING, _body(file), data_dir=data_dir))


@endpoints.command("update")
def update_endpoint(name: str, file: BodyFile, data_dir: DataDir = None) -> None:
    """Give an endpoint its next configuration from a JSON file (the body of PUT .../config)."""
    path = f"{SERVING}/{_quoted(name)}/config"
    _json(_call("PUT", path, _body(file), data_dir=data_dir))


@endpoints.command("delete")
def delete_endpoint(name: str, data_dir: DataDir = None) -> None:
    """Delete an endpoint; its tables stay."""
    _call("DELETE", f"{SERVING}/{_quoted(name)}", data_dir=data_dir)


@endpoints.command("stop")
def stop_endpoint(name: str, data_dir: DataDir = None) -> None:
    """End an endpoint's replicas; queries are refused until it is started."""
    _summary(_call("POST", f"{OURS}/endpoints/{_quoted(name)}/stop", {}, data_dir=data_dir))


@endpoints.command("start")
def start_endpoint(name: str, data_dir: DataDir = None) -> None:
    """Start a stopped endpoint."""
    _summary(_call("POST", f"{OURS}/endpoints/{_quoted(name)}/start", {}, data_dir=data_dir))


@endpoints.command("logs")
def endpoint_logs(name: str, served_entity: str, data_dir: DataDir = None) -> None:
    """What the replicas of a served entity printed last."""
    path = f"{SERVING}/{_quoted(name)}/served-models/{_quoted(served_entity)}/logs"
    print(_call("GET", path, data_dir=data_dir)["logs"])


@endpoints.command("versions")
def endpoint_versions(name: str, data_dir: DataDir = None) -> None:
    """Configurations of an endpoint, newest first: what `rollback` can go back to."""
    found = _pages(f"{OURS}/endpoints/{_quoted(name)}/versions", "versions", data_dir)
    rows = [{**each, "traffic": _traffic(each)} for each in found]
    _table(rows, ("config_version", "created_time", "created_by", "origin", "traffic", "reason"))


@app.command()
def promote(
    endpoint: str,
    served_entity: str,
    traffic_percentage: Annotated[int, typer.Option(min=0, max=100)] = 100,
    reason: Annotated[str | None, typer.Option(show_default=False)] = None,
    if_config_version: Annotated[
        int | None, typer.Option(help="Only if this version is active.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Give a served entity this share of the traffic; the others share the rest."""
    body: dict[str, Any] = {
        "served_entity": served_entity,
        "traffic_percentage": traffic_percentage,
        "reason": reason,
        "if_config_version": if_config_version,
    }
    given = {key: value for key, value in body.items() if value is not None}
    path = f"{OURS}/endpoints/{_quoted(endpoint)}/promote"
    _summary(_call("POST", path, given, data_dir=data_dir))


@app.command()
def rollback(
    endpoint: str,
    to_config_version: Annotated[
        int | None, typer.Option(help="Which one.", show_default="the one before")
    ] = None,
    reason: Annotated[str | None, typer.Option(show_default=False)] = None,
    data_dir: DataDir = None,
) -> None:
    """Go back to an earlier configuration, as a new version."""
    body = {"to_config_version": to_config_version, "reason": reason}
    given = {key: value for key, value in body.items() if value is not None}
    path = f"{OURS}/endpoints/{_quoted(endpoint)}/rollback"
    _summary(_call("POST", path, given, data_dir=data_dir))


# --- tables ---------------------------------------------------------------------------------------


@tables.command("list")
def list_tables(data_dir: DataDir = None) -> None:
    """Tables that inferlake writes."""
    found = _pages(f"{OURS}/tables", "tables", data_dir)
    columns = list(dict.fromkeys(key for each in found for key in each)) or ["full_name"]
    _table(found, columns)


@tables.command("show")
def show_table(full_name: str, data_dir: DataDir = None) -> None:
    """Schema, files, bytes and versions of a table, as JSON."""
    _json(_call("GET", f"{OURS}/tables/{_quoted(full_name)}", data_dir=data_dir))


# --- calling --------------------------------------------------------------------------------------


def _settings(**given: Any) -> "Settings":
    from pydantic import ValidationError

    from capture.settings import Settings

    try:
        return Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "INFERLAKE_" + "_".join(str(part) for part in first["loc"]).upper()
        print(f"{name}: {first['msg']}; found {first['input']!r}.", file=sys.stderr)
        raise typer.Exit(2) from None


def _call(method: str, path: str, body: Any = None, data_dir: Path | None = None) -> Any:
    """The decoded reply of the server. Raises CommandFailed with its message."""
    import urllib.error
    import urllib.request

    settings = _settings(data_dir=data_dir)
    request = urllib.request.Request(
        settings.url.rstrip("/") + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {_token(settings)}", "Content-Type": "application/json"},
    )
    # Without a proxy: the environment's may be anybody's, and the token is in the header.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as reply:
            return json.loads(reply.read() or b"{}")
    except urllib.error.HTTPError as error:
        raise CommandFailed(_message(error.read(), error.code)) from None
    except (urllib.error.URLError, OSError, ValueError):
        raise CommandFailed(
            f"No server answers at {settings.url}; start one with `inferlake up`, "
            "or set INFERLAKE_URL."
        ) from None


def _pages(path: str, key: str, data_dir: Path | None) -> list[dict[str, Any]]:
    """All rows of a list that comes in pages."""
    rows: list[dict[str, Any]] = []
    query = "?page_size=1000"
    while True:
        found = _call("GET", path + query, data_dir=data_dir)
        rows += found.get(key) or []
        if not found.get("next_page_token"):
            return rows
        query = f"?page_size=1000&page_token={_quoted(found['next_page_token'])}"


def _token(settings: "Settings") -> str:
    """The token to send: INFERLAKE_TOKEN, the administrator's, or the stored one."""
    for given in (settings.token, settings.admin_token):
        if given is not None:
            return given.get_secret_value()
    stored = settings.data_dir / "admin-token"
    try:
        return stored.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise CommandFailed(
            f"There is no token in {stored}; set INFERLAKE_TOKEN, or name the server's --data-dir."
        ) from None
    except OSError as error:
        raise CommandFailed(f"The token in {stored} cannot be read: {error.strerror}.") from None


def _message(raw: bytes, status: int) -> str:
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered {status}."


def _body(file: Path) -> Any:
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return json.loads(raw)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CommandFailed(f"{file} is not valid JSON: {error}.") from None


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


# --- printing -------------------------------------------------------------------------------------


def _traffic(described: dict[str, Any]) -> str:
    config = described.get("config") or {}
    routes = (config.get("traffic_config") or {}).get("routes") or []
    return ", ".join(f"{r['served_model_name']} {r['traffic_percentage']} %" for r in routes)


def _summary(described: dict[str, Any]) -> None:
    """One line about a changed endpoint."""
    shown = (
        described
        if "pending_config" not in described
        else {**described, "config": described["pending_config"]}
    )
    version = (shown.get("config") or {}).get("config_version")
    update = described.get("state", {}).get("config_update")
    print(
        f"{described['name']}: configuration {version}, {update}: {_traffic(shown) or 'no traffic'}"
    )


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Aligned columns with their names above; nothing found is a header alone."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # A name from outside must not move the cursor of the terminal that shows it.
    return "".join(character if character.isprintable() else "?" for character in text)


def main() -> None:
    """Entry point of `inferlake`."""
    try:
        app()
    except CommandFailed as error:
        sys.exit(_failed(str(error)))
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is left to say, not even at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _failed(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
