"""Write the reference pages from the code: `python docs/reference/make.py`; a test compares."""

from pathlib import Path
from typing import Any

import click
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


PAGES = {"settings.md": settings, "tables.md": tables, "commands.md": commands}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
        print(f"wrote {name}")
