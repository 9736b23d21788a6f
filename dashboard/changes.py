"""What the audit says, for a person: a change in a line, and field by field. Pure."""

from collections.abc import Mapping
from typing import Any

from dashboard import api, words

MOST_FIELDS = 100
LONGEST = 120


def flat(given: object, at: str = "") -> dict[str, str]:
    """Path -> text of every value inside: `replica_hours[0].price` -> `0.1`."""
    if isinstance(given, Mapping) and given:
        parts = ((f"{at}.{key}" if at else str(key), value) for key, value in given.items())
    elif isinstance(given, list) and given:
        parts = ((f"{at}[{place}]", value) for place, value in enumerate(given))
    else:
        return {at: text(given)} if at else {}
    return {path: said for where, value in parts for path, said in flat(value, where).items()}


def text(value: object) -> str:
    if value is None:
        return words.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def fields(entry: api.Json) -> list[tuple[str, str, str]]:
    """(field, before, after) of every field that differs, by path; an absent one is a dash."""
    before, after = flat(entry.get("before")), flat(entry.get("after"))
    paths = sorted(before.keys() | after.keys())
    found = [
        (path, before.get(path, words.NOTHING), after.get(path, words.NOTHING)) for path in paths
    ]
    return [one for one in found if one[1] != one[2]]


def line(entry: api.Json) -> str:
    """The change in one line, as far as it goes."""
    found = fields(entry)
    if entry.get("before") is None or entry.get("after") is None:
        side = 1 if entry.get("after") is None else 2
        said = ", ".join(f"{one[0]}: {one[side]}" for one in found)
    else:
        said = ", ".join(f"{path}: {before} → {after}" for path, before, after in found)
    return words.cut(said, LONGEST) if said else words.NOTHING


def row(entry: api.Json) -> dict[str, Any]:
    """A row of the table."""
    return {
        "when": words.clock(entry.get("time")),
        "who": str(entry.get("actor") or words.NOTHING),
        "from": str(entry.get("address") or "the server"),
        "did": str(entry.get("action") or words.NOTHING),
        "endpoint": str(entry.get("endpoint") or words.NOTHING),
        "change": line(entry),
        "reason": str(entry.get("reason") or words.NOTHING),
    }
