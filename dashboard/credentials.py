"""Sections of the settings: tokens, shown once, and secrets, whose values are never shown."""

import streamlit as st

from dashboard import actions, api, frame, words

LIFETIMES: dict[str, int | None] = {
    "1 day": 86_400,
    "30 days": 30 * 86_400,
    "90 days": 90 * 86_400,
    "1 year": 365 * 86_400,
    "never expires": None,
}
MOST_ROWS = 100
ADMIN_ONLY = "Only an administrator may do this."


def tokens(who: api.Json) -> None:
    st.markdown("#### Tokens")
    st.caption("A token is what a program or a person shows to the API. Its text is shown once.")
    new_token(who)
    reply = frame.load("the tokens", api.tokens)
    if reply is None:
        return
    found = reply.get("tokens") or []
    if not found:
        frame.empty("No token yet", "Create one above, or on the command line:", CREATE)
        return
    more = len(found) - MOST_ROWS
    if more > 0:
        st.caption(f"The newest {MOST_ROWS}; {more} more in `inferlake token list`.")
    shown = sorted(found, key=lambda each: str(each.get("created_time")), reverse=True)[:MOST_ROWS]
    st.dataframe([token_row(each) for each in shown], hide_index=True, key="tokens_table")
    revoking(shown, who)


CREATE = "inferlake token create --comment ci --lifetime-seconds 7776000"


def token_row(each: api.Json) -> dict[str, str]:
    expires = words.clock(each.get("expires_time")) if each.get("expires_time") else "never"
    return {
        "id": str(each.get("id")),
        "user": str(each.get("user")),
        "comment": words.cut(str(each.get("comment") or words.NOTHING), 80),
        "created": words.clock(each.get("created_time")),
        "expires": expires,
    }


def new_token(who: api.Json) -> None:
    admin = bool(who.get("is_admin"))
    with st.form("new_token", clear_on_submit=True):
        left, middle, right, button = st.columns([2, 2, 1.5, 1.2], vertical_alignment="bottom")
        comment = left.text_input("What it is for", key="token_comment", max_chars=200)
        user = middle.text_input(
            "For whom",
            key="token_user",
            placeholder=str(who.get("user") or ""),
            disabled=not admin,
            help=None if admin else f"{ADMIN_ONLY} Yours is made for you.",
        )
        lifetime = right.selectbox("Lifetime", list(LIFETIMES), index=2, key="token_lifetime")
        made = button.form_submit_button("Create token", type="primary", width="stretch")
    if made:
        asked = {
            "comment": comment.strip() or None,
            "user": user.strip() or None,
            "lifetime_seconds": LIFETIMES[lifetime],
        }
        create({key: value for key, value in asked.items() if value is not None})
    frame.shown_once("token")


def create(asked: api.Json) -> None:
    try:
        made = api.create_token(frame.client(), asked)
    except api.ApiError as error:
        st.error(words.plain(error.message), icon=":material/error:")
    else:
        whose = f"The token of **{words.plain(str(made.get('user')))}**."
        frame.keep_secret("token", whose, made["token"])


def revoking(found: list[api.Json], who: api.Json) -> None:
    names = {
        str(
            each["id"]
        ): f"{each.get('user')} · {each.get('comment') or 'no comment'} · {each['id']}"
        for each in found
    }
    left, right = st.columns([4, 1.2], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Revoke a token", list(names), format_func=names.__getitem__, index=None, key="token_revoke"
    )
    pressed = right.button(
        "Revoke",
        key="token_revoke_button",
        disabled=chosen is None,
        width="stretch",
        help="It is worth nothing within seconds, everywhere.",
    )
    if pressed and chosen and actions.done("The token is revoked.", api.revoke_token, chosen):
        st.rerun()
    if chosen is not None:
        actions.as_curl("DELETE", f"/api/1.0/tokens/{chosen}")
    else:
        example = {"comment": "ci", "lifetime_seconds": LIFETIMES["90 days"]}
        actions.as_curl("POST", "/api/1.0/tokens", example)


# secrets


def secrets(_who: api.Json) -> None:
    st.markdown("#### Secrets")
    st.caption(
        "Written here, used by endpoints as {{secrets/scope/key}} in environment variables and "
        "provider keys. A value can be replaced, and is never shown."
    )
    reply = frame.load("the secret scopes", api.secret_scopes)
    if reply is None:
        return
    scopes = sorted(str(each.get("name")) for each in reply.get("scopes") or [])[:MOST_ROWS]
    new_scope()
    if not scopes:
        frame.empty(
            "No scope yet",
            "A scope holds secrets; it is yours and administrators'. Create one above.",
        )
        return
    scope = st.selectbox("Scope", scopes, key="secret_scope")
    if scope:
        keys(scope)


def new_scope() -> None:
    with st.form("new_scope", clear_on_submit=True):
        left, right = st.columns([4, 1.2], vertical_alignment="bottom")
        name = left.text_input("New scope", key="scope_name", placeholder="letters, digits, _.@-")
        pressed = right.form_submit_button("Create scope", width="stretch")
    if pressed and actions.done(
        f"Scope {name.strip()} is created.", api.create_scope, name.strip()
    ):
        st.rerun()


def keys(scope: str) -> None:
    reply = frame.load("the secrets of this scope", api.secret_keys, scope)
    if reply is None:
        return
    found = (reply.get("secrets") or [])[:MOST_ROWS]
    if found:
        rows = [
            {
                "key": str(each.get("key")),
                "changed": words.clock(each.get("last_updated_timestamp")),
                "write in a configuration": f"{{{{secrets/{scope}/{each.get('key')}}}}}",
            }
            for each in found
        ]
        st.dataframe(rows, hide_index=True, key="secrets_table")
    else:
        st.caption("This scope is empty.")
    with st.form("put_secret", clear_on_submit=True):
        left, middle, right = st.columns([2, 3, 1.2], vertical_alignment="bottom")
        key = left.text_input("Key", key="secret_key")
        value = middle.text_input("Value (write-only)", type="password", key="secret_value")
        pressed = right.form_submit_button("Save", type="primary", width="stretch")
    if pressed and actions.done(
        f"Secret {scope}/{key.strip()} is saved.", api.put_secret, scope, key.strip(), value
    ):
        st.rerun()
    dropping(scope, [str(each.get("key")) for each in found])
    example = {"scope": scope, "key": "...", "string_value": "..."}
    actions.as_curl("POST", "/api/2.0/secrets/put", example)


def dropping(scope: str, names: list[str]) -> None:
    left, middle, right = st.columns([3, 1.2, 1.6], vertical_alignment="bottom")
    key = left.selectbox("Delete a secret", names, index=None, key="secret_delete")
    pressed = middle.button("Delete", key="secret_delete_button", disabled=key is None)
    if (
        pressed
        and key
        and actions.done(f"Secret {scope}/{key} is deleted.", api.delete_secret, scope, key)
    ):
        st.rerun()
    with right.popover("Delete the scope…", width="stretch"):
        typed = st.text_input(f"Type its name, {words.plain(scope)}", key="scope_delete_name")
        sure = typed.strip() == scope
        if st.button("Delete it with all secrets", disabled=not sure) and actions.done(
            f"Scope {scope} is deleted.", api.delete_scope, scope
        ):
            st.rerun()
