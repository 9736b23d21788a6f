"""An event in Slack's words: `{"text": ...}`, as incoming webhooks take it. Pure.

Slack reads `&`, `<` and `>` as its own signs, so `<!channel>` in the name of a column would wake
everybody; they are escaped. Source: docs.slack.dev, "Formatting message text".
"""

from collections.abc import Mapping
from typing import Any

import orjson

MOST_CHARACTERS = 3000
MOST_FACTS = 12
# Told by the title, or of no use to a person.
LEFT_OUT = frozenset({"id", "endpoint", "message", "severity", "rule_id", "acknowledged", "state"})


def body(event_type: str, data: Mapping[str, Any]) -> str:
    """The JSON text that is signed and sent."""
    return orjson.dumps({"text": text(event_type, data)}).decode()


def text(event_type: str, data: Mapping[str, Any]) -> str:
    """`*Alert opened: delay (critical)*` and what it says, or its facts one by one."""
    title = event_type.replace(".", " ").replace("_", " ").capitalize()
    about = data.get("endpoint") or data.get("name") or data.get("table")
    if about:
        title += f": {about}"
    if data.get("severity"):
        title += f" ({data['severity']})"
    said = data.get("message") or data.get("expected_effect")
    lines = [str(said)] if said else [f"{key}: {value}" for key, value in _facts(data)]
    whole = "\n".join([f"*{_escaped(title)}*", *map(_escaped, lines)])
    return whole if len(whole) <= MOST_CHARACTERS else whole[: MOST_CHARACTERS - 1] + "…"


def _facts(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Numbers and texts of an event that has no sentence of its own."""
    plain = (
        (key.replace("_", " "), value)
        for key, value in data.items()
        if key not in LEFT_OUT and isinstance(value, (str, int, float)) and value != ""
    )
    return list(plain)[:MOST_FACTS]


def _escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
