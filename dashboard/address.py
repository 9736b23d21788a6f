"""What the URL says: endpoint, time range and version. A link shows the same to everybody. Pure.

Widget state is lost when Streamlit leaves a page and clicking its navigation drops the query, so
the address is kept in the session as well and put back into the URL: the URL wins where it speaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

RANGES: dict[str, timedelta | None] = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "yesterday": None,
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "all": None,
    "own": None,
}
LABELS = {
    "1h": "1 h",
    "24h": "24 h",
    "yesterday": "Yesterday",
    "7d": "7 d",
    "30d": "30 d",
    "all": "All",
    "own": "Own",
}
DEFAULT_RANGE = "all"
KEYS = ("endpoint", "range", "from", "to", "version")

PAGES = {
    "": "views/overview.py",
    "overview": "views/overview.py",
    "alerts": "views/alerts.py",
    "endpoints": "views/endpoints.py",
    "endpoint": "views/endpoint.py",
    "create": "views/create.py",
    "requests": "views/requests.py",
    "drift": "views/drift.py",
    "quality": "views/quality.py",
    "experiment": "views/experiment.py",
    "recommendations": "views/recommendations.py",
    "usage": "views/usage.py",
    "audit": "views/audit.py",
    "settings": "views/settings.py",
}
STEPS = (10, 30, 60, 300, 900, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400, 604_800)
MOST_STEPS = 300


@dataclass(frozen=True, slots=True)
class Address:
    """Where the person looks. `start` and `end` count for the range `own` alone."""

    endpoint: str | None = None
    range: str = DEFAULT_RANGE
    start: datetime | None = None
    end: datetime | None = None
    version: str | None = None


def read(params: Mapping[str, str]) -> Address:
    """The address in a query; what is malformed counts as absent."""
    start, end = _time(params.get("from")), _time(params.get("to"))
    chosen = params.get("range", "own" if start or end else DEFAULT_RANGE)
    return Address(
        endpoint=params.get("endpoint") or None,
        range=chosen if chosen in RANGES else DEFAULT_RANGE,
        start=start,
        end=end,
        version=params.get("version") or None,
    )


def write(address: Address) -> dict[str, str]:
    """The query of an address; defaults are left out."""
    query = {
        "endpoint": address.endpoint,
        "range": None if address.range == DEFAULT_RANGE else address.range,
        "version": address.version,
    }
    if address.range == "own":
        query |= {"from": _text(address.start), "to": _text(address.end)}
    return {key: value for key, value in query.items() if value}


def resume(params: Mapping[str, str], remembered: Address | None) -> Address:
    """The address of this run: the URL's, and for what it leaves out the remembered one.

    A link to another endpoint does not inherit the version of the one before."""
    here = read(params)
    if remembered is None:
        return here
    if "endpoint" not in params:
        here = replace(here, endpoint=remembered.endpoint)
    if not any(key in params for key in ("range", "from", "to")):
        here = replace(here, range=remembered.range, start=remembered.start, end=remembered.end)
    if "version" not in params and here.endpoint == remembered.endpoint:
        here = replace(here, version=remembered.version)
    return here


def bounds(address: Address, newest: datetime) -> tuple[datetime | None, datetime | None]:
    """Start and end of the range, counted back from `newest`; None = open. Days are UTC days."""
    if address.range == "own":
        return address.start, address.end
    if address.range == "yesterday":
        today = newest.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return today - timedelta(days=1), today
    span = RANGES[address.range]
    return (None if span is None else newest - span), None


def step_seconds(start: datetime, end: datetime, most: int = MOST_STEPS) -> int:
    """The smallest round step that cuts `[start, end)` into at most `most` pieces."""
    seconds = max((end - start).total_seconds(), 1)
    for step in STEPS:
        if seconds / step <= most:
            return step
    return int(seconds / most) + 1


def link(text: str | None) -> tuple[str, dict[str, str]] | None:
    """Page file and query of a link such as `/experiment?endpoint=flights`; None for others.

    Links come from the server's replies: only pages of ours are followed, whatever the host."""
    if not text:
        return None
    parts = urlsplit(text)
    page = PAGES.get(parts.path.strip("/").split("/")[-1])
    return None if page is None else (page, dict(parse_qsl(parts.query)))


def rfc3339(at: datetime | None) -> str | None:
    """How the API takes times."""
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M")


def _time(text: str | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    if at is None:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
