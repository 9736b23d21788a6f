"""The policy of an experiment: what is compared, what is tolerated, how sure one wants to be.

Standard library only, so that a process that loads no numbers can check a policy.
Source: experiments.md, "Policy".
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

MODES = ("superiority", "non_inferiority")
DIRECTIONS = ("higher", "lower")
ASSIGNMENTS = ("auto", "request", "unit")
QUALITY_KINDS = ("binary", "continuous", "auc")
KINDS = (*QUALITY_KINDS, "error_rate", "latency")
LOSSES = ("mse", "mae", "brier", "log_loss")
KIND_OF_NAME = {
    **dict.fromkeys(("accuracy", "recall", "precision"), "binary"),
    **dict.fromkeys(LOSSES, "continuous"),
    **dict.fromkeys(("auc", "roc_auc"), "auc"),
    "error_rate": "error_rate",
    "latency": "latency",
}
DEFAULT_MARGINS = {"error_rate": 0.002, "latency": 0.10}

_METRIC_KEYS = ("name", "kind", "mde", "margin", "direction", "value", "positive", "score")
_PRIMARY_KEYS = (*_METRIC_KEYS, "mode")
_OTHER_KEYS = (*_METRIC_KEYS, "quantile")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a policy. mde and margin are positive and in the metric's own unit; value: a
    column, or an expression over columns (formulas.py)."""

    name: str
    kind: str
    margin: float = 0.0
    mde: float | None = None
    mode: str = "superiority"
    direction: str = "higher"
    value: str | None = None
    positive: Any = 1
    score: str = "score"
    quantile: float = 0.95

    @property
    def sign(self) -> int:
        """+1 where a higher value is a gain, -1 where a lower one is."""
        return 1 if self.direction == "higher" else -1

    @property
    def bound(self) -> float:
        """What the gain has to exceed: 0, or minus the margin where "no worse" is enough."""
        return 0.0 if self.mode == "superiority" else -self.margin


@dataclass(frozen=True, slots=True)
class Policy:
    """All that a decision depends on besides rows and time, field by field as in experiments.md."""

    primary: Metric
    guardrails: tuple[Metric, ...] = (
        Metric("error_rate", "error_rate", margin=0.002, direction="lower"),
        Metric("latency_p95", "latency", margin=0.10, direction="lower"),
    )
    slices: tuple[str, ...] = ()
    information: tuple[Metric, ...] = ()
    champion: str | None = None
    challenger: str | None = None
    challengers: int = 1
    alpha: float = 0.05
    guardrail_alpha: float = 0.01
    health_alpha: float = 0.001
    fading_alpha: float = 0.05
    min_hours: float = 24
    min_labels: int | None = None
    min_units: int = 30
    stratum_hours: int = 1
    min_requests: int = 50
    assignment: str = "auto"
    label_window_hours: float | None = None
    coverage_margin: float = 0.01
    max_slice_values: int = 20

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "Policy":
        """A policy from its JSON form; null = default. Raises ValueError that names the field."""
        return _policy(given)

    def labels_needed(self, metric: Metric) -> int:
        """Least labels per version before an interval of this metric is acted upon."""
        if self.min_labels is not None:
            return self.min_labels
        return 500 if metric.kind == "continuous" else 100

    @property
    def placed_metrics(self) -> dict[str, Metric]:
        """Every metric by its place in the policy: `primary`, `guardrails[0]`."""
        found = {"primary": self.primary}
        for name, metrics in (("guardrails", self.guardrails), ("information", self.information)):
            found |= {f"{name}[{number}]": metric for number, metric in enumerate(metrics)}
        return found

    @property
    def decisive_alpha(self) -> float:
        """The error budget of one comparison: challengers share it."""
        return self.alpha / self.challengers

    @property
    def crossing_alpha(self) -> float:
        """The error budget of one guardrail of one challenger."""
        return self.guardrail_alpha / self.challengers


def _policy(given: Mapping[str, Any]) -> Policy:
    if not isinstance(given, Mapping):
        raise ValueError(f"policy: expected an object, found {_shown(given)}.")
    names = tuple(f.name for f in fields(Policy))
    _known(given, names, "policy")
    if given.get("primary") is None:
        raise ValueError("policy.primary is missing: name the metric that decides.")
    values: dict[str, Any] = {"primary": _primary(given["primary"])}
    for name in names:
        if name in _CHECKS and given.get(name) is not None:
            values[name] = _CHECKS[name](given[name], f"policy.{name}")
    if "champion" in values and values["champion"] == values.get("challenger"):
        raise ValueError(f"policy.challenger: '{values['challenger']}' is the champion as well.")
    return Policy(**values)


def _primary(given: Any) -> Metric:
    metric = _metric(given, "policy.primary", _PRIMARY_KEYS, QUALITY_KINDS)
    if metric.mde is None:
        raise ValueError("policy.primary.mde is missing: the smallest gain worth a change, > 0.")
    return metric


def _metric(given: Any, where: str, keys: Collection[str], kinds: Collection[str]) -> Metric:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected an object with name and kind, found {_shown(given)}.")
    _known(given, keys, where)
    name = _text(given.get("name"), f"{where}.name")
    kind = given.get("kind", KIND_OF_NAME.get(name))
    _one_of(kind, kinds, f"{where}.kind")
    value = _optional_text(given.get("value"), f"{where}.value")
    if kind == "continuous" and value is None and name not in LOSSES:
        raise ValueError(
            f"{where}.value is missing: '{name}' is none of {', '.join(LOSSES)}; name its column, "
            "or say in an expression what it is."
        )
    lower = name in LOSSES or kind in ("error_rate", "latency")
    direction = _or_default(given, "direction", "lower" if lower else "higher")
    return Metric(
        name=name,
        kind=kind,
        margin=_not_negative(
            _or_default(given, "margin", DEFAULT_MARGINS.get(kind, 0.0)), f"{where}.margin"
        ),
        mde=None if given.get("mde") is None else _positive(given["mde"], f"{where}.mde"),
        mode=_one_of(_or_default(given, "mode", "superiority"), MODES, f"{where}.mode"),
        direction=_one_of(direction, DIRECTIONS, f"{where}.direction"),
        value=value,
        positive=_scalar(given.get("positive", 1), f"{where}.positive"),
        score=_text(_or_default(given, "score", "score"), f"{where}.score"),
        quantile=_open_share(_or_default(given, "quantile", 0.95), f"{where}.quantile"),
    )


def _metrics(given: Any, where: str) -> tuple[Metric, ...]:
    return tuple(
        _metric(item, f"{where}[{i}]", _OTHER_KEYS, KINDS)
        for i, item in enumerate(_list(given, where))
    )


def _columns(given: Any, where: str) -> tuple[str, ...]:
    return tuple(_text(item, f"{where}[{i}]") for i, item in enumerate(_list(given, where)))


def _known(given: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    unknown = [str(key) for key in given if key not in allowed]
    if unknown:
        raise ValueError(
            f"{where}: unknown key {', '.join(unknown)}; allowed are {', '.join(sorted(allowed))}."
        )


def _or_default(given: Mapping[str, Any], key: str, default: Any) -> Any:
    value = given.get(key)
    return default if value is None else value


def _list(given: Any, where: str) -> list[Any]:
    if not isinstance(given, list | tuple):
        raise ValueError(f"{where}: expected a list, found {_shown(given)}.")
    return list(given)


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str) or not given:
        raise ValueError(f"{where}: expected a text, found {_shown(given)}.")
    return given


def _optional_text(given: Any, where: str) -> str | None:
    return None if given is None else _text(given, where)


def _scalar(given: Any, where: str) -> Any:
    if not isinstance(given, str | bool | int | float):
        raise ValueError(f"{where}: expected a number, text or boolean, found {_shown(given)}.")
    return given


def _one_of(given: Any, allowed: Collection[str], where: str) -> str:
    if not isinstance(given, str) or given not in allowed:
        raise ValueError(f"{where}: expected {' | '.join(allowed)}, found {_shown(given)}.")
    return given


def _assignment(given: Any, where: str) -> str:
    return _one_of(given, ASSIGNMENTS, where)


def _number(given: Any, where: str, allowed: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not isfinite(given):
        raise ValueError(f"{where}: expected a number {allowed}, found {_shown(given)}.")
    return float(given)


def _positive(given: Any, where: str) -> float:
    value = _number(given, where, "> 0")
    if value <= 0:
        raise ValueError(f"{where}: expected a number > 0, found {_shown(given)}.")
    return value


def _not_negative(given: Any, where: str) -> float:
    value = _number(given, where, ">= 0")
    if value < 0:
        raise ValueError(f"{where}: expected a number >= 0, found {_shown(given)}.")
    return value


def _open_share(given: Any, where: str) -> float:
    value = _number(given, where, "between 0 and 1")
    if not 0 < value < 1:
        raise ValueError(f"{where}: expected a number between 0 and 1, found {_shown(given)}.")
    return value


def _count(given: Any, where: str) -> int:
    value = _number(given, where, ">= 0 without a fraction")
    if value < 0 or value != int(value):
        raise ValueError(f"{where}: expected a whole number >= 0, found {_shown(given)}.")
    return int(value)


def _one_or_more(given: Any, where: str) -> int:
    value = _count(given, where)
    if value < 1:
        raise ValueError(f"{where}: expected a whole number >= 1, found {_shown(given)}.")
    return value


def _shown(given: Any) -> str:
    return "nothing" if given is None else repr(given)[:80]


_CHECKS: dict[str, Any] = {
    "guardrails": _metrics,
    "information": _metrics,
    "slices": _columns,
    "champion": _text,
    "challenger": _text,
    "challengers": _one_or_more,
    "alpha": _open_share,
    "guardrail_alpha": _open_share,
    "health_alpha": _open_share,
    "fading_alpha": _open_share,
    "min_hours": _not_negative,
    "min_labels": _count,
    "min_units": _count,
    "stratum_hours": _one_or_more,
    "min_requests": _count,
    "assignment": _assignment,
    "label_window_hours": _positive,
    "coverage_margin": _not_negative,
    "max_slice_values": _one_or_more,
}
