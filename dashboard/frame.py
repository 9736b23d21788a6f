"""What every page stands in: sign-in, header strip, age of the data, and the four states
(progress, empty, error, denied). An old value is never shown as a current one."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar

import streamlit as st

from dashboard import address, api, words

T = TypeVar("T")
Tint: TypeAlias = Literal["red", "orange", "green", "blue", "gray"]
ALL_ENDPOINTS, ALL_VERSIONS = "All endpoints", "All versions"
LIVE_SECONDS = 5
AMBER_SECONDS, RED_LAG_SECONDS = 60.0, 60.0
MOST_KEPT = 40
NOT_GIVEN: Any = object()


def server_url() -> str:
    """Where the API is, as given in the environment."""
    return os.environ.get("INFERLAKE_URL", "http://127.0.0.1:8000").rstrip("/")


def client() -> api.Client:
    return api.Client(server_url(), st.session_state.get("token"))


def now() -> datetime:
    return datetime.now(UTC)


def here() -> address.Address:
    """The address of this run; header() has set it."""
    return st.session_state.get("address") or address.Address()


# sign-in


def signed_in() -> bool:
    """Whether this tab holds a token; draws the sign-in form where it does not.

    A one-time code in the URL is exchanged and removed. The token lives in the session of the tab
    and nowhere else."""
    code = st.query_params.get("code")
    if code is not None:
        del st.query_params["code"]
        _exchange(code)
    if st.session_state.get("token"):
        return True
    _sign_in_form()
    return False


def sign_out(message: str | None = None) -> None:
    """Forget the token and everything read with it."""
    for key in list(st.session_state):
        del st.session_state[key]
    if message:
        st.session_state["sign_in_message"] = message


def _exchange(code: str) -> None:
    try:
        reply = api.sign_in(api.Client(server_url()), code)
        st.session_state["token"] = reply["token"]
    except api.Unreachable as error:
        st.session_state["sign_in_message"] = error.message
    except (api.ApiError, KeyError):
        st.session_state["sign_in_message"] = (
            "This sign-in link was used already or is older than 10 minutes."
        )


def _sign_in_form() -> None:
    _, middle, _ = st.columns([1, 1.6, 1])
    with middle, st.container(border=True):
        st.markdown("### Sign in to inferlake")
        message = st.session_state.get("sign_in_message")
        if message:
            st.warning(words.plain(message), icon=":material/key_off:")
        with st.form("sign_in", border=False):
            token = st.text_input("Access token", type="password", placeholder="il_…")
            if st.form_submit_button("Sign in", type="primary", width="stretch"):
                _try_token(token.strip())
        st.caption("A link that signs you in once, or a token of your own:")
        st.code(
            "inferlake up              # prints a one-time link\ninferlake token create",
            language="bash",
        )


def _try_token(token: str) -> None:
    try:
        st.session_state["user"] = api.me(api.Client(server_url(), token))
        st.session_state["token"] = token
        st.session_state.pop("sign_in_message", None)
        st.rerun()
    except api.Unreachable as error:
        st.error(words.plain(error.message))
    except api.ApiError:
        st.error("The server does not know this token. It may have expired or been revoked.")


# header strip


def header() -> None:
    """The strip on every page: endpoint, time range, version, age of the data. All in the URL."""
    chosen = address.resume(dict(st.query_params), st.session_state.get("address"))
    known = _endpoints()
    names = sorted(known)
    if chosen.endpoint and chosen.endpoint not in names:
        names.insert(0, chosen.endpoint)
    left, middle, right, age = st.columns([2.2, 5, 1.9, 1.9], vertical_alignment="bottom")
    _pick(left, "Endpoint", "endpoint", ALL_ENDPOINTS, names, chosen.endpoint)
    with middle:
        _range(chosen)
    versions = _versions(known.get(chosen.endpoint or "", {}), chosen.version)
    # A version that is served no more has its rows all the same: its name can be typed.
    _pick(
        right,
        "Version",
        "version",
        ALL_VERSIONS,
        versions,
        chosen.version,
        accept_new_options=True,
    )
    with age:
        _age(chosen.endpoint)
    if chosen.range == "own":
        chosen = _own_range(chosen)
    _remember(chosen)


def _pick(
    place: Any,
    title: str,
    field: str,
    nothing: str,
    options: list[str],
    value: str | None,
    **style: Any,
) -> None:
    key = f"header_{field}"
    st.session_state[key] = value or nothing
    place.selectbox(
        title, [nothing, *options], key=key, on_change=_picked, args=(field, nothing), **style
    )


def _picked(field: str, nothing: str) -> None:
    value = st.session_state[f"header_{field}"]
    wanted = None if value == nothing else str(value)
    if field == "endpoint":
        _remember(replace(here(), endpoint=wanted, version=None))
    else:
        _remember(replace(here(), version=wanted))


def _range(chosen: address.Address) -> None:
    st.session_state["header_range"] = chosen.range
    st.segmented_control(
        "Time range (UTC)",
        list(address.RANGES),
        format_func=address.LABELS.__getitem__,
        key="header_range",
        on_change=_ranged,
    )


def _ranged() -> None:
    value = st.session_state["header_range"] or address.DEFAULT_RANGE
    _remember(replace(here(), range=value))


def _own_range(chosen: address.Address) -> address.Address:
    """Two inputs for a range of one's own. Their values are UTC."""
    newest = now().replace(second=0, microsecond=0)
    start = chosen.start or newest - timedelta(days=1)
    end = chosen.end or newest
    left, right, _ = st.columns([2, 2, 5])
    st.session_state.setdefault("header_from", start.replace(tzinfo=None))
    st.session_state.setdefault("header_to", end.replace(tzinfo=None))
    first = left.datetime_input("From (UTC)", key="header_from")
    last = right.datetime_input("To (UTC)", key="header_to")
    if first is None or last is None or first >= last:
        right.caption("The end must be after the start.")
        return replace(chosen, start=start, end=end)
    return replace(chosen, start=first.replace(tzinfo=UTC), end=last.replace(tzinfo=UTC))


def _remember(chosen: address.Address) -> None:
    st.session_state["address"] = chosen
    query = address.write(chosen)
    stale = [key for key in address.KEYS if key in st.query_params and key not in query]
    for key in stale:
        del st.query_params[key]
    if any(st.query_params.get(key) != value for key, value in query.items()):
        st.query_params.update(query)


def forget_endpoint() -> None:
    """Look at all endpoints again: the chosen one is gone."""
    _remember(replace(here(), endpoint=None, version=None))


def _endpoints() -> dict[str, api.Json]:
    """Endpoints by name for the picker. A refusal here means that the token is worth nothing."""
    try:
        reply = api.endpoints(client())
    except api.Denied:
        sign_out("Your sign-in has ended. Sign in again.")
        st.rerun()
    except api.ApiError as error:
        st.error(
            f"{words.plain(error.message)} What you see may be old; it is marked where it is.",
            icon=":material/cloud_off:",
        )
        return st.session_state.get("known_endpoints", {})
    known = {entry["name"]: entry for entry in reply.get("endpoints", []) if entry.get("name")}
    st.session_state["known_endpoints"] = known
    return known


def _versions(endpoint: api.Json, chosen: str | None) -> list[str]:
    entities = (endpoint.get("config") or {}).get("served_entities") or []
    names = [entity["name"] for entity in entities if entity.get("name")]
    return [*names, chosen] if chosen and chosen not in names else names


@st.fragment(run_every=LIVE_SECONDS)
def _age(endpoint: str | None) -> None:
    """The dot: how old the newest committed row is, and whether the log is behind."""
    text, tint, why = data_age(endpoint)
    st.badge(text, icon=":material/circle:", color=tint, help=why)


def data_age(endpoint: str | None) -> tuple[str, Tint, str]:
    """Text, colour and explanation of the dot for one endpoint, or for all together."""
    try:
        if endpoint is None:
            seconds = words.figure(recent_overview(client()).get("data_age_seconds"))
            return _age_words(seconds, None)
        reply = recent_capture(client(), endpoint)
    except api.NotFound:
        return "not recorded", "gray", "This endpoint has no inference table."
    except api.Denied:
        return "age unknown", "gray", "Your grants do not include the record of this endpoint."
    except api.ApiError as error:
        return "no answer", "red", words.plain(error.message)
    if not reply.get("table"):
        return "not recorded", "gray", "This endpoint has no inference table."
    at = words.moment(reply.get("last_commit_time"))
    if at is None and reply.get("committed_rows"):
        return "age unknown", "gray", "Nothing has been committed since the server started."
    seconds = None if at is None else (now() - at).total_seconds()
    return _age_words(seconds, words.figure(reply.get("lag_seconds")))


def recent_overview(given: api.Client) -> api.Json:
    """The overview, asked for once per beat by the dot and the page together: it costs the server
    a read per endpoint."""
    return _recent("overview", lambda: api.overview(given))


def recent_capture(given: api.Client, endpoint: str) -> api.Json:
    """How the record of an endpoint stands, asked for once per beat by the dot and the page."""
    return _recent(f"capture {endpoint}", lambda: api.capture(given, endpoint))


def is_recorded(endpoint: str) -> bool:
    """Whether its requests are kept in a table, as far as can be told."""
    try:
        return bool(recent_capture(client(), endpoint).get("table"))
    except api.ApiError:
        return False


def _recent(what: str, ask: Callable[[], api.Json]) -> api.Json:
    kept, at, reply = st.session_state.get("recent", (None, 0.0, {}))
    if kept != what or time.monotonic() - at > LIVE_SECONDS / 2:
        reply = ask()
        st.session_state["recent"] = (what, time.monotonic(), reply)
    return reply


def _age_words(seconds: float | None, lag: float | None) -> tuple[str, Tint, str]:
    if lag is not None and lag > RED_LAG_SECONDS:
        behind = words.duration(lag)
        why = f"Acknowledged requests wait for their table for {behind}. See `inferlake doctor`."
        return f"record {behind} behind", "red", why
    if seconds is None:
        return "no rows yet", "gray", "Nothing has been recorded yet."
    if seconds > AMBER_SECONDS:
        why = "No request has been recorded for a while: quiet traffic, or clients that stopped."
        return f"data {words.duration(seconds)} old", "orange", why
    return f"data {words.duration(seconds)} old", "green", "Age of the newest committed row."


# choices that live in the URL


def choice(
    title: str, param: str, options: Sequence[str], default: str, place: Any = st, **style: Any
) -> str:
    """A segmented control whose value is the query parameter `param`; the default is left out."""
    asked = st.query_params.get(param, default)
    st.session_state[f"url_{param}"] = asked if asked in options else default
    place.segmented_control(
        title, options, key=f"url_{param}", on_change=_chose, args=(param, default), **style
    )
    return st.session_state[f"url_{param}"] or default


def _chose(param: str, default: str) -> None:
    value = st.session_state[f"url_{param}"]
    if value and value != default:
        st.query_params[param] = value
    elif param in st.query_params:
        del st.query_params[param]


def entry(place: Any, title: str, param: str, default: str = "", **style: Any) -> str:
    """A text field whose value is the query parameter `param`; the default is left out."""
    st.session_state[f"url_{param}"] = st.query_params.get(param, default)
    place.text_input(title, key=f"url_{param}", on_change=_chose, args=(param, default), **style)
    return str(st.session_state[f"url_{param}"]).strip()


def pick(
    place: Any, title: str, param: str, options: Sequence[str], default: str, **style: Any
) -> str:
    """A list to choose from whose value is the query parameter `param`; the default is left out."""
    asked = st.query_params.get(param, default)
    st.session_state[f"url_{param}"] = asked if asked in options else default
    place.selectbox(
        title, options, key=f"url_{param}", on_change=_chose, args=(param, default), **style
    )
    return str(st.session_state[f"url_{param}"])


def switch(place: Any, title: str, param: str, default: bool, **style: Any) -> bool:
    """A switch whose value is the query parameter `param`, `yes` or `no`; the default is left
    out."""
    asked = st.query_params.get(param)
    st.session_state[f"url_{param}"] = asked == "yes" if asked in ("yes", "no") else default
    place.toggle(title, key=f"url_{param}", on_change=_switched, args=(param, default), **style)
    return bool(st.session_state[f"url_{param}"])


def _switched(param: str, default: bool) -> None:
    value = bool(st.session_state[f"url_{param}"])
    if value != default:
        st.query_params[param] = "yes" if value else "no"
    elif param in st.query_params:
        del st.query_params[param]


# page and states


def page(title: str, question: str) -> None:
    """Title and the one question that the page answers."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.markdown(f"## {words.plain(title)}", width="content")
        st.caption(question, width="content")
    flash(title)


def flash(page_title: str) -> None:
    """What the last action did, with the way back where there is one; gone on the next page."""
    done = st.session_state.get("flash")
    if not done:
        return
    if done.setdefault("page", page_title) != page_title:
        _unflash()
        return
    sign = ":green[:material/check_circle:]" if done["good"] else ":orange[:material/warning:]"
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f"{sign} {words.plain(done['text'])}", width="content")
        if done.get("undo"):
            st.button("Undo", key="flash_undo", on_click=done["undo"], icon=":material/undo:")
        st.button("Close", key="flash_close", on_click=_unflash, type="tertiary")


def _unflash() -> None:
    st.session_state.pop("flash", None)


def say(text: str, undo: Callable[[], None] | None = None, good: bool = True) -> None:
    """Leave a message for the next run of the page."""
    st.session_state["flash"] = {"text": text, "undo": undo, "good": good}


def load(what: str, function: Callable[..., T], *given: Any, absent: Any = NOT_GIVEN) -> T | Any:
    """The reply of an API call, or None after the page has said what is wrong.

    what: the thing in a sentence ("the drift of this table"). absent: value of a 404, where that is
    no fault. A failed call gives the last good reply, marked with its age."""
    kept = st.session_state.setdefault("kept", {})
    key = f"{function.__name__} {given!r}"
    try:
        value = function(client(), *given)
    except api.NotFound as error:
        if absent is not NOT_GIVEN:
            return absent
        failed(what, error)
    except api.Denied as error:
        denied(what, error)
    except api.ApiError as error:
        if key in kept:
            at, old = kept[key]
            st.warning(
                f"{words.plain(error.message)} Below is {what} as read at {at:%H:%M:%S} UTC, "
                f"{words.ago(at, now())}: not current.",
                icon=":material/history:",
            )
            return old
        failed(what, error)
    else:
        kept.pop(key, None)
        kept[key] = (now(), value)
        while len(kept) > MOST_KEPT:
            kept.pop(next(iter(kept)))
        return value
    return None


def verdict(key: str, asked: Any, dry_run: Callable[[], object]) -> str | None:
    """What the server has against a request, in a sentence; None: nothing.

    The verdict on the same `asked` is kept, but not that nobody answered or had time."""
    text = json.dumps(asked)
    kept = st.session_state.get(key)
    if kept is not None and kept[0] == text:
        return kept[1]
    said: str | None = None
    try:
        dry_run()
    except (api.Rejected, api.NotFound) as error:
        said = error.message
    except api.ApiError as error:
        return error.message
    st.session_state[key] = (text, said)
    return said


def failed(what: str, error: api.ApiError) -> None:
    """What failed, since when, the id to quote, and another try."""
    facts = [f"{now():%H:%M:%S} UTC"]
    if error.error_code:
        facts.append(f"{error.error_code} ({error.status})")
    if error.request_id:
        facts.append(f"request id {error.request_id}")
    st.error(
        f"Could not read {what}: {words.plain(error.message)}  \n{words.plain(', '.join(facts))}",
        icon=":material/error:",
    )
    st.button("Try again", key=f"retry_{what}", icon=":material/refresh:")


def denied(what: str, error: api.ApiError) -> None:
    """What is missing and who can grant it."""
    st.warning(
        f"You may not see {what}: {words.plain(error.message)}  \n"
        "Whoever created the endpoint, or an administrator, can grant it.",
        icon=":material/lock:",
    )


def empty(title: str, why: str, snippet: str | None = None, language: str = "bash") -> None:
    """Nothing to show: why, and the next step."""
    with st.container(border=True):
        st.markdown(f"**{words.plain(title)}**")
        st.markdown(words.plain(why))
        if snippet:
            st.code(snippet, language=language)


def shown_once(key: str, what_for: str = "") -> None:
    """The secret that `keep_secret` kept under this key, until it was copied. what_for: a sentence
    behind the others."""
    kept = st.session_state.get(f"{key}_shown")
    if not kept:
        return
    whose, secret = kept
    with st.container(border=True):
        st.markdown(
            f":green[:material/key:] {whose} Copy it now: it is shown this once. {what_for}"
        )
        st.code(secret, language=None)
        st.button("I have copied it", key=f"{key}_copied", on_click=forget_secret, args=(key,))


def keep_secret(key: str, whose: str, secret: str) -> None:
    """Have a secret shown by `shown_once`. whose: a sentence in Markdown, escaped."""
    st.session_state[f"{key}_shown"] = whose, secret


def forget_secret(key: str) -> None:
    """The text of a secret leaves the session."""
    st.session_state.pop(f"{key}_shown", None)


def need_endpoint(question: str) -> str | None:
    """The chosen endpoint; without one, a list to choose from."""
    chosen = here().endpoint
    if chosen:
        return chosen
    names = sorted(st.session_state.get("known_endpoints", {}))
    if not names:
        no_endpoints()
        return None
    if len(names) == 1:
        _remember(replace(here(), endpoint=names[0]))
        st.rerun()
    st.info(f"Choose an endpoint above to see {question}.", icon=":material/north:")
    return None


def no_endpoints() -> None:
    """The state of a new server."""
    empty(
        "No endpoint yet",
        "An endpoint serves one or more versions of a model. See one at work with real data, or "
        "create your own from a model in the registry, on the page New endpoint or by the API:",
        "inferlake demo --data-dir ./inferlake-demo\n\n"
        f"curl -X POST {server_url()}/api/2.0/serving-endpoints \\\n"
        '  -H "Authorization: Bearer $INFERLAKE_TOKEN" -H "Content-Type: application/json" \\\n'
        '  -d \'{"name": "my-endpoint", "config": {"served_entities": [\n'
        '        {"entity_name": "main.default.my_model", "entity_version": "1",\n'
        '         "workload_size": "Small", "scale_to_zero_enabled": false}]}}\'',
    )
