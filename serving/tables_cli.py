"""`inferlake tables`: the tables that inferlake writes, their upkeep, and their older names.

Commands import what they need when they run, so that `--help` is instant."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from serving import console

app = typer.Typer(help="Recorded tables.", no_args_is_help=True)

TABLES = "/api/1.0/tables"
SHOWN = ("full_name", "endpoint", "enabled", "retention_days", "created_time")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where everything is kept.  [default: ./inferlake-data]", show_default=False),
]


@app.command("list")
def list_tables(data_dir: DataDir = None) -> None:
    """Tables that inferlake writes."""
    console.table(console.pages(TABLES, "tables", data_dir), SHOWN)


@app.command("show")
def show_table(full_name: str, data_dir: DataDir = None) -> None:
    """Columns, files, bytes, versions and last upkeep of a table, as JSON."""
    console.show(console.call("GET", _path(full_name), data_dir=data_dir))


@app.command("set")
def set_table(
    full_name: str,
    retention_days: Annotated[
        int | None,
        typer.Option(min=1, help="Closed days to keep beside the open one.", show_default=False),
    ] = None,
    keep_forever: Annotated[
        bool, typer.Option("--keep-forever", help="Keep all days again.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """How long the rows of a table are kept. Whole days go, and the open one never."""
    if (retention_days is None) != keep_forever:
        raise console.WrongUse("Give either --retention-days or --keep-forever.")
    body = {"retention_days": retention_days}
    done = console.call("PATCH", _path(full_name), body, data_dir=data_dir)
    days = done["retention_days"]
    print(f"{full_name}: {'all days are kept' if days is None else f'{days} days are kept'}")


@app.command()
def maintain(full_name: str, data_dir: DataDir = None) -> None:
    """Look after a table now: checkpoint, merge small files, drop days that are kept no longer."""
    _upkeep(full_name, {}, data_dir)


@app.command()
def vacuum(
    full_name: str,
    retention_hours: Annotated[
        int, typer.Option(min=1, help="Versions of the last so many hours stay readable.")
    ] = 168,
    data_dir: DataDir = None,
) -> None:
    """Look after a table, and delete the files that no version kept has."""
    _upkeep(full_name, {"vacuum": True, "retention_hours": retention_hours}, data_dir)


@app.command()
def view(
    full_name: str,
    dialect: Annotated[Literal["spark", "duckdb"], typer.Option(help="Whose SQL.")] = "spark",
    data_dir: DataDir = None,
) -> None:
    """Print the SQL of a view of a payload table under the names of the first inference tables."""
    from capture import errors, legacy, names

    endpoint = console.call("GET", _path(full_name), data_dir=data_dir)["endpoint"]
    if endpoint is None or not full_name.endswith("_payload"):
        raise console.CommandFailed(f"{full_name} is no payload table.")
    settings = console.read_settings(data_dir=data_dir)
    try:
        path = names.table_path(settings.tables_root, names.table_name(full_name))
        source = legacy.source(dialect, path)
        print(legacy.view(dialect, full_name, source, endpoint))
    except errors.InferlakeError as error:
        raise console.CommandFailed(error.message) from None


def _upkeep(full_name: str, body: dict[str, Any], data_dir: Path | None) -> None:
    done = console.call("POST", f"{_path(full_name)}/maintain", body, data_dir=data_dir)
    last = done["last_maintenance"] or {}
    if done["state"] == "PENDING":
        raise console.CommandFailed(
            f"{full_name}: asked for, and not done yet; see `inferlake tables show`."
        )
    if done["state"] == "FAILED":
        raise console.CommandFailed(f"{full_name}: {last.get('error')}")
    if last.get("skipped"):
        print(f"{full_name}: {last['skipped']}")
        return
    print(
        f"{full_name}: {last['merged_files']} files merged, {last['dropped_files']} dropped, "
        f"{last['deleted_files']} deleted; "
        f"{'a' if last['checkpointed'] else 'no'} checkpoint was made"
    )


def _path(full_name: str) -> str:
    return f"{TABLES}/{console.quoted(full_name)}"
