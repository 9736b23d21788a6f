"""The ramp of an endpoint: planned steps, gates, and what a person may do."""

import streamlit as st

from dashboard import actions, api, charts, frame, words

STEPS = [1, 5, 20, 50, 100]
TINTS: dict[str, frame.Tint] = {"running": "blue", "completed": "green", "rolled_back": "red"}


def draw(endpoint: api.Json, challenger: str, ramp: api.Json | None) -> None:
    """The ramp with its controls; without one ({}), the form that begins it; None: not known."""
    name, why_not = str(endpoint["name"]), actions.refused(endpoint)
    st.markdown("#### Ramp")
    if ramp is None:
        return
    if ramp.get("state"):
        steps(ramp)
        controls(name, ramp, why_not)
    if ramp.get("state") not in ("running", "held"):
        begin(name, challenger, why_not)


def steps(ramp: api.Json) -> None:
    """Stepper, state, and the next gate in words."""
    state = str(ramp["state"])
    here = ramp.get("step")
    figure = charts.stepper(ramp.get("steps") or STEPS, -1 if here is None else int(here), state)
    st.plotly_chart(figure, config=charts.CONFIG, key="ramp_steps")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(state.replace("_", " "), color=TINTS.get(state, "orange"))
        facts = [f"of {ramp.get('challenger')}"]
        if ramp.get("since"):
            facts.append(f"since {words.clock(ramp['since'])}")
        if ramp.get("paused"):
            facts.append("paused by a person's own change of traffic")
        if ramp.get("next_gate"):
            facts.append(f"next: {ramp['next_gate']}")
        st.markdown(words.plain(" · ".join(facts)), width="content")


def controls(name: str, ramp: api.Json, why_not: str | None) -> None:
    """Approve, resume, end: each where it does something."""
    held, paused = ramp.get("state") == "held", bool(ramp.get("paused"))
    going = ramp.get("state") in ("running", "held")
    wanted = [
        ("Approve the next step", held and not paused, api.approve_ramp, "The step is approved."),
        ("Resume", paused, api.resume_ramp, "The ramp goes on from the traffic of now."),
        ("End the ramp", going, api.delete_ramp, "The ramp has ended; the split stays as it is."),
    ]
    with st.container(horizontal=True):
        for title, offered, function, text in wanted:
            off = why_not is not None or not offered
            if st.button(title, disabled=off, help=why_not) and actions.done(text, function, name):
                st.rerun()


def begin(name: str, challenger: str, why_not: str | None) -> None:
    """The form of a new ramp."""
    st.caption(
        "A ramp moves the traffic step by step, and only while every gate holds; anything missing "
        "or late holds it, no timer ever advances it, and a regression takes it back."
    )
    with st.expander("Begin a ramp", icon=":material/stairs:"):
        with st.form("ramp", border=False):
            left, right = st.columns(2)
            soak = left.number_input("Least minutes per step", 1, 10_000, 30)
            auto = right.toggle("Advance by itself", value=True)
            sent = st.form_submit_button("Begin", disabled=why_not is not None, help=why_not)
        body = {
            "challenger": challenger,
            "steps": STEPS,
            "min_minutes_per_step": int(soak),
            "auto": auto,
            "on_regression": "roll_back",
        }
        actions.as_curl("PUT", f"{api.OURS}/endpoints/{name}/ramp", body)
        if sent and actions.done("The ramp has begun.", api.put_ramp, name, body):
            st.rerun()
