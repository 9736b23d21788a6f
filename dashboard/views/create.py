"""What do I want to serve? A form in four steps, and beside it the request that it makes."""

import json
from typing import Any

import streamlit as st

from dashboard import actions, api, creating, frame, starting, words

TYPES = ("custom model", "external model", "foundation model")
WATCH_HELP = (
    "A daily comparison with the first days' requests (drift), and quality as labels arrive. "
    "'numbers': the model predicts amounts; 'classes': it predicts which of several."
)
REGISTER = """import os
import mlflow
from mlflow.models import infer_signature

# where the server keeps its models; in your terminal:
#   export MLFLOW_TRACKING_URI=sqlite:///$PWD/inferlake-data/mlflow/mlflow.db
with mlflow.start_run():
    mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(X, model.predict(X)),
        input_example=X[:2],
        registered_model_name="main.default.my_model",
    )"""


def main() -> None:
    frame.page("New endpoint", "What do I want to serve?")
    reply = frame.load("the registered models", api.models)
    if reply is None:
        return
    models = {str(m.get("name")): m.get("versions") or [] for m in reply.get("models") or []}
    if not models:
        frame.empty(
            "No model is registered yet",
            "An endpoint serves versions of a registered model. Register one with MLflow, then "
            "open this page again:",
            REGISTER,
            "python",
        )
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        wish = form(models, bool(reply.get("next_page_token")))
    with right:
        request(wish)


def form(models: dict[str, list[api.Json]], more: bool) -> creating.Wish | None:
    """The four steps; None where the type is not offered."""
    st.markdown("#### 1 · Type")
    kind = frame.choice("Type", "type", TYPES, TYPES[0], label_visibility="collapsed")
    if kind != TYPES[0]:
        st.info("Only custom models are offered so far: choose one of the registry.")
        return None
    model, versions = entity(models, more)
    taken = list(st.session_state.get("known_endpoints", {}))
    name = frame.entry(
        st,
        "Name of the endpoint",
        "name",
        creating.suggested_name(model, taken),
        help="Clients call it: 1 to 63 letters, digits, '_' or '-'.",
        max_chars=63,
    )
    st.markdown("#### 3 · Size and split")
    size = frame.choice("Size", "size", list(creating.SIZES), "Small")
    st.caption(f"{size}: {creating.SIZES[size]}, for each version.")
    to_zero = frame.switch(
        st,
        "Scale to zero when nobody asks",
        "zero",
        False,
        help="After half an hour without requests no process of the model is left; the next "
        "request waits for a start.",
    )
    share = 0
    if len(versions) == 2:
        share = split(versions)
    recorded, watched = record(model)
    extra = further()
    return creating.Wish(name, model, versions, share, size, to_zero, recorded, watched, extra)


def entity(models: dict[str, list[api.Json]], more: bool) -> tuple[str, tuple[str, ...]]:
    """Model and one or two versions."""
    st.markdown("#### 2 · Model and version")
    names = list(models)
    asked = st.query_params.get("model")
    if asked and asked not in names:
        names.insert(0, asked)  # beyond the first 100, or not there: the server will say
    model = frame.pick(st, "Registered model", "model", names, creating.newest(models))
    if more:
        st.caption("The first 100 models by name; another one: put ?model=NAME into the address.")
    known = {str(v.get("version")): v for v in models.get(model, [])}
    listed = list(known) or ["1"]
    labels = {
        number: creating.version_label(known.get(number, {"version": number})) for number in listed
    }
    first, second = st.columns(2)
    one = frame.pick(
        first, "Version", "serve", listed, listed[0], format_func=lambda v: labels.get(v, v)
    )
    rest = ["none", *(v for v in listed if v != one)]
    two = frame.pick(
        second,
        "Compare with",
        "beside",
        rest,
        "none",
        format_func=lambda v: labels.get(v, v),
        help="A second version gets a share of the traffic.",
    )
    about = frame.load(f"version {one} of this model", api.model_version, model, one)
    if about is not None:
        st.caption(words.plain(creating.asks_for(about)))
    return model, (one,) if two == "none" else (one, two)


def split(versions: tuple[str, ...]) -> int:
    """The second version's percentage; the first one has the rest."""
    first, second = (creating.entity_name(version) for version in versions)
    asked = st.query_params.get("share", "10")
    st.session_state["url_share"] = min(int(asked), 100) if asked.isdecimal() else 10
    share = st.slider(
        f"Traffic of {second}", 0, 100, key="url_share", format="%d %%", on_change=_shared
    )
    st.caption(f"{first} {100 - share} %, {second} {share} %")
    return int(share)


def _shared() -> None:
    st.query_params["share"] = str(st.session_state["url_share"])


def record(model: str) -> tuple[tuple[str, str] | None, str | None]:
    """Where requests are recorded, and what is watched."""
    st.markdown("#### 4 · Record and monitor")
    kept = frame.switch(
        st,
        "Record every request and answer in a table",
        "record",
        True,
        help="A Delta table; drift, quality and experiments live from it.",
    )
    if not kept:
        st.caption("Without the record there is no drift, no quality and no experiment.")
        return None, None
    catalog, schema = creating.home(model)
    left, right = st.columns(2)
    where = (
        frame.entry(left, "Catalog", "catalog", catalog, max_chars=128),
        frame.entry(right, "Schema", "schema", schema, max_chars=128),
    )
    watch = frame.choice(
        "Watch for drift; the model predicts",
        "watch",
        list(creating.WATCHES),
        "no",
        format_func=lambda w: "do not watch" if w == "no" else w,
        help=WATCH_HELP,
    )
    return where, creating.WATCHES[watch]


def further() -> creating.Extra:
    """What most endpoints leave as it is. Variables and tags stay out of the address: a link is
    sent to others, and a variable may hold a secret."""
    with st.expander("More: machine, variables, tags, limit", icon=":material/tune:"):
        kind = frame.pick(
            st,
            "Machine",
            "machine",
            list(creating.TYPES),
            "CPU",
            format_func=lambda t: f"{t}: {creating.TYPES[t]}",
            help="For each copy of a version. One with GPUs waits until the server has them free; "
            "the server's settings may say another memory.",
        )
        concurrency = numbers()
        variables = st.text_area(
            "Environment variables",
            key="create_variables",
            placeholder="LOG_LEVEL=info\nAPI_KEY={{secrets/scope/key}}",
            help="Of the model's process, one NAME=value a line.",
        )
        st.caption(
            "Keep secrets out of it: `{{secrets/scope/key}}` as a value is opened only when the "
            "model starts. Secrets are made on the Settings page."
        )
        tags = st.text_area(
            "Tags",
            key="create_tags",
            placeholder="team=pricing\nstage=trial",
            height=80,
            help="To find and group endpoints, one key=value a line.",
        )
        calls = st.number_input(
            "Calls a minute, of all together",
            min_value=0,
            value=None,
            key="create_calls",
            placeholder="no limit",
            help="Calls beyond it are answered 429.",
        )
    return creating.Extra(kind, concurrency, variables, tags, calls)


def numbers() -> tuple[int, int] | None:
    """Fewest and most requests at a time; None: as the size says."""
    own = frame.switch(
        st,
        "Set how many requests at a time by numbers, in place of the size",
        "numbers",
        False,
        help="For each version. The server keeps room for the fewest and grows to the most.",
    )
    if not own:
        return None
    left, right = st.columns(2)
    least = left.number_input("Fewest at a time", 0, 1024, 4, key="create_least")
    most = right.number_input("Most at a time", 1, 1024, 8, key="create_most")
    return int(least), int(most)


def request(wish: creating.Wish | None) -> None:
    """The request as it will be sent, what the server says of it, and the button."""
    st.markdown("#### The request")
    if wish is None:
        st.caption("It appears with a type that is offered.")
        return
    body = creating.body(wish)
    verdict = creating.missing(wish) or refusal(body)
    if verdict:
        st.warning(words.plain(verdict), icon=":material/error:")
    else:
        st.success("The server has checked it: this can be made.", icon=":material/check_circle:")
    pressed = st.button(
        "Create the endpoint",
        type="primary",
        icon=":material/rocket_launch:",
        disabled=verdict is not None,
        help=verdict and words.plain(verdict),
        width="stretch",
        key="create",
    )
    st.code(json.dumps(body, indent=2), language="json", wrap_lines=True)
    actions.as_curl("POST", api.SERVING, body)
    if pressed:
        create(wish, body)


def refusal(body: api.Json) -> str | None:
    """What the server's dry run says against this request; a verdict is asked for once."""
    return frame.verdict("dry_run", body, lambda: _try(body))


def _try(body: api.Json) -> None:
    api.create_endpoint(frame.client(), body, dry_run=True)


def create(wish: creating.Wish, body: dict[str, Any]) -> None:
    """Make the endpoint, then its monitor, and go where its start is watched."""
    st.session_state.pop("dry_run", None)
    try:
        api.create_endpoint(frame.client(), body)
    except api.ApiError as error:
        st.error(f"Nothing was made: {words.plain(error.message)}", icon=":material/error:")
        return
    watched = creating.monitor(wish)
    if watched is not None:
        try:
            api.create_monitor(frame.client(), *watched)
        except api.ApiError as error:
            frame.say(
                f"{wish.name} is being made, but not its monitor: {error.message} "
                "The Drift page has the request that makes one.",
                good=False,
            )
    starting.expect(wish.name)
    st.switch_page("views/endpoint.py", query_params={"endpoint": wish.name})


main()
