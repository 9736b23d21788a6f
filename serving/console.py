"""What the commands share: one call of the server, and how its replies are printed.

Standard library only at module level, so that the command line starts at once.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capture.settings import Settings


class CommandFailed(Exception):
    """What a command cannot do, in one sentence."""


class WrongUse(Exception):
    """What was given cannot be meant, in one sentence."""


def read_settings(**given: Any) -> "Settings":
    """Settings of the environment and of these options, None being not given. Raises WrongUse."""
    from pydantic import ValidationError

    from capture.settings import Settings

    try:
        return Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "INFERLAKE_" + "_".join(str(part) for part in first["loc"]).upper()
        raise WrongUse(f"{name}: {first['msg']}; found {first['input']!r}.") from None


def call(method: str, path: str, body: Any = None, data_dir: Path | None = None) -> Any:
    """The decoded reply of the server. Raises CommandFailed with its message."""
    import urllib.error
    import urllib.request

    from capture import tls

    settings = read_settings(data_dir=data_dir)
    request = urllib.request.Request(
        settings.url.rstrip("/") + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {_token(settings)}", "Content-Type": "application/json"},
    )
    try:
        # Without a proxy: the environment's may be anybody's, and the token is in the header.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=tls.trust(settings.tls_certificate)),
        )
        with opener.open(request, timeout=60) as reply:
            return json.loads(reply.read() or b"{}")
    except urllib.error.HTTPError as error:
        raise CommandFailed(_message(error.read(), error.code)) from None
    except tls.Unusable as error:
        raise CommandFailed(str(error)) from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise CommandFailed(tls.no_answer(settings.url, error)) from None


def pages(path: str, key: str, data_dir: Path | None) -> list[dict[str, Any]]:
    """All rows of a list that comes in pages."""
    rows: list[dict[str, Any]] = []
    query = "?page_size=1000"
    while True:
        found = call("GET", path + query, data_dir=data_dir)
        rows += found.get(key) or []
        if not found.get("next_page_token"):
            return rows
        query = f"?page_size=1000&page_token={quoted(found['next_page_token'])}"


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


def body(file: Path) -> Any:
    """A JSON file, or standard input for `-`. Raises CommandFailed."""
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return json.loads(raw)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CommandFailed(f"{file} is not valid JSON: {error}.") from None


def quoted(name: str) -> str:
    """A name that stays in its place in a path."""
    from urllib.parse import quote

    return quote(name, safe="")


def traffic(described: dict[str, Any]) -> str:
    """Percentages of an endpoint or configuration version, in words."""
    config = described.get("config") or {}
    routes = (config.get("traffic_config") or {}).get("routes") or []
    return ", ".join(f"{r['served_model_name']} {r['traffic_percentage']} %" for r in routes)


def summary(described: dict[str, Any]) -> None:
    """One line about a changed endpoint."""
    update = described.get("state", {}).get("config_update")
    coming = described.get("pending_config") if update == "IN_PROGRESS" else None
    shown = {"config": coming or described.get("config") or {}}
    version = shown["config"].get("config_version")
    print(
        f"{described['name']}: configuration {version}, {update}: {traffic(shown) or 'no traffic'}"
    )


def show(value: Any) -> None:
    """A reply as it is."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
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
