"""Logged requests asked again of another version, and its answers compared with those of then.

A job (`jobs.KINDS`). It asks the running server by its `try` route, which records nothing and puts
live requests first: a few at a time, a bounded number a second, and again later when it is told
that the version is busy. Replayed answers go into no table: the result holds the comparison, and
the rows that differ most.
"""

import base64
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import httpx2
import numpy as np
import polars as pl

from capture import bodies, errors, names, recorded
from capture.settings import Settings
from monitors import cells, contract, mirrored, pairs, server
from monitors.mirrored import Version

CONCURRENCY = 4
REQUESTS_PER_SECOND = 100.0
CHUNK = 200
ANSWER_SECONDS = 310.0  # longer than a model may take
BUSY_SECONDS, PAUSE_SECONDS = 60.0, 0.25
MOST_DROPPED = 20
MOST_DIFFERENCES = 100
MODEL_US = "x-model-us"
ANSWERED = (pl.col("status_code") == 200) | (pl.col("error_source") == "model").fill_null(False)


class Progress(Protocol):
    """Of a job; `tell` raises once it is cancelled."""

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None: ...


class Again(NamedTuple):
    """What came back for one request; status None: the version was busy for too long."""

    request_id: str
    status: int | None
    body: str | None = None
    error_source: str | None = None
    model_ms: int | None = None


@dataclass(slots=True)
class Pace:
    """Lets callers of several threads through one by one, no more than so many a second."""

    per_second: float
    _next: float = field(default_factory=time.monotonic)
    _taking: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        with self._taking:
            turn = max(self._next, time.monotonic())
            self._next = turn + 1 / self.per_second
        time.sleep(max(0.0, turn - time.monotonic()))


def run(settings: Settings, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """arguments: `endpoint`, `table`, `served_entity`, `from_ms`, `to_ms`, `limit`.

    Gives what `mirrored.compared` does, with `asked`, `answered`, `failed`, `dropped` (busy for too
    long), `not_recorded` (the body is not in the table), `stopped` (why not all were asked) and
    `differences`. Raises DoesNotExist, Refused."""
    progress.tell("choosing requests")
    asking = Asking(settings, arguments["endpoint"], arguments["served_entity"])
    try:
        challenger = asking.version()
        start, end = (
            datetime.fromtimestamp(arguments[name] / 1000, UTC) for name in ("from_ms", "to_ms")
        )
        table = arguments["table"]
        champion, originals = chosen(settings, table, challenger, start, end, arguments["limit"])
        answers, stopped = _ask_all(asking, settings, table, originals, progress)
    finally:
        asking.close()
    progress.tell("comparing", len(answers), len(answers))
    together = mirrored.paired(originals, _as_copies(originals, answers, challenger))
    now = datetime.now(UTC)
    agreed = mirrored.agreed_policy(settings, arguments["endpoint"])
    counts = [one for one in answers if one.status is not None]
    return {
        **mirrored.compared(together, champion.name, challenger.name, agreed, now),
        "champion_version": champion.model_version,
        "challenger_version": challenger.model_version,
        "from": contract.rfc3339(arguments["from_ms"]),
        "to": contract.rfc3339(arguments["to_ms"]),
        "asked": len(answers),
        "answered": sum(one.status == 200 for one in counts),
        "failed": sum(one.status != 200 for one in counts),
        "dropped": len(answers) - len(counts),
        "not_recorded": originals["databricks_request_id"].n_unique() - len(answers)
        if stopped is None
        else 0,
        "stopped": stopped,
        "differences": differences(together),
    }


# --- which requests ------------------------------------------------------------------------------


def chosen(
    settings: Settings,
    table: str,
    challenger: Version,
    start: datetime,
    end: datetime,
    limit: int,
) -> tuple[Version, pl.DataFrame]:
    """The version that answered most requests in [start, end) besides the challenger, and the rows
    of its newest `limit` ones, with their labels. Raises DoesNotExist where there are none."""
    live = recorded.unpacked(settings, table, start, end, columns=mirrored.COLUMNS).filter(
        ~pl.col("shadow") & ANSWERED & ~challenger.rows & pl.col("served_entity_name").is_not_null()
    )
    first = live.filter(pl.col("row_index") == 0)
    by = ["served_entity_name", "model_version"]
    most = first.group_by(by).len().sort("len", *by, descending=True).head(1).collect()
    if most.is_empty():
        raise errors.DoesNotExist(
            f"No request between {start:%Y-%m-%d %H:%M} and {end:%Y-%m-%d %H:%M} UTC was answered "
            f"by another version than '{challenger.name}'."
        )
    champion = Version(*most.row(0)[:2])
    newest = (
        first.filter(champion.rows)
        .select("request_time", "databricks_request_id")
        .top_k(limit, by=["request_time", "databricks_request_id"])
        .collect()
    )
    rows = live.join(newest.lazy(), on="databricks_request_id", how="semi").collect()
    labels = recorded.labels(settings, table, datetime.now(UTC)).collect()
    return champion, recorded.with_labels(rows.sort("request_time"), labels)


class Body(NamedTuple):
    """A request as it was sent."""

    request_id: str
    content: bytes
    content_type: str | None


def _bodies(settings: Settings, table: str, ids: pl.DataFrame) -> Iterator[list[Body]]:
    """The recorded bodies of these requests (`databricks_request_id`, `request_time`), in order of
    time and by chunks; those over the cap were not recorded."""
    for part in ids.sort("request_time").iter_slices(CHUNK):
        first, last = part["request_time"].min(), part["request_time"].max()
        assert isinstance(first, datetime) and isinstance(last, datetime)  # no row is without
        span = first, last + timedelta(microseconds=1)
        payload = recorded.scan(settings, recorded.sibling(table, "payload"), *span)
        if payload is None:
            return
        found = (
            payload.filter(*recorded.within(*span), pl.col("request").is_not_null())
            .join(part.lazy(), on="databricks_request_id", how="semi")
            .select("databricks_request_id", "request", "request_encoding", "content_type")
            .collect()
        )
        yield [_body(*row) for row in found.iter_rows()]


def _body(request_id: str, text: str, encoding: str, content_type: str | None) -> Body:
    content = base64.b64decode(text) if encoding == "base64" else text.encode()
    return Body(request_id, content, content_type)


# --- asking --------------------------------------------------------------------------------------


class Asking:
    """Calls of the server's `try` route, from several threads."""

    def __init__(self, settings: Settings, endpoint: str, served_entity: str) -> None:
        self.http = server.Server(settings).http
        self.http.timeout = httpx2.Timeout(ANSWER_SECONDS)
        self.endpoint, self.served_entity = endpoint, served_entity
        self.pace = Pace(REQUESTS_PER_SECOND)
        self.stopped = False

    def version(self) -> Version:
        """The entity as the endpoint serves it now. Raises DoesNotExist, Refused."""
        answer = self._send("GET", f"/api/2.0/serving-endpoints/{quote(self.endpoint, safe='')}")
        if answer is None or answer.status_code != 200:
            raise server.Refused(_said(answer))
        config = answer.json().get("config") or {}
        for entity in config.get("served_entities") or []:
            if entity["name"] == self.served_entity:
                return Version(entity["name"], entity.get("entity_version"))
        raise errors.DoesNotExist(
            f"Served entity '{self.served_entity}' of endpoint '{self.endpoint}' does not exist."
        )

    def ask(self, body: Body) -> Again:
        """One request, again and again while the version is busy. Raises Refused."""
        path = (
            f"/api/1.0/endpoints/{quote(self.endpoint, safe='')}/served-entities/"
            f"{quote(self.served_entity, safe='')}/try"
        )
        headers = {} if body.content_type is None else {"Content-Type": body.content_type}
        ends = time.monotonic() + BUSY_SECONDS
        while not self.stopped:
            self.pace.wait()
            answer = self._send("POST", path, content=body.content, headers=headers)
            if answer is not None and MODEL_US in answer.headers:
                model_ms = (int(answer.headers[MODEL_US]) + 500) // 1000
                source = answer.headers.get("x-error-source")
                return Again(body.request_id, answer.status_code, answer.text, source, model_ms)
            if answer is not None and answer.status_code in (500, 504):
                return Again(body.request_id, answer.status_code, None, "server")
            if answer is not None and answer.status_code not in (429, 503):
                raise server.Refused(_said(answer))
            if time.monotonic() > ends:
                break
            time.sleep(PAUSE_SECONDS)
        return Again(body.request_id, None)

    def _send(self, method: str, path: str, **more: Any) -> httpx2.Response | None:
        """None: the server does not answer just now."""
        try:
            return self.http.request(method, path, **more)
        except httpx2.HTTPError:
            return None

    def close(self) -> None:
        self.http.close()


def _said(answer: httpx2.Response | None) -> str:
    if answer is None:
        return "The server does not answer."
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered {answer.status_code}."


def _ask_all(
    asking: Asking, settings: Settings, table: str, originals: pl.DataFrame, progress: Progress
) -> tuple[list[Again], str | None]:
    """The answers, and why not all requests were asked."""
    ids = originals.select("databricks_request_id", "request_time").unique("databricks_request_id")
    answers: list[Again] = []
    progress.tell("asking", 0, len(ids))
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        try:
            for part in _bodies(settings, table, ids):
                for again in pool.map(asking.ask, part):
                    answers.append(again)
                    progress.tell("asking", len(answers), len(ids))
                if sum(one.status is None for one in answers) >= MOST_DROPPED:
                    return answers, f"'{asking.served_entity}' is busy with live requests."
        finally:
            # Cancelled, or refused: what is still in line is not asked any more.
            asking.stopped = True
            pool.shutdown(cancel_futures=True)
    return answers, None


# --- comparing -----------------------------------------------------------------------------------


def _as_copies(originals: pl.DataFrame, answers: list[Again], challenger: Version) -> pl.DataFrame:
    """The answers as rows of an unpacked table would be, each beside its original."""
    rows_of = dict(originals.group_by("databricks_request_id").len().iter_rows())
    made: dict[str, list[Any]] = {name: [] for name in ("id", "row_index", *mirrored.ANSWER)}
    for again in answers:
        if again.status is None:
            continue
        found = _predictions(again)
        count = len(found) or rows_of[again.request_id]
        none = bodies.Answer(None, None)
        for index in range(count):
            one = found[index] if found else none
            values = (
                *(names.copy_of(again.request_id), index, one.prediction, one.score),
                *(again.status, again.error_source, again.model_ms),
            )
            for column, value in zip(made, values, strict=True):
                made[column].append(value)
    texts = any(isinstance(value, str) for value in made["prediction"])
    types = {
        "id": pl.String,
        "row_index": pl.Int32,
        "prediction": pl.String if texts else pl.Float64,
        "score": pl.Float64,
        "status_code": pl.Int32,
        "error_source": pl.String,
        "execution_duration_ms": pl.Int64,
    }
    if texts:
        made["prediction"] = [v if v is None else str(v) for v in made["prediction"]]
    return pl.DataFrame(made, schema=types).rename({"id": "databricks_request_id"})


def _predictions(again: Again) -> list[bodies.Answer]:
    if again.status != 200:
        return []
    try:
        return bodies.answers(again.body)
    except bodies.Unreadable:
        return []


def differences(together: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows that both answered and that differ, those of numbers by how much, at most 100; then the
    rows that one of the two failed."""
    both = [cells.column(together, f"{side}_prediction") for side in pairs.SIDES]
    differ = ~pairs.same(*both)
    apart = np.nan_to_num(np.abs(cells.numbers(both[1]) - cells.numbers(both[0])))
    by_size = together.with_columns(pl.Series("apart", apart)).filter(pl.Series(differ))
    failed = pl.max_horizontal(*(f"{side}_status_code" for side in pairs.SIDES)) >= 400
    shown = by_size.sort(failed, -pl.col("apart"), "request_time", maintain_order=True)
    columns = ["databricks_request_id", "row_index", "request_time", "label"]
    columns += [f"{side}_{name}" for side in pairs.SIDES for name in ("prediction", "status_code")]
    rows = shown.head(MOST_DIFFERENCES).select(columns).to_dicts()
    return [{**row, "request_time": _rfc3339(row["request_time"])} for row in rows]


def _rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
