"""The configuration of an endpoint: as it is, changed by a table or as JSON, and its history."""

import difflib
import json
from typing import Any

import streamlit as st

from dashboard import actions, api, creating, frame, words

# What the server adds to a configuration, by no means to be sent back.
ADDED = ("id", "creator", "creation_timestamp", "state", "foundation_model")
KEPT = ("served_entities", "traffic_config", "auto_capture_config")


# pure


def sendable(config: api.Json | None) -> api.Json:
    """A configuration as it is shown -> the body that would make it again."""
    given = {key: config[key] for key in KEPT if (config or {}).get(key)} if config else {}
    entities = [
        {key: value for key, value in entity.items() if key not in ADDED}
        for entity in given.get("served_entities") or []
    ]
    routes = [
        {
            "served_model_name": name,
            "traffic_percentage": int(share) if float(share).is_integer() else share,
        }
        for name, share in actions.routes(config)
    ]
    found: api.Json = {"served_entities": entities}
    traffic: api.Json = {"routes": routes}
    sticky = (given.get("traffic_config") or {}).get("sticky")
    if sticky:
        traffic["sticky"] = sticky
    if routes:
        found["traffic_config"] = traffic
    if given.get("auto_capture_config"):
        table = given["auto_capture_config"]
        found["auto_capture_config"] = {k: v for k, v in table.items() if k != "state"}
    return found


def table_rows(body: api.Json) -> list[dict[str, Any]]:
    """A row per served entity, as the form shows them."""
    shares = dict(actions.routes(body))
    return [
        {
            "name": str(entity.get("name")),
            "model": str(entity.get("entity_name")),
            "version": str(entity.get("entity_version")),
            "size": entity.get("workload_size"),
            "to zero": bool(entity.get("scale_to_zero_enabled")),
            "traffic %": int(shares.get(str(entity.get("name")), 0)),
        }
        for entity in body.get("served_entities") or []
    ]


def with_rows(body: api.Json, rows: list[dict[str, Any]]) -> api.Json:
    """The body with what the rows say; what they do not show stays with the entity of that name.

    A row without a name gets `v<version>`, without a model the first row's."""
    before = {str(e.get("name")): e for e in body.get("served_entities") or []}
    first_model = next((row.get("model") for row in rows if row.get("model")), None)
    entities, routes = [], []
    for row in rows:
        version = str(row.get("version") or "").strip()
        name = str(row.get("name") or "").strip() or creating.entity_name(version)
        entity = dict(before.get(name) or {}) | {
            "name": name,
            "entity_name": row.get("model") or first_model,
            "entity_version": version,
            "scale_to_zero_enabled": bool(row.get("to zero")),
        }
        if row.get("size"):
            entity["workload_size"] = row["size"]
            for end in ("min", "max"):
                entity.pop(f"{end}_provisioned_concurrency", None)
        entities.append(entity)
        share = int(row.get("traffic %") or 0)
        routes.append({"served_model_name": name, "traffic_percentage": share})
    traffic = {**(body.get("traffic_config") or {}), "routes": routes}
    return {**body, "served_entities": entities, "traffic_config": traffic}


def beside(endpoint: api.Json) -> list[dict[str, str]]:
    """A row per thing that is set beside the configuration, in words; what is not set has none."""
    gateway, telemetry = (endpoint.get(key) or {} for key in ("ai_gateway", "telemetry_config"))
    usage = gateway.get("usage_tracking_config")
    features = ", ".join(
        str(each).removeprefix("TELEMETRY_FEATURE_").replace("_", " ").lower()
        for each in telemetry.get("enabled_telemetry_features") or []
    )
    table = telemetry.get("inference_table_config")
    limits = [*(endpoint.get("rate_limits") or []), *(gateway.get("rate_limits") or [])]
    told = endpoint.get("email_notifications") or {}
    addresses = [
        f"{key.replace('_', ' ')}: {', '.join(str(each) for each in told[key])}"
        for key in ("on_update_success", "on_update_failure")
        if told.get(key)
    ]
    found = [
        ("description", str(endpoint.get("description") or "")),
        ("tags", ", ".join(_tag(tag) for tag in endpoint.get("tags") or [])),
        ("limits", "; ".join(limit_words(limit) for limit in limits)),
        ("gateway's inference table", _table_words(gateway.get("inference_table_config"))),
        ("usage tracking", "" if usage is None else _on(usage.get("enabled"))),
        ("telemetry", features),
        ("telemetry's inference table", str(table.get("name")) + _share(table) if table else ""),
        ("notifications (stored, not sent)", "; ".join(addresses)),
    ]
    return [{"what": what, "set to": said} for what, said in found if said]


def limit_words(limit: api.Json) -> str:
    """`600 calls a minute for user`, and of whom."""
    key = str(limit.get("key") or "endpoint").replace("_", " ")
    whom = f" {limit['principal']}" if limit.get("principal") else ""
    return f"{words.count(limit.get('calls'))} calls a minute for {key}{whom}"


def _tag(tag: api.Json) -> str:
    return f"{tag.get('key')}={tag['value']}" if tag.get("value") else str(tag.get("key"))


def _on(enabled: object) -> str:
    return "on" if enabled else "off"


def _share(table: api.Json) -> str:
    share = words.figure(table.get("sampling_fraction"))
    return "" if share in (None, 1.0) else f", {share * 100:g} % of the requests"


def _table_words(table: api.Json | None) -> str:
    if not table:
        return ""
    parts = [table.get(k) for k in ("catalog_name", "schema_name", "table_name_prefix")]
    name = ".".join(str(part) for part in parts if part)
    named = f": {name}" + ("_payload" if all(parts) else "") if name else ""
    return _on(table.get("enabled", True)) + named + _share(table)


def difference(before: object, after: object, first: str, second: str) -> str:
    """What changed, line by line; empty: nothing."""
    old, new = (json.dumps(x, indent=2, sort_keys=True).splitlines() for x in (before, after))
    return "\n".join(difflib.unified_diff(old, new, first, second, lineterm=""))


# drawn


def draw(endpoint: api.Json) -> None:
    present(endpoint)
    attributes(endpoint)
    edit(endpoint)
    limits(endpoint)
    history(endpoint)


def present(endpoint: api.Json) -> None:
    config = endpoint.get("config") or endpoint.get("pending_config")
    body = sendable(config)
    if not body.get("served_entities"):
        frame.empty("No version is served", "Give this endpoint a configuration below.")
        return
    st.dataframe(table_rows(body), hide_index=True, key="served")
    facts = []
    sticky = (body.get("traffic_config") or {}).get("sticky")
    if sticky or len(body["served_entities"]) > 1:
        by = f"a unit stays on its version, by {sticky['key']}" if sticky else "split at random"
        facts.append(by)
    table = body.get("auto_capture_config")
    if table:
        name = ".".join(str(table.get(k)) for k in ("catalog_name", "schema_name"))
        word = "recorded in" if table.get("enabled", True) else "no longer recorded in"
        facts.append(f"{word} {name}.{table.get('table_name_prefix')}_payload")
    st.caption(words.plain(" · ".join(facts)))


def attributes(endpoint: api.Json) -> None:
    """What is set beside the configuration, so that nothing that has an effect is invisible."""
    rows = beside(endpoint)
    if rows:
        st.markdown("**Beside the configuration**")
        st.dataframe(rows, hide_index=True, key="beside")


def edit(endpoint: api.Json) -> None:
    """A change by a table or as JSON; the server checks it before it can be made."""
    why_not = actions.refused(endpoint)
    name = str(endpoint["name"])
    current = endpoint.get("config") or endpoint.get("pending_config")
    body = sendable(current)
    with st.expander("Change it", icon=":material/edit:"):
        how = frame.choice("By", "edit", ["table", "JSON"], "table")
        number = (current or {}).get("config_version")
        by_table = how == "table" and bool(body["served_entities"])
        key = f"edit_{how}_{name}_{number}"
        wanted = _by_table(body, key) if by_table else _by_text(body, key)
        if wanted is None:
            return
        changed = difference(body, wanted, "present", "wanted")
        if not changed:
            st.caption("Nothing is changed yet.")
            return
        st.code(changed, language="diff")
        refusal = _refusal(name, wanted)
        if refusal:
            st.warning(words.plain(refusal), icon=":material/error:")
        else:
            st.caption(
                "The server has checked it. The present configuration serves until the new "
                "one answers."
            )
        no = why_not or refusal
        if st.button(
            "Make the change",
            type="primary",
            key="edit_send",
            disabled=no is not None,
            help=no and words.plain(no),
        ) and actions.done(f"{name}: the change is under way.", api.update_config, name, wanted):
            st.session_state.pop("edit_check", None)
            st.rerun()
        actions.as_curl("PUT", f"{api.SERVING}/{name}/config", wanted)


def _by_table(body: api.Json, key: str) -> api.Json:
    st.caption("Change cells, add or remove rows; percentages sum to 100.")
    edited = st.data_editor(
        table_rows(body),
        key=key,
        num_rows="dynamic",
        hide_index=True,
        column_config={
            "size": st.column_config.SelectboxColumn(options=list(creating.SIZES)),
            "traffic %": st.column_config.NumberColumn(min_value=0, max_value=100, step=1),
        },
    )
    return with_rows(body, list(edited))


def _by_text(body: api.Json, key: str) -> api.Json | None:
    text = st.text_area("Configuration", json.dumps(body, indent=2), height=360, key=key)
    try:
        wanted = json.loads(text)
    except ValueError as error:
        st.error(f"This is no JSON: {words.plain(error)}")
        return None
    if not isinstance(wanted, dict):
        st.error("The configuration is a JSON object.")
        return None
    return wanted


def _refusal(name: str, body: api.Json) -> str | None:
    """What the server's dry run says against it; a verdict is asked for once."""

    def tried() -> None:
        api.update_config(frame.client(), name, body, dry_run=True)

    return frame.verdict("edit_check", [name, body], tried)


def limits(endpoint: api.Json) -> None:
    """Calls per minute, of all together and of each user."""
    name, why_not = str(endpoint["name"]), actions.refused(endpoint)
    before = (endpoint.get("ai_gateway") or {}).get("rate_limits") or []
    now = {str(limit.get("key", "endpoint")): limit.get("calls") for limit in before}
    said = [limit_words(limit) for limit in before]
    with st.expander(f"Limits: {words.plain(', '.join(said) or 'none')}", icon=":material/speed:"):
        with st.form("limits", border=False):
            left, right = st.columns(2)
            whole = left.number_input(
                "Calls a minute, all together", 0, None, now.get("endpoint"), placeholder="no limit"
            )
            each = right.number_input(
                "Calls a minute, of each user", 0, None, now.get("user"), placeholder="no limit"
            )
            sent = st.form_submit_button("Set the limits", disabled=bool(why_not), help=why_not)
        if not sent:
            return
        kept = [limit for limit in before if limit.get("key") not in ("endpoint", "user")]
        wanted = [("endpoint", whole), ("user", each)]
        kept += [
            {"key": key, "calls": int(calls), "renewal_period": "minute"}
            for key, calls in wanted
            if calls is not None
        ]
        if actions.done("The limits are set.", api.put_gateway, name, {"rate_limits": kept}):
            st.rerun()


# history


def history(endpoint: api.Json) -> None:
    st.markdown("#### History")
    reply = frame.load("the versions of the configuration", api.versions, endpoint["name"])
    if reply is None:
        return
    found = reply.get("versions") or []
    current = (endpoint.get("config") or {}).get("config_version")
    if not found:
        frame.empty("No configuration yet", "The first one appears when a version is served.")
        return
    st.caption("Every change is a numbered configuration. Select one to see what it changed.")
    picked = st.dataframe(
        [history_row(entry, current) for entry in found],
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="versions",
    )
    rows = picked["selection"]["rows"]
    place = rows[0] if rows else 0
    entry, before = found[place], found[place + 1] if place + 1 < len(found) else None
    number = entry.get("config_version")
    st.markdown(f"**Configuration {words.plain(number)}**")
    if number != current:
        actions.button(
            f"Roll back to configuration {number}",
            actions.restoration(endpoint, entry),
            "restore",
            actions.refused(endpoint),
            icon=":material/undo:",
        )
    changes(entry, before)


def history_row(entry: api.Json, current: object) -> dict[str, Any]:
    number = entry.get("config_version")
    return {
        "number": number,
        "now": "active" if number == current else "",
        "split": words.split(actions.routes(entry.get("config"))),
        "when": words.clock(entry.get("created_time")),
        "by": entry.get("created_by") or words.NOTHING,
        "origin": entry.get("origin") or words.NOTHING,
        "reason": entry.get("reason") or words.NOTHING,
    }


def changes(entry: api.Json, before: api.Json | None) -> None:
    """What this configuration changed, line by line; the first one whole."""
    now = sendable(entry.get("config"))
    whole = json.dumps(now, indent=2)
    if before is None:
        st.code(whole, language="json", height=400)
        return
    first, second = (f"configuration {c.get('config_version')}" for c in (before, entry))
    changed = difference(sendable(before.get("config")), now, first, second)
    st.code(changed or "Nothing changed.", language="diff")
    with st.expander("Whole configuration"):
        st.code(whole, language="json")
