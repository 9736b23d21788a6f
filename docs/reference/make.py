"""Write the reference pages from the code: `python docs/reference/make.py`; a test compares."""

import re
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
import typer

from capture import ledger, rows
from capture.settings import Settings

HERE = Path(__file__).parent
MADE = "<!-- made by docs/reference/make.py from the code; do not edit -->\n"


def settings() -> str:
    """A row per environment variable."""
    lines = [
        "# Settings",
        MADE,
        "Read from the environment once, when a process starts.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in sorted(Settings.model_fields.items()):
        alias = field.validation_alias
        variable = alias.choices[0] if hasattr(alias, "choices") else f"INFERLAKE_{name.upper()}"
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{variable}` | {default} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def tables() -> str:
    """The columns of the recorded tables, and of the server's own."""
    shapes = {
        rows.USAGE_TABLE if kind == "usage" else f"<prefix>_{kind}": schema
        for kind, (schema, _) in rows.KINDS.items()
    }
    shapes |= {name: shape.schema for name, shape in ledger.TABLES.items()}
    lines = [
        "# Recorded tables",
        MADE,
        "`<prefix>_payload` holds a row per request, `<prefix>_labels` a row per label. Up to",
        "`requester` the payload columns are those of Databricks' inference tables. The tables in",
        "`system` are the server's own. All are Delta tables, protocol 1/2 and append-only;",
        "those that begin with a date are partitioned by it.",
    ]
    for name, schema in shapes.items():
        lines += ["", f"## `{name}`", "", "| column | type | null |", "|---|---|---|"]
        lines += [f"| `{f.name}` | {f.type} | {'yes' if f.nullable else 'no'} |" for f in schema]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The command line, command by command, as `--help` tells it."""
    from serving import cli

    lines = ["# Commands", MADE]
    root = typer.main.get_command(cli.app)
    for path, command in _walk("inferlake", root):
        lines += ["", f"## `{path}`", "", (command.help or "").strip(), ""]
        lines += [_parameter(p) for p in command.params if p.name != "help"]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def routes() -> str:
    """Every route by what it belongs to: method, path, and the first sentence on it."""
    from serving import app

    engine = sa.create_engine("sqlite://")
    built = app.build(Settings(data_dir=HERE), None, engine)  # type: ignore[arg-type]
    lines = [
        "# Routes",
        MADE,
        "Paths under `/api/2.0` and `/api/2.1` are Databricks' own, those under `/api/1.0` ours.",
        "All but `GET /health` want a token; a path may end with a slash. Shapes of requests and",
        "answers: `GET /openapi.json`. What is said of a route in full stands there as well.",
    ]
    found: dict[str, list[str]] = {}
    for path, methods in built.openapi()["paths"].items():
        for method, operation in methods.items():
            said = " ".join((operation.get("description") or operation["summary"]).split())
            first = re.split(r"(?<=[.:;])\s", said, maxsplit=1)[0].rstrip(":;.")
            row = f"| {method.upper()} | `{path}` | {first.replace('|', chr(92) + '|')} |"
            found.setdefault(operation["tags"][0], []).append(row)
    query = "The answer of the endpoint's version by the split, or of this served entity"
    found["queries"] = [f"| POST | `{path}` | {query} |" for path in (app.QUERY, app.QUERY_ENTITY)]
    for tag, listed in sorted(found.items()):
        lines += ["", f"## {tag.capitalize()}", "", "| method | path | what |", "|---|---|---|"]
        lines += sorted(listed, key=lambda row: row.split("`")[1])
    return "\n".join(lines) + "\n"


def _walk(path: str, command: click.Command) -> list[tuple[str, click.Command]]:
    children: dict[str, click.Command] = getattr(command, "commands", {})
    if not children:
        return [(path, command)]
    return [leaf for name, child in children.items() for leaf in _walk(f"{path} {name}", child)]


def _parameter(parameter: Any) -> str:
    spelled = ", ".join(f"`{o}`" for o in parameter.opts) if parameter.opts else parameter.name
    if parameter.param_type_name == "argument":
        spelled = f"`{parameter.name.upper()}`"
    said = getattr(parameter, "help", None) or ""
    return f"- {spelled}: {said}".rstrip(": ")


PAGES = {
    "settings.md": settings,
    "tables.md": tables,
    "commands.md": commands,
    "routes.md": routes,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
        print(f"wrote {name}")
