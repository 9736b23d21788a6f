"""The verdict for a person in a hurry: what it is, why, and what happens next. Pure."""

from dataclasses import dataclass

from dashboard import api, words

BROKEN = ("sample_ratio", "labels_uneven")
WAITING = {
    "no_data": "no request of this experiment has arrived",
    "no_labels": "no label has arrived for one of them",
    "min_labels": "there are too few labels",
    "min_hours": "the agreed running time is not over",
    "labels_immature": "many labels are still on their way",
    "zero_variance": "all values are equal",
}
CURES = {
    "sample_ratio": "Find out why requests go missing or bypass the split, then begin anew.",
    "labels_uneven": "Find out why one version's labels are missing.",
    "slice_regression": "Look at the slices below; no traffic is moved for you.",
    "fading": "Wait whether the gain lasts; no traffic is moved for you.",
    "below_mde": "Give the traffic back or try another version; waiting changes nothing.",
    "lost_to": "Nothing: the winner is the one to promote.",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """headline: one sentence; why: what it rests on; then: what happens next. Plain text."""

    headline: str
    why: str
    then: str


def of(decision: api.Json, ramp: api.Json) -> Verdict:
    """In the words of this decision and of the endpoint's ramp ({} where there is none)."""
    return Verdict(_headline(decision), _why(decision), _then(decision, ramp))


def _names(decision: api.Json) -> tuple[str, str]:
    """Challenger and champion, as they are called in a sentence."""
    challenger, champion = decision.get("challenger"), decision.get("champion")
    return str(challenger or "the challenger"), str(champion or "the champion")


def _headline(decision: api.Json) -> str:
    challenger, champion = _names(decision)
    action, reason = str(decision.get("action")), _first(decision)
    head, _, tail = reason.partition(":")
    if action == "promote":
        known = "better than" if head == "better" else "no worse than"
        return f"{challenger} is {known} {champion}."
    if action == "roll_back":
        if head == "worse":
            return f"{challenger} is worse than {champion}."
        return f"{challenger} is too risky: its {words.reason(reason)}."
    if head in BROKEN:
        return f"No verdict: {words.reason(reason)}."
    if head == "below_mde":
        return f"{challenger} gains too little over {champion} to be worth a change."
    if head == "lost_to":
        return f"{challenger} is better than {champion}, but {tail} is surer to gain more."
    if action == "hold":
        return f"No verdict on {challenger} yet: {words.reason(reason)}."
    if head in WAITING:
        return f"Not decided yet: {WAITING[head]}."
    return f"Not decided yet: {challenger} may be better or worse than {champion}."


def _why(decision: api.Json) -> str:
    """The primary's difference in words, or the guardrail that was crossed."""
    crossed = [n for n, g in (decision.get("guardrails") or {}).items() if g.get("crossed")]
    name = crossed[0] if crossed else str(decision.get("primary") or _first_metric(decision))
    found = (decision.get("metrics") or {}).get(name) or {}
    effect, ends = words.figure(found.get("effect")), words.pair(found.get("interval"))
    counts = found.get("n") or {}
    sides = _names(decision)
    labels = " and ".join(words.count(counts.get(side)) for side in sides)
    what = "requests" if crossed else "labels"
    if effect is None:
        return f"From {labels} {what} of {' and '.join(sides)}." if counts else ""
    rising = found.get("direction") == "higher"
    unit = "points" if name in words.RATES else "%" if name.startswith("latency") else ""
    told = f"{words.metric(name)} is {_moved(effect, unit, rising)}"
    if ends is not None:
        worst, best = ends if rising else ends[::-1]
        told += f"; the truth may lie anywhere from {_moved(worst, unit, rising)}"
        told += f" to {_moved(best, unit, rising)}"
    return f"{told[0].upper()}{told[1:]}. From {labels} {what} of {' and '.join(sides)}."


def _moved(difference: float, unit: str, rising: bool) -> str:
    """`0.032 lower (better)`."""
    if difference == 0:
        return "the same"
    size = abs(difference) * (100 if unit else 1)
    good = "better" if (difference > 0) == rising else "worse"
    side = "higher" if difference > 0 else "lower"
    return " ".join(f"{float(f'{size:.2g}'):g} {unit} {side} ({good})".split())


def _then(decision: api.Json, ramp: api.Json) -> str:
    action, head = str(decision.get("action")), _first(decision).partition(":")[0]
    challenger, champion = _names(decision)
    mine = ramp.get("challenger") == challenger
    going = mine and ramp.get("state") in ("running", "held")
    if action == "roll_back":
        if mine and ramp.get("state") == "rolled_back":
            return f"Its traffic went back to {champion} by itself; a new experiment begins again."
        if mine and ramp.get("on_regression") == "roll_back" and going:
            return f"The ramp gives its traffic back to {champion} within seconds."
        return f"Roll back to {champion} with the button; nothing is moved for you."
    if action == "promote":
        if going:
            return f"The ramp moves it; its next gate: {ramp.get('next_gate') or 'the next step'}."
        return "Promote it with the button; nothing is moved for you."
    if head in CURES:
        return CURES[head]
    wait = missing(decision) or "It is decided anew with every refresh; you may look at any time"
    return f"{wait}; {'the ramp goes on by its gates' if going else 'the traffic stays as it is'}."


def missing(decision: api.Json) -> str:
    """What is still needed, where the decision knows."""
    remaining = decision.get("remaining") or {}
    labels, hours = words.figure(remaining.get("labels")), words.figure(remaining.get("hours"))
    if not labels or decision.get("action") != "keep_collecting":
        return ""
    time = f", about {words.duration(hours * 3600)}" if hours else ""
    return f"About {words.count(labels)} more labels needed{time}"


def _first(decision: api.Json) -> str:
    return str((decision.get("reasons") or ["unknown"])[0])


def _first_metric(decision: api.Json) -> str:
    return next(iter(decision.get("metrics") or {}), "")
