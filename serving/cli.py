"""The command line. Commands import what they need when they run, so that `--help` is instant.

Exit code 0: done; 2: wrong use; 1: everything else, with one sentence on standard error.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from monitors import cli as monitors_cli
from monitors import files_cli
from serving import console, tables_cli

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
app.add_typer(token, name="token")
app.add_typer(endpoints, name="endpoints")
app.add_typer(tables_cli.app, name="tables")
app.add_typer(monitors_cli.monitors_app, name="monitors")
app.add_typer(monitors_cli.alerts_app, name="alerts")
app.add_typer(monitors_cli.webhooks_app, name="webhooks")
files_cli.register(app)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where everything is kept.  [default: ./inferlake-data]", show_default=False),
]
BodyFile = Annotated[Path, typer.Option("-f", "--file", help="JSON body; - reads standard input.")]

SERVING = "/api/2.0/serving-endpoints"
OURS = "/api/1.0"


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
    tls_certificate: Annotated[
        Path | None,
        typer.Option(help="Speak HTTPS with this certificate (PEM, with its chain)."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of the certificate (PEM).")
    ] = None,
    no_dashboard: Annotated[
        bool, typer.Option("--no-dashboard", help="Without the pages.")
    ] = False,
) -> None:
    """Run the server: API, models, recording, monitors, dashboard. Ends on Ctrl-C or SIGTERM."""
    from serving import supervisor

    settings = console.read_settings(
        data_dir=data_dir,
        host=host,
        port=port,
        dashboard_port=dashboard_port,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    try:
        raise typer.Exit(supervisor.run(settings, dashboard=not no_dashboard))
    except supervisor.UpFailed as error:
        raise console.CommandFailed(str(error)) from None


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
        raise console.CommandFailed(str(error)) from None


@app.command()
def doctor(
    data_dir: DataDir = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="Mend damaged tables; the server must not run.")
    ] = False,
) -> None:
    """Look at everything that can be wrong, and say what to do about it."""
    from serving import doctor as checks

    settings = console.read_settings(data_dir=data_dir)
    findings = checks.mend(settings) if mend else checks.examine(settings)
    for finding in findings:
        mark = "ok     " if finding.ok else "problem"
        advice = f" -> {finding.advice}" if finding.advice else ""
        print(f"{mark}  {finding.subject}: {finding.found}{advice}")
    problems = sum(not finding.ok for finding in findings)
    if problems:
        noun = "problem" if problems == 1 else "problems"
        raise console.CommandFailed(f"{problems} {noun} found; the lines above say what to do.")


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
    print(console.call("POST", f"{OURS}/tokens", given, data_dir=data_dir)["token"])


@token.command("list")
def list_tokens(data_dir: DataDir = None) -> None:
    """Tokens that are valid."""
    found = console.pages(f"{OURS}/tokens", "tokens", data_dir)
    console.table(found, ("id", "user", "comment", "created_time", "expires_time"))


@token.command("revoke")
def revoke_token(token_id: str, data_dir: DataDir = None) -> None:
    """Make a token worthless at once."""
    console.call("DELETE", f"{OURS}/tokens/{console.quoted(token_id)}", data_dir=data_dir)


# --- endpoints ------------------------------------------------------------------------------------


@endpoints.command("list")
def list_endpoints(data_dir: DataDir = None) -> None:
    """Endpoints, their state and their traffic."""
    found = console.call("GET", SERVING, data_dir=data_dir).get("endpoints") or []
    rows = [
        {
            "name": each["name"],
            "ready": each["state"]["ready"],
            "update": each["state"]["config_update"],
            "traffic": console.traffic(each),
        }
        for each in found
    ]
    console.table(rows, ("name", "ready", "update", "traffic"))


@endpoints.command("get")
def get_endpoint(name: str, data_dir: DataDir = None) -> None:
    """One endpoint as JSON."""
    console.show(console.call("GET", f"{SERVING}/{console.quoted(name)}", data_dir=data_dir))


@endpoints.command("create")
def create_endpoint(file: BodyFile, data_dir: DataDir = None) -> None:
    """Create an endpoint from a JSON file (the body of POST /api/2.0/serving-endpoints)."""
    console.show(console.call("POST", SERVING, console.body(file), data_dir=data_dir))


@endpoints.command("update")
def update_endpoint(name: str, file: BodyFile, data_dir: DataDir = None) -> None:
    """Give an endpoint its next configuration from a JSON file (the body of PUT .../config)."""
    path = f"{SERVING}/{console.quoted(name)}/config"
    console.show(console.call("PUT", path, console.body(file), data_dir=data_dir))


@endpoints.command("delete")
def delete_endpoint(name: str, data_dir: DataDir = None) -> None:
    """Delete an endpoint; its tables stay."""
    console.call("DELETE", f"{SERVING}/{console.quoted(name)}", data_dir=data_dir)


@endpoints.command("stop")
def stop_endpoint(name: str, data_dir: DataDir = None) -> None:
    """End an endpoint's replicas; queries are refused until it is started."""
    console.summary(console.call("POST", _ours(name, "stop"), {}, data_dir=data_dir))


@endpoints.command("start")
def start_endpoint(name: str, data_dir: DataDir = None) -> None:
    """Start a stopped endpoint."""
    console.summary(console.call("POST", _ours(name, "start"), {}, data_dir=data_dir))


@endpoints.command("logs")
def endpoint_logs(name: str, served_entity: str, data_dir: DataDir = None) -> None:
    """What the replicas of a served entity printed last."""
    path = f"{SERVING}/{console.quoted(name)}/served-models/{console.quoted(served_entity)}/logs"
    print(console.call("GET", path, data_dir=data_dir)["logs"])


@endpoints.command("versions")
def endpoint_versions(name: str, data_dir: DataDir = None) -> None:
    """Configurations of an endpoint, newest first: what `rollback` can go back to."""
    found = console.pages(_ours(name, "versions"), "versions", data_dir)
    rows = [{**each, "traffic": console.traffic(each)} for each in found]
    console.table(
        rows, ("config_version", "created_time", "created_by", "origin", "traffic", "reason")
    )


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
    path = _ours(endpoint, "promote")
    console.summary(console.call("POST", path, given, data_dir=data_dir))


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
    path = _ours(endpoint, "rollback")
    console.summary(console.call("POST", path, given, data_dir=data_dir))


def _ours(endpoint: str, what: str) -> str:
    return f"{OURS}/endpoints/{console.quoted(endpoint)}/{what}"


def main() -> None:
    """Entry point of `inferlake`."""
    try:
        app()
    except console.CommandFailed as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except console.WrongUse as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is left to say, not even at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
