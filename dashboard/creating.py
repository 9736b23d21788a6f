"""A new endpoint as the form has it -> the request that makes it, and its monitor. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SIZES = {
    "Small": "4 requests at a time",
    "Medium": "8 to 16 requests at a time",
    "Large": "16 to 64 requests at a time",
}
TYPES = {
    "CPU": "no GPU, 4 GiB of memory",
    "CPU_MEDIUM": "no GPU, 8 GiB of memory",
    "CPU_LARGE": "no GPU, 16 GiB of memory",
    "GPU_SMALL": "1 GPU",
    "GPU_MEDIUM": "1 GPU",
    "GPU_LARGE": "1 GPU",
    "GPU_XLARGE": "1 GPU",
    "GPU_XLARGE_8": "8 GPUs",
    "MULTIGPU_MEDIUM": "4 GPUs",
}
WATCHES = {
    "no": None,
    "numbers": "PROBLEM_TYPE_REGRESSION",
    "classes": "PROBLEM_TYPE_CLASSIFICATION",
}
NAME = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)
PART = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Extra:
    """What the form says under "More". concurrency: least and most requests at a time, in place of
    the size; variables and tags: the lines as they were typed; calls: a minute, of all together."""

    workload_type: str = "CPU"
    concurrency: tuple[int, int] | None = None
    variables: str = ""
    tags: str = ""
    calls: int | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What the form says. versions: one or two of `model`, the first with 100 - `share` percent of
    the traffic; recorded: catalog and schema of the inference table, None: no record; watched: a
    problem type of a monitor, None: none."""

    name: str
    model: str
    versions: tuple[str, ...]
    share: int = 0
    size: str = "Small"
    to_zero: bool = False
    recorded: tuple[str, str] | None = None
    watched: str | None = None
    extra: Extra = Extra()


def body(wish: Wish) -> dict[str, Any]:
    """The body of POST /api/2.0/serving-endpoints."""
    entities = [
        {
            "name": entity_name(version),
            "entity_name": wish.model,
            "entity_version": version,
            **_capacity(wish),
            "scale_to_zero_enabled": wish.to_zero,
            **_more(wish.extra),
        }
        for version in wish.versions
    ]
    config: dict[str, Any] = {"served_entities": entities}
    if len(entities) == 2:
        shares = (100 - wish.share, wish.share)
        config["traffic_config"] = {
            "routes": [
                {"served_model_name": entity["name"], "traffic_percentage": share}
                for entity, share in zip(entities, shares, strict=True)
            ]
        }
    if wish.recorded is not None:
        catalog, schema = wish.recorded
        config["auto_capture_config"] = {
            "catalog_name": catalog,
            "schema_name": schema,
            "table_name_prefix": wish.name,
            "enabled": True,
        }
    return {"name": wish.name, "config": config, **_beside(wish.extra)}


def _capacity(wish: Wish) -> dict[str, Any]:
    if wish.extra.concurrency is None:
        return {"workload_size": wish.size}
    least, most = wish.extra.concurrency
    return {"min_provisioned_concurrency": least, "max_provisioned_concurrency": most}


def _more(extra: Extra) -> dict[str, Any]:
    """Fields of each served entity; what is as the server would have it is left out."""
    found: dict[str, Any] = {}
    if extra.workload_type != "CPU":
        found["workload_type"] = extra.workload_type
    if variables := dict(pairs(extra.variables)):
        found["environment_vars"] = variables
    return found


def _beside(extra: Extra) -> dict[str, Any]:
    """Fields of the endpoint beside its configuration."""
    found: dict[str, Any] = {}
    if tags := pairs(extra.tags):
        found["tags"] = [{"key": key, "value": value} for key, value in tags]
    if extra.calls is not None:
        limit = {"key": "endpoint", "calls": extra.calls, "renewal_period": "minute"}
        found["ai_gateway"] = {"rate_limits": [limit]}
    return found


def pairs(text: str) -> list[tuple[str, str]]:
    """Lines `name=value`; empty lines are left out, and those without a name: `wrong_line`."""
    lines = [line.strip().partition("=") for line in text.splitlines() if line.strip()]
    return [(name.strip(), value.strip()) for name, sign, value in lines if name.strip() and sign]


def wrong_line(text: str) -> int | None:
    """Number of the first line, from 1, that is not `name=value` or has a name for the second
    time; None: all are. The line itself may hold a secret."""
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        name, sign, _ = line.strip().partition("=")
        name = name.strip()
        if line.strip() and (not name or not sign or name in seen):
            return number
        seen.add(name)
    return None


def entity_name(version: str) -> str:
    """How the form calls a served version: `v2`."""
    return f"v{version}"


def monitor(wish: Wish) -> tuple[str, dict[str, Any]] | None:
    """The table that is watched and the monitor's body; None where nothing is."""
    if wish.watched is None or wish.recorded is None:
        return None
    schema = ".".join(wish.recorded)
    log = {
        "problem_type": wish.watched,
        "timestamp_col": "request_time",
        "granularities": ["1 day"],
        "prediction_col": "prediction",
        "label_col": "label",
        "model_id_col": "served_entity_name",
    }
    return f"{schema}.{wish.name}_unpacked", {
        "assets_dir": f"/monitors/{wish.name}",
        "output_schema_name": schema,
        "inference_log": log,
    }


def missing(wish: Wish) -> str | None:
    """What the form still needs, in a sentence; None: it can be sent."""
    if not wish.model or not wish.versions:
        return "Choose a model and a version."
    if not wish.name:
        return "Give the endpoint a name."
    if not NAME.fullmatch(wish.name):
        return "The name has 1 to 63 letters, digits, '_' or '-'."
    if wish.recorded is not None and not all(PART.fullmatch(part) for part in wish.recorded):
        return "Catalog and schema have 1 to 128 letters, digits, '_' or '-'."
    return _missing_more(wish.extra)


def _missing_more(extra: Extra) -> str | None:
    for what, text in (("Environment variables", extra.variables), ("Tags", extra.tags)):
        number = wrong_line(text)
        if number is not None:
            return f"{what}, line {number}: write name=value, each name once."
    if extra.concurrency is not None and extra.concurrency[0] > extra.concurrency[1]:
        return "The fewest requests at a time are more than the most."
    return None


def suggested_name(model: str, taken: Sequence[str]) -> str:
    """A free name after the last part of the model's: `main.shop.churn` -> `churn`, `churn-2`."""
    last = re.sub(r"[^A-Za-z0-9_-]", "-", model.rsplit(".", 1)[-1])[:58] or "endpoint"
    free = (name for name in (last, *(f"{last}-{n}" for n in range(2, 1002))) if name not in taken)
    return next(free, last)


def home(model: str) -> tuple[str, str]:
    """Catalog and schema of the record: the model's own where its name has three parts."""
    parts = model.split(".")
    fits = len(parts) == 3 and all(PART.fullmatch(p) for p in parts[:2]) and parts[0] != "system"
    return (parts[0], parts[1]) if fits else ("main", "default")


def newest(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The model that got a version last: most likely the one that somebody wants to serve now."""

    def registered(name: str) -> str:
        return max((str(v.get("created_time") or "") for v in models[name]), default="")

    return max(models, key=registered)


def version_label(version: Mapping[str, Any]) -> str:
    """`3 (champion)`."""
    aliases = ", ".join(str(alias) for alias in version.get("aliases") or ())
    return f"{version.get('version')} ({aliases})" if aliases else str(version.get("version"))


def asks_for(about: Mapping[str, Any]) -> str:
    """What a model version is and which columns a client sends, in a sentence."""
    known = [str(f) for f in about.get("flavours") or () if f != "python_function"]
    kind = f"{known[0]} model" if known else "Python model"
    columns = [f"{c.get('name')} ({c.get('type')})" for c in about.get("columns") or ()]
    if not columns:
        return f"{kind} without named columns: any input of its own form."
    more = f" and {len(columns) - 6} more" if len(columns) > 6 else ""
    return f"{kind}; a request sends {', '.join(columns[:6])}{more}."
