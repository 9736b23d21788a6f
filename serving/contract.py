"""Databricks serving shapes, as requests bring them; replies.py knows them as answers. Pure.

Normalised configuration, the one form in which configurations are kept:

    {"served_entities": [{"id", "name", "entity_name", "entity_version", ...}],
     "traffic_config": {"routes": [{"served_model_name", "served_entity_name",
                                    "traffic_percentage"}],
                        "sticky": {"key", "salt"} | null},
     "auto_capture_config": {...} | null}
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from capture import errors, names
from serving import attributes, fields, providers

Parsed = TypeVar("Parsed")

ADMIN_USER = "admin"
SERVICE_USER = "service"

WORKLOAD_SIZES = {"Small": (4, 4), "Medium": (8, 16), "Large": (16, 64)}
WORKLOAD_TYPES = (
    "CPU",
    "CPU_MEDIUM",
    "CPU_LARGE",
    "GPU_SMALL",
    "GPU_MEDIUM",
    "GPU_LARGE",
    "GPU_XLARGE",
    "GPU_XLARGE_8",
    "MULTIGPU_MEDIUM",
)
# How the message of an entity begins that cannot start before a device is free.
WAITING_FOR_DEVICE = "Waiting for a GPU"
MOST_ENTITIES, MOST_VARIABLES, MOST_CONCURRENCY = 10, 50, 1024

_NOT_EXTERNAL = (
    "workload_size",
    "workload_type",
    "scale_to_zero_enabled",
    "min_provisioned_concurrency",
    "max_provisioned_concurrency",
    "min_provisioned_throughput",
    "max_provisioned_throughput",
    "provisioned_model_units",
    "environment_vars",
    "instance_profile_arn",
)

_VERSION = re.compile(r"[0-9]{1,18}|@[A-Za-z0-9_.-]{1,256}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}", re.ASCII)
_MODEL = re.compile(r"[^\x00-\x1f/:%\\]{1,256}")
_MODEL_URI = re.compile(r"models:/([^/@]+)(?:/([0-9]+)|(@.+))?")
_STICKY = re.compile(
    r"client_request_id|caller|header:[!#$%&'*+.^`|~\w-]{1,128}|usage_context\.[^\x00-\x1f]{1,256}"
    r"|feature:[^\x00-\x1f]{1,256}",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class EntityRequest:
    """A served entity as asked for. version: digits or `@alias`; settings: the other fields."""

    where: str
    kind: Literal["custom", "external", "foundation"]
    name: str | None
    model: str
    version: str
    settings: dict[str, Any]


class RouteRequest(NamedTuple):
    """One route as asked for; where: path of the route."""

    where: str
    name: str
    percentage: int


@dataclass(frozen=True, slots=True)
class ConfigRequest:
    """A core configuration as asked for; None: the present value stays.

    sticky: None: stays; {}: random draw; {"key", "salt"?}."""

    entities: tuple[EntityRequest, ...] | None = None
    routes: tuple[RouteRequest, ...] | None = None
    sticky: dict[str, Any] | None = None
    auto_capture: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A new endpoint as asked for."""

    name: str
    config: ConfigRequest | None
    description: str | None = None
    tags: list[dict[str, Any]] = field(default_factory=list)
    ai_gateway: dict[str, Any] | None = None
    rate_limits: list[dict[str, Any]] | None = None
    email_notifications: dict[str, Any] | None = None
    telemetry_config: dict[str, Any] | None = None
    route_optimized: bool = False
    budget_policy_id: str | None = None


# --- requests -------------------------------------------------------------------------------------


def create_request(body: Any) -> CreateRequest:
    """Body of POST /serving-endpoints. Raises InvalidParameter; NotImplementedHere for what is
    known but not offered, after every field was validated."""
    root = fields.body(body)
    name = endpoint_name(root.need("name"))
    refused: list[errors.NotImplementedHere] = []

    def part(key: str, parse: Callable[[fields.Field], Parsed]) -> Parsed | None:
        found = root.get(key)
        if found is None:
            return None
        try:
            return parse(found)
        except errors.NotImplementedHere as error:
            refused.append(error)
            return None

    request = CreateRequest(
        name,
        part("config", lambda found: config_request(found, name)),
        description=fields.text(root, "description", 4096, least=0),
        tags=part("tags", lambda found: attributes.tags(found, [])) or [],
        ai_gateway=part("ai_gateway", attributes.ai_gateway),
        rate_limits=part("rate_limits", attributes.rate_limits),
        email_notifications=attributes.notifications(root),
        telemetry_config=part("telemetry_config", attributes.telemetry_config),
        route_optimized=part("route_optimized", fields.Field.flag) or False,
        budget_policy_id=fields.text(root, "budget_policy_id", 256),
    )
    if refused:
        raise refused[0]
    return request


def endpoint_name(found: fields.Field) -> str:
    """The name of a new endpoint."""
    name = found.matching(names.ENTITY_PATTERN, "1 to 63 letters, digits, '_' or '-'")
    if name in names.RESERVED_ENDPOINTS:
        raise found.refuse(f"a name other than {', '.join(sorted(names.RESERVED_ENDPOINTS))}")
    return name


def config_request(root: fields.Field, endpoint: str) -> ConfigRequest:
    """A core configuration: `config` of a creation, or the body of PUT .../config.

    Raises InvalidParameter naming the field; NotImplementedHere for external and foundation models,
    after everything was validated."""
    named = root.get("name")
    if named is not None and named.value != endpoint:
        raise named.refuse(f"'{endpoint}' or nothing")
    entities = _entities(root)
    routes, sticky = _traffic(root.get("traffic_config"))
    found = root.get("auto_capture_config")
    table = attributes.inference_table(found) if found is not None else None
    kinds = sorted({entity.kind for entity in entities or ()})
    if len(kinds) > 1:
        raise errors.InvalidParameter(
            f"{root.path('served_entities')}: expected entities of one kind, "
            f"found {' and '.join(kinds)}."
        )
    if kinds and kinds != ["custom"]:
        named_entities = [
            (e.where, e.name or default_name(e.model, e.version)) for e in entities or ()
        ]
        check_routes(check_names(named_entities), routes)
        raise errors.NotImplementedHere(f"{kinds[0].capitalize()} models are not offered yet.")
    return ConfigRequest(entities, routes, sticky, table)


def default_name(model: str, version: str) -> str:
    """Name of an entity that was given none: `main.s.m` version 8 is `m-8`; an external name
    has `.` and `:` turned into `-`."""
    last = f"{model.rsplit('.', 1)[-1]}-{version}" if version else model
    return re.sub(r"[^A-Za-z0-9_-]", "-", last)[:63]


def check_names(entities: Sequence[tuple[str, str]]) -> list[str]:
    """Names of entities given as (path, name), if each is unique. Raises InvalidParameter."""
    seen: list[str] = []
    for where, name in entities:
        if name in seen:
            raise errors.InvalidParameter(f"{where}.name: '{name}' is taken by another entity.")
        seen.append(name)
    return seen


def check_routes(known: Sequence[str], routes: Sequence[RouteRequest] | None) -> None:
    """Raises InvalidParameter for a route to an entity that there is not."""
    for route in routes or ():
        if route.name not in known:
            raise errors.InvalidParameter(
                f"{route.where}.served_model_name: '{route.name}' is no served entity; "
                f"there are {', '.join(known)}."
            )


def provisioned_throughput(body: Any, endpoint: str | None = None) -> errors.NotImplementedHere:
    """Bodies of the `pt` routes: the refusal to raise once every field is right. `endpoint`: whose
    configuration changes; None: a new one. Raises InvalidParameter."""
    root = fields.body(body)
    config = root.need("config")
    if endpoint is None:
        endpoint_name(root.need("name"))
        _checked(root, "tags", lambda found: attributes.tags(found, []))
        _checked(root, "ai_gateway", attributes.ai_gateway)
        attributes.notifications(root)
        fields.text(root, "budget_policy_id", 256)
    entities = config.need("served_entities").items(MOST_ENTITIES)
    if not entities:
        raise config.need("served_entities").refuse("at least one entity")
    named = []
    for entity in entities:
        model = _model(entity.need("entity_name"))
        entity.need("provisioned_model_units").integer(1)
        version = _version(entity, "entity_version") or ""
        _checked(entity, "burst_scaling_enabled", fields.Field.flag)
        named.append((entity.where, _entity_name(entity) or default_name(model, version)))
    check_routes(check_names(named), _traffic(config.get("traffic_config"))[0])
    return errors.NotImplementedHere("Foundation models are not offered yet.")


LLM_TASKS = {
    "chat/completions": "messages",
    "completions": "prompt",
    "embeddings": "input",
    "responses": "input",
}


def language_model(body: Any, task: str) -> errors.NotImplementedHere:
    """A query in OpenAI's form, by a key of LLM_TASKS: the refusal to raise once every field is
    right. Raises InvalidParameter."""
    root = fields.body(body)
    root.need("model").text(256)
    given = root.need(LLM_TASKS[task])
    if task == "chat/completions":
        for message in given.items():
            message.need("role").text(64)
    elif not isinstance(given.value, str | list):
        raise given.refuse("a string or a list")
    _checked(root, "stream", fields.Field.flag)
    _checked(root, "temperature", lambda found: found.number(0, 2))
    _checked(root, "top_p", lambda found: found.number(0, 1))
    _checked(root, "n", lambda found: found.integer(1, 5))
    for key in ("max_tokens", "max_completion_tokens"):
        _checked(root, key, lambda found: found.integer(1))
    return errors.NotImplementedHere("Language models are not offered yet.")


CONNECTION_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def external_function(body: Any) -> errors.NotImplementedHere:
    """A call of a Unity connection: the refusal to raise once every field is right. Raises
    InvalidParameter."""
    root = fields.body(body)
    root.need("connection_name").text(256)
    root.need("method").choice(CONNECTION_METHODS)
    root.need("path").text(8192)
    for key in ("headers", "json", "params"):
        found = root.get(key)
        if found is not None and not isinstance(found.value, str | dict | list):
            raise found.refuse("an object, or its JSON text")
    fields.text(root, "sub_domain", 256)
    return errors.NotImplementedHere("External connections are not offered yet.")


def _checked(root: fields.Field, key: str, check: Callable[[fields.Field], Any]) -> None:
    """Check a part that may be absent. What of it is not offered either does not count: the whole
    is not."""
    found = root.get(key)
    if found is not None:
        try:
            check(found)
        except errors.NotImplementedHere:
            return


def _entities(root: fields.Field) -> tuple[EntityRequest, ...] | None:
    """The entities asked for; `served_models` is the old spelling."""
    new, old = root.get("served_entities"), root.get("served_models")
    given, prefix = (new, "entity") if new is not None else (old, "model")
    if given is None:
        return None
    items = given.items(MOST_ENTITIES)
    if not items:
        raise given.refuse("at least one entity")
    tasks: set[str] = set()
    requests = []
    for item in items:
        external = item.get("external_model")
        if external is not None:
            tasks.add(providers.check(external))
            requests.append(_external(item, external, prefix))
        else:
            requests.append(_registered(item, prefix))
    if len(tasks) > 1:
        raise errors.InvalidParameter(
            f"{given.where}: expected external models of one task, "
            f"found {', '.join(sorted(tasks))}."
        )
    return tuple(requests)


def _entity_name(item: fields.Field) -> str | None:
    found = item.get("name")
    pattern = "1 to 63 letters, digits, '_' or '-'"
    return found.matching(names.ENTITY_PATTERN, pattern) if found is not None else None


def _external(item: fields.Field, external: fields.Field, prefix: str) -> EntityRequest:
    for key in (f"{prefix}_name", f"{prefix}_version", *_NOT_EXTERNAL):
        if (both := item.get(key)) is not None:
            raise both.refuse("nothing beside external_model")
    return EntityRequest(item.where, "external", _entity_name(item), external.value["name"], "", {})


def _registered(item: fields.Field, prefix: str) -> EntityRequest:
    name, found = _entity_name(item), item.need(f"{prefix}_name")
    model, version = _model(found), _version(item, f"{prefix}_version")
    uri = _MODEL_URI.fullmatch(found.value)
    version = version or (uri and (uri[2] or uri[3])) or None
    settings = _settings(item)
    throughput = [item.get(f"{end}_provisioned_throughput") for end in ("min", "max")]
    foundation = [each for each in (*throughput, item.get("provisioned_model_units")) if each]
    for each in foundation:
        each.integer(0)
    if foundation or model.startswith("system.ai."):
        return EntityRequest(item.where, "foundation", name, model, version or "", settings)
    if version is None:
        version = item.need(f"{prefix}_version").text(1)
    return EntityRequest(item.where, "custom", name, model, version, settings)


def _model(found: fields.Field) -> str:
    uri = _MODEL_URI.fullmatch(found.value) if isinstance(found.value, str) else None
    name = uri[1] if uri else found.value
    if not isinstance(name, str) or not _MODEL.fullmatch(name):
        raise found.refuse("the name of a registered model, or models:/name")
    return name


def _version(item: fields.Field, key: str) -> str | None:
    found = item.get(key)
    if found is None:
        return None
    if isinstance(found.value, int) and not isinstance(found.value, bool) and found.value >= 0:
        return str(found.value)
    return found.matching(_VERSION, "a version number or @alias")


def _settings(item: fields.Field) -> dict[str, Any]:
    """The fields of a served entity beside name, model and version, with their defaults."""
    scale = item.get("scale_to_zero_enabled")
    kind_found = item.get("workload_type")
    settings: dict[str, Any] = {
        "workload_type": kind_found.choice(WORKLOAD_TYPES) if kind_found else "CPU",
        "scale_to_zero_enabled": scale.flag() if scale else False,
    }
    size = item.get("workload_size")
    bounds = [item.get(f"{end}_provisioned_concurrency") for end in ("min", "max")]
    low, high = (each.integer(0, MOST_CONCURRENCY) if each else None for each in bounds)
    if size is not None and (low is not None or high is not None):
        raise size.refuse("no workload_size beside min_ and max_provisioned_concurrency")
    if low is None and high is None:
        settings["workload_size"] = size.choice(WORKLOAD_SIZES) if size else "Small"
    else:
        settings["min_provisioned_concurrency"] = low or 0
        settings["max_provisioned_concurrency"] = max(low or 0, 4) if high is None else high
        if (low or 0) > settings["max_provisioned_concurrency"]:
            raise errors.InvalidParameter(
                f"{item.path('min_provisioned_concurrency')}: expected at most "
                f"max_provisioned_concurrency, {high}, found {low}."
            )
        if settings["max_provisioned_concurrency"] == 0:
            raise errors.InvalidParameter(
                f"{item.path('max_provisioned_concurrency')}: expected an integer "
                f"1..{MOST_CONCURRENCY}, found 0; stop the endpoint instead."
            )
    if (variables := item.get("environment_vars")) is not None:
        settings["environment_vars"] = _variables(variables)
    if (profile := fields.text(item, "instance_profile_arn", 2048)) is not None:
        settings["instance_profile_arn"] = profile
    if (burst := item.get("burst_scaling_enabled")) is not None:
        settings["burst_scaling_enabled"] = burst.flag()
    return settings


# Variables of an entity that tell the server how to run it, not the model.
OUR_VARIABLES = {
    "INFERLAKE_ENVIRONMENT": ("auto", "local", "isolated"),
    "INFERLAKE_BATCH": ("true", "false", "1", "0"),
}


def _variables(found: fields.Field) -> dict[str, str]:
    variables: dict[str, str] = {}
    for key, value in found.pairs(MOST_VARIABLES):
        if not _VARIABLE.fullmatch(key):
            raise errors.InvalidParameter(
                f"{found.where}: '{key[:100]}' is no name of an environment variable."
            )
        if not isinstance(value.value, str) or "\0" in value.value:
            raise errors.InvalidParameter(f"{value.where}: expected a string.")
        allowed = OUR_VARIABLES.get(key)
        if allowed is not None and value.value.lower() not in allowed:
            raise errors.InvalidParameter(
                f"{value.where}: expected {', '.join(allowed[:-1])} or {allowed[-1]}, "
                f"found '{value.value[:100]}'."
            )
        variables[key] = value.value
    return variables


def _traffic(
    found: fields.Field | None,
) -> tuple[tuple[RouteRequest, ...] | None, dict[str, Any] | None]:
    if found is None:
        return None, None
    listed = found.get("routes")
    routes = [_route(each) for each in listed.items()] if listed is not None else []
    seen: set[str] = set()
    for route in routes:
        if route.name in seen:
            raise errors.InvalidParameter(
                f"{route.where}.served_model_name: '{route.name}' has a route already."
            )
        seen.add(route.name)
    total = sum(route.percentage for route in routes)
    if routes and total != 100:
        raise errors.InvalidParameter(
            f"{found.path('routes')}: expected percentages that sum to 100, found {total}."
        )
    return tuple(routes) or None, _sticky(found)


def _route(each: fields.Field) -> RouteRequest:
    old, new = each.get("served_model_name"), each.get("served_entity_name")
    if old is not None and new is not None and old.value != new.value:
        raise new.refuse("the same as served_model_name")
    named = each.need("served_model_name") if new is None else new
    name = named.text(63)
    return RouteRequest(each.where, name, each.need("traffic_percentage").integer(0, 100))


def _sticky(traffic: fields.Field) -> dict[str, Any] | None:
    if "sticky" not in traffic.value:
        return None
    found = traffic.get("sticky")
    if found is None:
        return {}
    keys = "client_request_id, caller, header:NAME, usage_context.NAME or feature:COLUMN"
    sticky: dict[str, Any] = {"key": found.need("key").matching(_STICKY, keys)}
    if (salt := fields.text(found, "salt", 256)) is not None:
        sticky["salt"] = salt
    return sticky


# --- what a normalised configuration says ---------------------------------------------------------


def percentages(config: Mapping[str, Any]) -> dict[str, int]:
    """Traffic in whole percent by entity name."""
    traffic = config.get("traffic_config") or {}
    routes = traffic.get("routes") or []
    return {route["served_entity_name"]: route["traffic_percentage"] for route in routes}


def routes_of(shares: Mapping[str, int]) -> list[dict[str, Any]]:
    """Routes from traffic in whole percent, under both spellings of the name."""
    return [
        {"served_model_name": name, "served_entity_name": name, "traffic_percentage": percentage}
        for name, percentage in shares.items()
    ]


def kind(entity: Mapping[str, Any]) -> Literal["custom", "external", "foundation"]:
    """What an entity is: a registered model, a provider's model, or a foundation model."""
    if entity.get("external_model"):
        return "external"
    throughput = ("min_provisioned_throughput", "max_provisioned_throughput")
    if entity.get("provisioned_model_units") or any(entity.get(key) for key in throughput):
        return "foundation"
    return "custom"


def model_name(entity: Mapping[str, Any]) -> str:
    """The registered model's or the external model's name."""
    external = entity.get("external_model")
    return external["name"] if external else entity["entity_name"]


def model_version(entity: Mapping[str, Any]) -> str:
    """The registered model's version; empty for external models."""
    return entity.get("entity_version") or ""


def concurrency(entity: Mapping[str, Any]) -> tuple[int, int]:
    """Provisioned concurrency (least, most): requests in predict at a time."""
    low, high = WORKLOAD_SIZES[entity.get("workload_size") or "Small"]
    if entity.get("max_provisioned_concurrency") is not None:
        high = entity["max_provisioned_concurrency"]
        low = entity.get("min_provisioned_concurrency") or 0
    return (0 if entity.get("scale_to_zero_enabled") else low), high


def secrets_of(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(path, scope, key) of every secret that a configuration's environment variables name."""
    found = []
    for index, entity in enumerate(config["served_entities"]):
        for variable, value in (entity.get("environment_vars") or {}).items():
            where = f"config.served_entities[{index}].environment_vars.{variable}"
            found += [(where, *reference) for reference in providers.SECRET.findall(value)]
    return found


def capture(
    endpoint: str,
    config: Mapping[str, Any],
    gateway: Mapping[str, Any] | None,
    telemetry: Mapping[str, Any] | None,
) -> tuple[str, float, Literal["process", "power"]] | None:
    """(full payload table name, sampling fraction, acknowledgement); None: nothing is recorded.

    The newest generation switched on decides: telemetry_config, ai_gateway, auto_capture."""
    if telemetry and (full_name := telemetry_table(telemetry)) is not None:
        newest = telemetry["inference_table_config"]
        return full_name, _fraction(newest), newest.get("acknowledgement") or "process"
    for older in ((gateway or {}).get("inference_table_config"), config.get("auto_capture_config")):
        if older and older.get("enabled", True):
            parts = {**attributes.table_defaults(endpoint), **older}
            prefix = f"{parts['catalog_name']}.{parts['schema_name']}"
            full_name = f"{prefix}.{parts['table_name_prefix']}_payload"
            return full_name, _fraction(older), older.get("acknowledgement") or "process"
    return None


def telemetry_table(telemetry: Mapping[str, Any]) -> str | None:
    """Full name of the payload table that a `telemetry_config` switches on."""
    table = telemetry.get("inference_table_config")
    features = telemetry.get("enabled_telemetry_features")
    if not table or (features is not None and attributes.INFERENCE_TABLE not in features):
        return None
    parts = table["name"].split(".")
    schema = ".".join([*("main", "default")[: 3 - len(parts)], *parts[:-1]])
    return f"{schema}.{parts[-1].removesuffix('_payload')}_payload"


def usage_tracked(gateway: Mapping[str, Any] | None) -> bool:
    """Whether each request of the endpoint is counted in `system.serving.endpoint_usage`."""
    return bool(((gateway or {}).get("usage_tracking_config") or {}).get("enabled"))


def _fraction(table: Mapping[str, Any]) -> float:
    found = table.get("sampling_fraction")
    return 1.0 if found is None else float(found)
