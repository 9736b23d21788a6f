"""Actions: the one dialog that changes traffic, and the same request as curl.

The dialog shows before and after, sends the configuration version it was shown, asks for the
endpoint's name where one version gets everything, and leaves an undo behind.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from dashboard import api, charts, frame, words

Routes = tuple[tuple[str, float], ...]
LEVELS = {"CAN_VIEW": 0, "CAN_QUERY": 1, "CAN_MANAGE": 2}


@dataclass(frozen=True, slots=True)
class Change:
    """A change of traffic as it will be sent: POST path body.

    before, after: (version, percentage); None where the server decides. config_version: the
    configuration that `before` belongs to. movable: the person may choose version and share."""

    title: str
    endpoint: str
    path: str
    body: dict[str, Any]
    before: Routes
    after: Routes | None
    config_version: int | None
    evidence: tuple[str, ...] = ()
    movable: bool = False


# pure


def routes(configuration: api.Json | None) -> Routes:
    """Versions and percentages of a configuration; versions without a route have 0."""
    given = configuration or {}
    shares = {
        str(route.get("served_entity_name") or route.get("served_model_name")): float(
            route.get("traffic_percentage") or 0
        )
        for route in (given.get("traffic_config") or {}).get("routes") or []
    }
    names = [entity.get("name") for entity in given.get("served_entities") or []]
    if len(names) == 1 and not shares:
        shares = {str(names[0]): 100.0}
    return tuple((str(name), shares.get(str(name), 0.0)) for name in names) or tuple(shares.items())


def moved(before: Routes, entity: str, percentage: int) -> Routes:
    """`entity` at `percentage`; the others share the rest in their present proportions (all at 0:
    equally), in whole percent by largest remainder: what the server will do."""
    others = [(name, share) for name, share in before if name != entity]
    rest, total = 100 - percentage, sum(share for _, share in others)
    weights = [share / total if total else 1 / len(others) for _, share in others]
    whole = [int(rest * weight + 1e-9) for weight in weights]
    by_remainder = sorted(range(len(others)), key=lambda i: (whole[i] - rest * weights[i], i))
    for place in by_remainder[: rest - sum(whole)]:
        whole[place] += 1
    shares = {name: share for (name, _), share in zip(others, whole, strict=True)}
    shares[entity] = percentage if others else 100
    return tuple((name, float(shares[name])) for name, _ in before)


def state_words(endpoint: api.Json) -> tuple[str, str]:
    """The state of an endpoint in words: (ready or not, what is under way or "").

    `state` is the Databricks object `{"ready", "config_update"}` or one word."""
    state = endpoint.get("state")
    if endpoint.get("stopped"):
        return "stopped", ""
    if not isinstance(state, dict):
        return str(state or "unknown").lower().replace("_", " "), ""
    ready = {"READY": "ready", "NOT_READY": "not ready"}.get(str(state.get("ready")), "unknown")
    update = {
        "IN_PROGRESS": "updating",
        "UPDATE_FAILED": "update failed",
        "UPDATE_CANCELED": "update canceled",
    }.get(str(state.get("config_update")), "")
    return ready, update


def curl(method: str, url: str, body: Any = None) -> str:
    """The same request for a shell; the token stays a variable."""
    lines = [
        f"curl -X {method} {shlex.quote(url)}",
        '  -H "Authorization: Bearer $INFERLAKE_TOKEN"',
    ]
    if body is not None:
        lines += [
            '  -H "Content-Type: application/json"',
            f"  -d {shlex.quote(json.dumps(body))}",
        ]
    return " \\\n".join(lines)


def takes_all(change: Change) -> bool:
    """Whether one version gets all traffic that did not have it before."""
    had = dict(change.before)
    return any(share == 100 and had.get(name) != 100 for name, share in change.after or ())


def promotion(
    endpoint: api.Json, entity: str, percentage: int, evidence: Sequence[str] = ()
) -> Change:
    """`entity` gets `percentage` of the endpoint's traffic."""
    name, before = str(endpoint["name"]), routes(endpoint.get("config"))
    version = (endpoint.get("config") or {}).get("config_version")
    return Change(
        title=f"Give {entity} {percentage} %",
        endpoint=name,
        path=api.promote_path(name),
        body={
            "served_entity": entity,
            "traffic_percentage": percentage,
            "if_config_version": version,
        },
        before=before,
        after=moved(before, entity, percentage),
        config_version=version,
        evidence=tuple(evidence),
    )


def shift(endpoint: api.Json, entity: str, evidence: Sequence[str] = ()) -> Change:
    """A change whose version and share the person chooses."""
    share = int(dict(routes(endpoint.get("config"))).get(entity, 0))
    change = promotion(endpoint, entity, share, evidence)
    return replace(change, title="Shift traffic", movable=True)


def restoration(endpoint: api.Json, version: api.Json) -> Change:
    """An earlier configuration comes back."""
    name, number = str(endpoint["name"]), version["config_version"]
    return Change(
        title=f"Roll back to configuration {number}",
        endpoint=name,
        path=api.rollback_path(name),
        body={
            "to_config_version": number,
            "if_config_version": (endpoint.get("config") or {}).get("config_version"),
        },
        before=routes(endpoint.get("config")),
        after=routes(version.get("config")),
        config_version=(endpoint.get("config") or {}).get("config_version"),
        evidence=(f"configuration {number}: {version.get('reason') or 'no reason was given'}",),
    )


# drawn


def refused(endpoint: api.Json, level: str = "CAN_MANAGE") -> str | None:
    """Why the person may not do what needs `level` here; None where nothing speaks against it."""
    has = endpoint.get("permission_level")
    if has is None or LEVELS.get(has, 0) >= LEVELS[level]:
        return None
    who = endpoint.get("creator") or "its creator"
    return f"Needs {level} on this endpoint; you have {has}. {words.plain(who)} can grant it."


def button(title: str, change: Change, key: str, why_not: str | None = None, **style: Any) -> None:
    """A button that opens the dialog; disabled with the reason where the right is missing."""
    st.button(
        title,
        key=key,
        on_click=propose,
        args=(change,),
        disabled=why_not is not None,
        help=why_not,
        **style,
    )


def propose(change: Change) -> None:
    """Open the dialog with `change` in this run."""
    st.session_state["change"] = change


def as_curl(method: str, path: str, body: Any = None, title: str = "Copy as curl") -> None:
    """The request that an action sends, to repeat it elsewhere."""
    with st.expander(title, icon=":material/terminal:"):
        st.code(curl(method, frame.server_url() + path, body), language="bash")


def done(text: str, function: Callable[..., Any], *given: Any) -> bool:
    """Do a small action; say what happened, either way."""
    try:
        function(frame.client(), *given)
    except api.ApiError as error:
        st.error(words.plain(error.message), icon=":material/error:")
        return False
    frame.say(text)
    return True


def pending() -> None:
    """Draw the dialog where a change waits for its answer."""
    change = st.session_state.get("change")
    if change is not None:
        st.dialog(words.plain(change.title), width="medium", on_dismiss=_close)(_dialog)(change)


def _close() -> None:
    st.session_state.pop("change", None)


def _dialog(change: Change) -> None:
    st.markdown(f"Endpoint **{words.plain(change.endpoint)}**")
    if change.movable:
        change = _chosen(change)
    bars = [("before", change.before)]
    if change.after is not None:
        bars.append(("after", change.after))
    st.plotly_chart(charts.traffic(bars), config=charts.CONFIG, key="change_bars")
    for line in change.evidence:
        st.markdown(f"- {words.plain(line)}")
    st.caption(
        "It is written to the audit, webhooks of this endpoint are told, and it can be undone "
        "until the next change. Nothing restarts."
    )
    with st.form("change_form", border=False):
        reason = st.text_input("Reason (kept in the history)", key="change_reason")
        typed = change.endpoint
        if takes_all(change):
            typed = st.text_input(
                f"One version gets everything: type the endpoint's name, "
                f"{words.plain(change.endpoint)}",
                key="change_name",
            )
        sent = st.form_submit_button("Change traffic", type="primary")
    as_curl("POST", change.path, change.body)
    if sent and typed.strip() != change.endpoint:
        st.error("The name is not the endpoint's: nothing was changed.")
    elif sent:
        _send(change, reason.strip())


def _chosen(change: Change) -> Change:
    """Version and share from the two controls; the shares sum to 100 by construction."""
    names = [name for name, _ in change.before]
    entity = st.selectbox(
        "Version", names, index=names.index(change.body["served_entity"]), key="change_entity"
    )
    share = st.slider(
        "Share of the traffic",
        0,
        100,
        int(dict(change.before)[entity]),
        format="%d %%",
        key=f"change_share_{entity}",
    )
    body = change.body | {"served_entity": entity, "traffic_percentage": share}
    return replace(change, body=body, after=moved(change.before, entity, share))


def _send(change: Change, reason: str) -> None:
    body = change.body | ({"reason": reason} if reason else {})
    try:
        reply = api.change_traffic(frame.client(), change.path, body)
    except api.Conflict as error:
        _changed_meanwhile(change, error)
        return
    except api.ApiError as error:
        st.error(f"Nothing was changed: {words.plain(error.message)}", icon=":material/error:")
        return
    _close()
    _report(change, reply)
    st.rerun()


def _changed_meanwhile(change: Change, error: api.Conflict) -> None:
    st.error(f"Nothing was changed: {words.plain(error.message)}", icon=":material/error:")
    endpoint = frame.load("this endpoint", api.endpoint, change.endpoint)
    if endpoint is None:
        return
    present = endpoint.get("config") or {}
    st.markdown(
        f"You were shown configuration {change.config_version}: "
        f"{words.plain(words.split(change.before))}  \n"
        f"It is now configuration {present.get('config_version')}: "
        f"{words.plain(words.split(routes(present)))}"
    )


def _report(change: Change, reply: api.Json) -> None:
    """What stands now, in words, and the way back to the configuration before."""
    endpoint = reply.get("endpoint_object") or reply  # applying a recommendation wraps it
    current = endpoint.get("pending_config") or endpoint.get("config") or {}
    after = routes(current) or change.after or ()
    text = f"{change.endpoint}: {words.split(after)}." if after else f"{change.title}: done."
    undo = None
    if change.config_version is not None:
        undo = _undoing(change, current.get("config_version"))
    frame.say(text, undo)


def _undoing(change: Change, after: int | None) -> Callable[[], None]:
    """Brings the configuration before `change` back, unless somebody changed it since."""
    body = {
        "to_config_version": change.config_version,
        "if_config_version": after,
        "reason": f"undo: {change.title}",
    }

    def undo() -> None:
        try:
            api.change_traffic(frame.client(), api.rollback_path(change.endpoint), body)
        except api.Conflict as error:
            frame.say(
                f"Not undone, somebody changed it since: {error.message} "
                "Roll back on the endpoint's page instead.",
                good=False,
            )
        except api.ApiError as error:
            frame.say(f"Not undone: {error.message}", good=False)
        else:
            frame.say(f"Undone. {change.endpoint}: {words.split(change.before)}.")

    return undo
