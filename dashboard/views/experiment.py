"""Is the challenger better, and how sure are we?"""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from dashboard import (
    actions,
    api,
    charts,
    evidence,
    forest,
    frame,
    ramps,
    shadows,
    snippets,
    verdict,
    words,
)

LOOKS: dict[str, tuple[frame.Tint, str]] = {
    "promote": ("green", ":material/trending_up:"),
    "roll_back": ("red", ":material/undo:"),
    "hold": ("orange", ":material/pause_circle:"),
    "keep_collecting": ("blue", ":material/hourglass_top:"),
}
ORDER = ("promote", "roll_back", "keep_collecting", "hold")
MOST_SLICES = 20


def main() -> None:
    frame.page("Experiment", "Is the challenger better, and how sure are we?")
    name = frame.need_endpoint("its experiment")
    if name is None:
        return
    endpoint = frame.load("this endpoint", api.endpoint, name)
    if endpoint is None:
        return
    reply = frame.load("the experiment", api.experiment, name, absent={})
    if reply is None:
        return
    if not reply.get("policy"):
        none_yet(name, endpoint)
        shadows.draw(endpoint)
        return
    ramp = frame.load("the ramp", api.ramp, name, absent={})
    decision = choose_decision(reply.get("decisions") or [])
    if decision is None:
        st.info(
            "The experiment has begun; the first decision comes with the next refresh of its "
            "monitor.",
            icon=":material/hourglass_top:",
        )
    else:
        show(name, endpoint, reply["policy"], decision, ramp or {})
    challenger, _ = evidence.roles(reply["policy"], decision or {})
    ramps.draw(endpoint, challenger, ramp)
    shadows.draw(endpoint)
    with st.expander("What was agreed beforehand (the policy)"):
        st.json(reply["policy"])
        path = f"{frame.server_url()}{api.OURS}/endpoints/{name}/experiment"
        st.code(actions.curl("GET", path), language="bash")


def none_yet(name: str, endpoint: api.Json) -> None:
    entities = [n for n, _ in actions.routes(endpoint.get("config"))]
    if len(entities) < 2:
        why = "An experiment compares two versions, and this endpoint serves fewer. Add a second."
        frame.empty("No experiment", why)
        return
    frame.empty(
        "No experiment",
        "Agree beforehand what counts as better (mde: the smallest gain worth a change); then you "
        "may look at the result as often as you like:",
        snippets.experiment(frame.server_url(), name, entities),
    )


def choose_decision(decisions: list[api.Json]) -> api.Json | None:
    """The newest decision; with several challengers a line for each, and the chosen one's."""
    if not decisions:
        return None
    if len(decisions) == 1:
        return decisions[0]
    found = sorted(decisions, key=lambda d: (_order(d), str(d.get("challenger"))))
    names = [str(d.get("challenger")) for d in found]
    with st.container(border=True):
        for decision in found:
            with st.container(horizontal=True, vertical_alignment="center"):
                badge(decision)
                line = verdict.of(decision, {}).headline
                st.markdown(words.plain(line), width="content")
    wanted = frame.here().version
    index = names.index(wanted) if wanted in names else 0
    chosen = st.selectbox("Challenger shown below", names, index=index, key="experiment_challenger")
    return found[names.index(chosen)]


def _order(decision: api.Json) -> int:
    action = str(decision.get("action"))
    return ORDER.index(action) if action in ORDER else len(ORDER)


def badge(decision: api.Json) -> None:
    action = str(decision.get("action"))
    tint, icon = LOOKS.get(action, LOOKS["keep_collecting"])
    st.badge(words.ACTIONS.get(action, action), icon=icon, color=tint)


def show(
    name: str, endpoint: api.Json, policy: api.Json, decision: api.Json, ramp: api.Json
) -> None:
    say(endpoint, policy, decision, ramp)
    st.markdown("#### Differences with intervals")
    evidence.metrics(policy, decision)
    st.markdown("#### Can the numbers be trusted?")
    evidence.health(policy, decision)
    st.markdown("#### The interval over time")
    history(name, policy, decision)
    slices(decision)


# verdict


def say(endpoint: api.Json, policy: api.Json, decision: api.Json, ramp: api.Json) -> None:
    """What the verdict is, why, what happens next; a broken comparison shows its cause instead."""
    told = verdict.of(decision, ramp)
    broken = any(str(r).startswith(verdict.BROKEN) for r in decision.get("reasons") or [])
    with st.container(border=True):
        text, buttons = st.columns([4.6, 1.4], vertical_alignment="center")
        with text:
            badge(decision)
            st.markdown(f"##### {words.plain(told.headline)}")
            if broken:
                st.markdown("**Why:** until this is cured, no difference below means anything.")
            elif told.why:
                st.markdown(f"**Why:** {words.plain(told.why)}")
            st.markdown(f"**Next:** {words.plain(told.then)}")
            facts = [f"decided {words.clock(decision.get('decided_time'))}"]
            if not broken and decision.get("summary"):
                facts.append(f"in full: {decision['summary']}")
            st.caption(words.plain(" · ".join(facts)))
        with buttons:
            act(endpoint, policy, decision)


def act(endpoint: api.Json, policy: api.Json, decision: api.Json) -> None:
    challenger, champion = evidence.roles(policy, decision)
    split = dict(actions.routes(endpoint.get("config")))
    why_not = actions.refused(endpoint)
    told = [str(decision["summary"])] if decision.get("summary") else []
    if challenger in split:
        target = 100 - int(words.figure(policy.get("holdout_percentage")) or 0)
        actions.button(
            f"Promote {challenger} to {target} %",
            actions.promotion(endpoint, challenger, target, told),
            "experiment_promote",
            why_not,
            type="primary" if decision.get("action") == "promote" else "secondary",
            width="stretch",
        )
        actions.button(
            "Shift traffic…",
            actions.shift(endpoint, challenger, told),
            "experiment_shift",
            why_not,
            width="stretch",
        )
    if champion in split and split[champion] < 100:
        actions.button(
            f"Roll back to {champion}",
            actions.promotion(endpoint, champion, 100, told),
            "experiment_roll_back",
            why_not,
            type="primary" if decision.get("action") == "roll_back" else "secondary",
            width="stretch",
        )


# over time


def history(name: str, policy: api.Json, decision: api.Json) -> None:
    """The primary difference of all decisions so far: looking often is allowed, and said so."""
    reply = frame.load("the past decisions", api.experiment, name, True, absent={})
    past = comparisons((reply or {}).get("decisions") or [])
    metric = str((policy.get("primary") or {}).get("name"))
    current = (decision.get("experiment"), str(decision.get("challenger")))
    past.setdefault(current, [])
    chosen = current
    if len(past) > 1:
        keys = sorted(past, key=lambda key: str(key[0]), reverse=True)
        chosen = st.selectbox(
            "Comparison",
            keys,
            index=keys.index(current),
            format_func=lambda key: comparison_words(key, past[key], key == current),
            key="experiment_comparison",
        )
    line = interval_line(past[chosen], metric, chosen[1])
    if sum(value is not None for value in line.values) < 2:
        st.info("The band appears with the second interval.", icon=":material/hourglass_top:")
        return
    draw_history(line, past[chosen], policy, metric)


def comparisons(decisions: Sequence[api.Json]) -> dict[tuple[Any, str], list[api.Json]]:
    """Decisions by (experiment, challenger), in the order of time. Those of the guard are left
    out: its rows are the newest hours alone, another question."""
    found: dict[tuple[Any, str], list[api.Json]] = {}
    for decision in sorted(decisions, key=lambda d: str(d.get("decided_time"))):
        if decision.get("kind") != "guard" and words.moment(decision.get("decided_time")):
            key = (decision.get("experiment"), str(decision.get("challenger")))
            found.setdefault(key, []).append(decision)
    return found


def comparison_words(key: tuple[Any, str], past: Sequence[api.Json], is_current: bool) -> str:
    said = f"{key[1]} against {past[0].get('champion')}" if past else key[1]
    if past:
        said += f", {words.day(past[0]['decided_time'])} to {words.day(past[-1]['decided_time'])}"
    return f"{said} (the present one)" if is_current else said


def draw_history(
    line: charts.Line, past: Sequence[api.Json], policy: api.Json, metric: str
) -> None:
    newest = (past[-1].get("metrics") or {}).get(metric) or {}
    good = 1 if newest.get("direction") == "higher" else -1
    primary = policy.get("primary") or {}
    superior = primary.get("mode", "superiority") == "superiority"
    bound = 0.0 if superior else -good * (words.figure(primary.get("margin")) or 0.0)
    mde = words.figure(primary.get("mde"))
    figure = charts.narrowing(
        line, bound, None if mde is None else good * mde, turns(past), words.metric(metric)
    )
    st.plotly_chart(figure, config=charts.CONFIG, key="experiment_history")
    better = "above" if good > 0 else "below"
    st.caption(
        f"{words.plain(line.name)} minus champion; {better} the line is better. Peeking is "
        "allowed: the interval is valid at every moment. Marks: where the decision changed. Times "
        "are UTC, in the time of the monitor."
    )


def interval_line(past: Sequence[api.Json], metric: str, challenger: str) -> charts.Line:
    times, values, low, high, notes = [], [], [], [], []
    for decision in past:
        found = (decision.get("metrics") or {}).get(metric) or {}
        ends = words.pair(found.get("interval"))
        at = words.moment(decision.get("decided_time"))
        if at is None:
            continue
        times.append(at)
        values.append(words.figure(found.get("effect")))
        low.append(ends[0] if ends else None)
        high.append(ends[1] if ends else None)
        labels = words.count(evidence.total(found.get("n")))
        notes.append(f"{words.interval(found.get('interval'))}, {labels} labels")
    return charts.Line(
        challenger, times, values, charts.colour(challenger), False, low, high, notes
    )


def turns(past: Sequence[api.Json]) -> list[charts.Event]:
    """Where the decision changed."""
    found, before = [], None
    for decision in past:
        action, at = decision.get("action"), words.moment(decision.get("decided_time"))
        if action != before and before is not None and at is not None:
            found.append(charts.Event(at, words.ACTIONS.get(str(action), str(action))))
        before = action
    return found


def slices(decision: api.Json) -> None:
    given = [s for s in decision.get("slices") or [] if words.pair(s.get("interval"))]
    if not given:
        return
    st.markdown("#### Slices")
    given.sort(key=lambda s: (not s.get("regression"), str(s.get("slice"))))
    rows = [
        forest.Effect(
            name=str(s.get("slice")),
            value=float(s["effect"]),
            low=float(s["interval"][0]),
            high=float(s["interval"][1]),
            good=1 if s.get("direction") == "higher" else -1,
            note=f"n {words.count(evidence.total(s.get('n')))}",
        )
        for s in given[:MOST_SLICES]
    ]
    st.plotly_chart(
        forest.draw(rows, own_scale=False), config=charts.CONFIG, key="experiment_slices"
    )
    compared = words.count(given[0].get("comparisons"))
    st.caption(
        f"{len(given)} slices have an interval; corrected for {compared} comparisons, so a slice "
        "that stands out really does."
    )


main()
