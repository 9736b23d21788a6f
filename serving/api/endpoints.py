"""`/api/2.0/serving-endpoints`: endpoints as Databricks' clients create, change and read them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from capture import audit, database, errors, outbox
from monitors import state as monitors_state
from serving import (
    attributes,
    configuration,
    contract,
    fields,
    ledger,
    logs,
    promotion,
    providers,
    recording,
    registry,
    replica_state,
    replies,
    secret_state,
    state,
    vault,
)
from serving.api import envelope, gauges, reading
from serving.api.context import Context, author, caller, now_ms
from serving.controller import environments

BASE = "/api/2.0/serving-endpoints"
MOST_ENDPOINTS = 1000
# What the audit shows of a served entity, and of an endpoint beside its configuration.
AUDITED_SETTINGS = (
    "workload_size",
    "workload_type",
    "scale_to_zero_enabled",
    "min_provisioned_concurrency",
    "max_provisioned_concurrency",
    "burst_scaling_enabled",
    "instance_profile_arn",
)
AUDITED_ATTRIBUTES = ("description", "tags", "ai_gateway", "rate_limits", "telemetry_config")


@dataclass(frozen=True, slots=True)
class Asked:
    """A configuration that is asked for, with its models. resolved: by (name, version or @alias);
    used: every model of the configuration that will come of it, for the recorded columns."""

    config: contract.ConfigRequest
    resolved: dict[tuple[str, str], configuration.Resolved]
    used: list[registry.Model]


class Endpoints:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._gauges = gauges.Gauges(context.settings.worker_memory_bytes)

    def router(self) -> APIRouter:
        router = APIRouter(tags=["serving endpoints"])
        for method, path, handler in (
            ("GET", "", self.listed),
            ("POST", "", self.create),
            ("POST", "/pt", self.create_provisioned),
            ("PUT", "/pt/{name}/config", self.update_provisioned),
            ("GET", "/{name}", self.get),
            ("DELETE", "/{name}", self.delete),
            ("PUT", "/{name}/config", self.update_config),
            ("PATCH", "/{name}/tags", self.patch_tags),
            ("PUT", "/{name}/rate-limits", self.put_rate_limits),
            ("PUT", "/{name}/ai-gateway", self.put_ai_gateway),
            ("PATCH", "/{name}/notifications", self.patch_notifications),
            ("PATCH", "/{name}/telemetry-config", self.patch_telemetry),
            ("GET", "/{name}/openapi", self.openapi),
            ("GET", "/{name}/metrics", self.metrics),
            ("GET", "/{name}/served-models/{entity}/build-logs", self.build_logs),
            ("GET", "/{name}/served-models/{entity}/logs", self.service_logs),
        ):
            router.add_api_route(BASE + path, handler, methods=[method], response_model=None)
        return router

    # --- reading ----------------------------------------------------------------------------------

    def listed(self, request: Request) -> Response:
        """Every endpoint that the caller may see, by name."""
        who = caller(request)
        with database.reading(self.context.engine) as db:
            rows = [row for row in state.all_endpoints(db) if self.context.right(who, row)]
            live = state.live_configurations(db)
            states = replica_state.states_of(db)
            self.context.catch_up(db)
        return envelope.Json({"endpoints": [replies.summary(row, live, states) for row in rows]})

    def get(self, request: Request, name: str) -> Response:
        """One endpoint with its configurations and the states of its entities."""
        row, _ = self._seen(request, name, "CAN_VIEW")
        return envelope.Json(self.context.endpoint_object(caller(request), row.id))

    def openapi(self, request: Request, name: str) -> Response:
        """OpenAPI 3 of the endpoint's query routes, from the signatures of its models."""
        row, config = self._seen(request, name, "CAN_VIEW")
        entities = config["served_entities"] if config else []
        models = self._registered(config)
        known = [registry.sent_columns(model) for model in models]
        columns = known[0] if known and all(each == known[0] for each in known) else _shared(known)
        listed = [entity["name"] for entity in entities]
        described = replies.openapi(row.name, listed, columns, self.context.settings.url)
        return envelope.Json(described)

    def metrics(self, request: Request, name: str) -> Response:
        """Prometheus text of the endpoint."""
        row, config = self._seen(request, name, "CAN_VIEW")
        with database.reading(self.context.engine) as db:
            running = [r for r in replica_state.all_replicas(db) if r.endpoint_id == row.id]
        entities = config["served_entities"] if config else []
        used = self._gauges.text(name, entities, running, time.monotonic())
        return PlainTextResponse(self.context.data_plane.metrics(name) + used)

    def build_logs(self, request: Request, name: str, entity: str) -> Response:
        """How the environment of an entity's model was made."""
        found = self._entity(request, name, entity)
        settings = self.context.settings
        model = registry.find(settings, found["entity_name"], found["entity_version"])
        text = environments.build_log(settings.environments_dir, model.folder)
        return envelope.Json({"logs": text})

    def service_logs(self, request: Request, name: str, entity: str) -> Response:
        """What an entity's replicas wrote, the newest last."""
        self._entity(request, name, entity)
        with database.reading(self.context.engine) as db:
            vault.hide_all(db, self.context.settings)
        return envelope.Json({"logs": logs.of_entity(self.context.settings, name, entity)})

    # --- creating and deleting --------------------------------------------------------------------

    def create(self, request: Request, body: Any = Depends(reading.json)) -> Response:
        """A new endpoint; its first configuration goes live when its entities answer. With
        `?dry_run=true` everything is checked, and nothing made."""
        asked = contract.create_request(body)
        config = self._resolve(asked.config, None) if asked.config is not None else None
        if _dry_run(request):
            with self.context.trial() as db:
                row = self._created(db, request, asked, config)
                shown = self.context.shown(db, caller(request), row.id)
            return envelope.Json(shown)
        with self.context.change() as db:
            row = self._created(db, request, asked, config)
        self.context.settle(row)
        return envelope.Json(self.context.endpoint_object(caller(request), row.id))

    def _created(
        self,
        db: sa.Connection,
        request: Request,
        asked: contract.CreateRequest,
        config: Asked | None,
    ) -> state.Endpoint:
        who = author(caller(request))
        row = _new(asked, who)
        _refuse_many(db)
        recording.refuse_name(db, row.name, caller(request))
        state.insert_endpoint(db, row)
        if config is not None:
            row = self._accept(db, request, row, config)
        else:
            recording.follow(db, row, {}, [], caller(request), who.now_ms)
        _audit(db, request, "endpoint.create", row.name, after=_written(db, row))
        return row

    def delete(self, request: Request, name: str) -> Response:
        """The endpoint ends; its tables stay."""
        self._seen(request, name, "CAN_MANAGE")
        with self.context.change() as db:
            row = state.endpoint(db, name)
            _audit(db, request, "endpoint.delete", name, before=_written(db, row))
            recording.stop(db, row)
            newest = state.configuration(db, row.id, state.newest_version(db, row.id))
            if newest is not None:
                told = (row.id, row.name), newest.config_version, newest.config
                ledger.configured(db, *told, now_ms(), deleted=True)
            monitors_state.forget_endpoint(db, name, now_ms())
            state.delete_endpoint(db, row)
            event = {"endpoint": name, "actor": caller(request).user}
            outbox.emit(db, "endpoint.deleted", event, now_ms())
        return envelope.Json({})

    def create_provisioned(self, body: Any = Depends(reading.json)) -> Response:
        """Provisioned throughput is known, checked, and not offered."""
        raise contract.provisioned_throughput(body)

    def update_provisioned(
        self, request: Request, name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """Provisioned throughput is known, checked, and not offered."""
        self._seen(request, name, "CAN_MANAGE")
        raise contract.provisioned_throughput(body, name)

    # --- changing ---------------------------------------------------------------------------------

    def update_config(
        self, request: Request, name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """The next configuration; the present one serves until the entities of the next answer.
        With `?dry_run=true` everything is checked, and nothing changed."""
        row, shown = self._seen(request, name, "CAN_MANAGE")
        asked = self._resolve(contract.config_request(_config(body), name), shown)
        if _dry_run(request):
            with self.context.trial() as db:
                row = self._updated(db, request, name, asked)
                would = self.context.shown(db, caller(request), row.id)
            return envelope.Json(would)
        with self.context.change() as db:
            row = self._updated(db, request, name, asked)
        self.context.settle(row)
        return envelope.Json(self.context.endpoint_object(caller(request), row.id))

    def _updated(
        self, db: sa.Connection, request: Request, name: str, asked: Asked
    ) -> state.Endpoint:
        row = state.endpoint(db, name)
        promotion.refuse_while_updating(db, row)
        before, variables = _written(db, row), _variables(db, row)
        row = self._accept(db, request, row, asked)
        after, now = _written(db, row), _variables(db, row)
        if changed := sorted(f"{e}.{v}" for e, v in now if now[e, v] != variables.get((e, v))):
            after["changed_variables"] = changed  # whose values are not shown
        _audit(db, request, "endpoint.update_config", name, before=before, after=after)
        return row

    def patch_tags(
        self, request: Request, name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """Tags added, overwritten and deleted."""
        with self._changing(request, name, "endpoint.tags") as change:
            tags = attributes.patched_tags(body, change.row.tags)
            change.write(tags=tags)
        return envelope.Json({"tags": tags})

    def put_rate_limits(
        self, request: Request, name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """The deprecated form of the gateway's rate limits."""
        asked = fields.body(body).get("rate_limits")
        limits = attributes.rate_limits(asked) if asked is not None else []
        with self._changing(request, name, "endpoint.rate_limits") as change:
            change.write(rate_limits=limits)
        return envelope.Json({"rate_limits": limits})

    def put_ai_gateway(
        self, request: Request, name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """The gateway's features; what is not named stays."""
        row, config = self._seen(request, name, "CAN_MANAGE")
        asked, models = attributes.ai_gateway(fields.body(body)), self._registered(config)
        with self._changing(request, name, "endpoint.ai_gateway") as change:
            before = change.row.ai_gateway or {}
            table = asked.get("inference_table_config")
            if table is not None:
                kept = before.get("inference_table_config")
                configuration.refuse_renaming(table, kept, name, "inference_table_config")
                asked["inference_table_config"] = attributes.named_as_before(table, kept)
            row = change.write(ai_gateway={**before, **asked})
            recording.follow(change.db, row, config or {}, models, caller(request), now_ms())
        return envelope.Json(row.ai_gateway)

    def patch_notifications(
        self, request: Request, name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """Whom to tell of updates; kept and shown."""
        kept = attributes.notifications(fields.body(body))
        with self._changing(request, name, "endpoint.notifications") as change:
            change.write(email_notifications=kept)
        return envelope.Json({"name": name, "email_notifications": kept or {}})

    def patch_telemetry(
        self, request: Request, name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """The newest form of the inference table; absent: removed."""
        _, config = self._seen(request, name, "CAN_MANAGE")
        found = fields.body(body).get("telemetry_config")
        kept = attributes.telemetry_config(found) if found is not None else None
        models = self._registered(config)
        with self._changing(request, name, "endpoint.telemetry") as change:
            configuration.refuse_renaming_telemetry(kept, change.row.telemetry_config)
            row = change.write(telemetry_config=kept)
            recording.follow(change.db, row, config or {}, models, caller(request), now_ms())
        return envelope.Json(self.context.endpoint_object(caller(request), row.id))

    # --- shared -----------------------------------------------------------------------------------

    def _seen(
        self, request: Request, name: str, level: str
    ) -> tuple[state.Endpoint, dict[str, Any] | None]:
        """The endpoint and the configuration that it shows: the active one, else the newest."""
        with database.reading(self.context.engine) as db:
            row = state.endpoint(db, name)
            self.context.allowed(caller(request), row, level)
            shown = _shown(db, row)
        return row, shown

    def _entity(self, request: Request, name: str, entity: str) -> dict[str, Any]:
        """An entity of the newest configuration, else of the active one: while an update runs,
        and after it failed, its own entities are those whose logs are asked for."""
        row, active = self._seen(request, name, "CAN_VIEW")
        with database.reading(self.context.engine) as db:
            newest = state.configuration(db, row.id, state.newest_version(db, row.id))
        for config in (newest.config if newest else None, active):
            for found in config["served_entities"] if config else ():
                if found["name"] == entity:
                    return dict(found)
        raise errors.DoesNotExist(f"Served entity '{entity[:200]}' does not exist.")

    @contextmanager
    def _changing(self, request: Request, name: str, action: str) -> Iterator["_Change"]:
        """A change of an endpoint's attributes with its audit row, in one transaction."""
        self._seen(request, name, "CAN_MANAGE")
        with self.context.change() as db:
            yield _Change(db, request, action, state.endpoint(db, name))

    def _resolve(self, asked: contract.ConfigRequest, shown: dict[str, Any] | None) -> Asked:
        """A request with its models from the registry. Raises DoesNotExist.

        Outside of any transaction: a registry may be far away, and a digest reads every file."""
        if asked.entities is None:
            return Asked(asked, {}, self._registered(shown))
        keys = sorted({(entity.model, entity.version) for entity in asked.entities})
        found = {key: registry.find(self.context.settings, *key) for key in keys}
        resolved = {
            key: configuration.Resolved(model.version, registry.digest(model.folder))
            for key, model in found.items()
        }
        return Asked(asked, resolved, list(found.values()))

    def _registered(self, config: dict[str, Any] | None) -> list[registry.Model]:
        entities = config["served_entities"] if config else []
        return [
            registry.find(self.context.settings, e["entity_name"], e["entity_version"])
            for e in entities
        ]

    def _accept(
        self, db: sa.Connection, request: Request, row: state.Endpoint, asked: Asked
    ) -> state.Endpoint:
        """Write the configuration that `asked` makes of the present one."""
        who, active = author(caller(request)), _active(db, row)
        present = active or _shown(db, row)
        config = configuration.next_configuration(
            asked.config, present, active, asked.resolved, (row.id, row.name), who
        )
        self._check_secrets(db, request, config)
        deployments = {
            key: s.deployment for key, s in replica_state.states_of(db, [row.id]).items()
        }
        changed = state.accept_configuration(
            db,
            row,
            config,
            created_by=who.user,
            reason=None,
            origin="user",
            at_once=configuration.at_once(config, active, deployments, row.stopped),
            now_ms=who.now_ms,
        )
        recording.follow(db, changed, config, asked.used, caller(request), who.now_ms)
        version = state.newest_version(db, row.id)
        ledger.configured(db, (row.id, row.name), version, config, who.now_ms)
        if changed.config_update == state.NOT_UPDATING and not changed.stopped:
            told = {"endpoint": row.name, "config_version": changed.active_version}
            outbox.emit(db, "endpoint.ready", told, who.now_ms)
        return changed

    def _check_secrets(self, db: sa.Connection, request: Request, config: dict[str, Any]) -> None:
        """Whoever names a secret must be able to manage its scope: a model could print it."""
        who = caller(request)
        for where, scope, key in contract.secrets_of(config):
            creator = secret_state.secret_scope_creator(db, scope)
            may = creator is not None and (who.is_admin or creator == who.user)
            if not may or secret_state.sealed_secret(db, scope, key) is None:
                raise errors.InvalidParameter(f"{where}: secret '{scope}/{key}' does not exist.")


class _Change:
    """An endpoint's row that is being changed."""

    def __init__(
        self, db: sa.Connection, request: Request, action: str, row: state.Endpoint
    ) -> None:
        self.db, self.row = db, row
        self._request, self._action = request, action

    def write(self, **values: Any) -> state.Endpoint:
        """Set columns, and say so in the audit."""
        before = {key: getattr(self.row, key) for key in values}
        self.row = state.write_endpoint(self.db, self.row, now_ms(), **values)
        _audit(self.db, self._request, self._action, self.row.name, before=before, after=values)
        return self.row


def _new(asked: contract.CreateRequest, who: configuration.Author) -> state.Endpoint:
    return state.Endpoint(
        id=who.new_id(),
        name=asked.name,
        creator=who.user,
        description=asked.description,
        created_ms=who.now_ms,
        updated_ms=who.now_ms,
        active_version=None,
        pending_version=None,
        config_update=state.NOT_UPDATING,
        update_message=None,
        update_started_ms=None,
        stopped=False,
        tags=asked.tags,
        ai_gateway=asked.ai_gateway,
        rate_limits=asked.rate_limits,
        email_notifications=asked.email_notifications,
        telemetry_config=asked.telemetry_config,
        route_optimized=asked.route_optimized,
        budget_policy_id=asked.budget_policy_id,
        row_version=1,
    )


def _refuse_many(db: sa.Connection) -> None:
    if len(state.all_endpoints(db)) >= MOST_ENDPOINTS:
        raise errors.InvalidParameter(f"There are {MOST_ENDPOINTS} endpoints, which is the most.")


def _active(db: sa.Connection, row: state.Endpoint) -> dict[str, Any] | None:
    found = state.configuration(db, row.id, row.active_version) if row.active_version else None
    return found.config if found else None


def _shown(db: sa.Connection, row: state.Endpoint) -> dict[str, Any] | None:
    """The active configuration, else the newest that there is."""
    newest = row.active_version or state.newest_version(db, row.id)
    found = state.configuration(db, row.id, newest) if newest else None
    return found.config if found else None


def _dry_run(request: Request) -> bool:
    return reading.flag(dict(request.query_params), "dry_run")


def _config(body: Any) -> fields.Field:
    fields.body(body)
    return fields.Field(body, "config")


def _shared(known: Sequence[dict[str, tuple[str, bool]]]) -> dict[str, tuple[str, bool]]:
    """Columns of several models: a column is required if all of them require it."""
    merged: dict[str, tuple[str, bool]] = {}
    for columns in known:
        for name, (kind, _) in columns.items():
            needed = all(name in each and each[name][1] for each in known)
            merged[name] = (kind, needed)
    return merged


def _written(db: sa.Connection, row: state.Endpoint) -> dict[str, Any]:
    """An endpoint as the audit shows it."""
    version, config = _newest(db, row)
    entities = config.get("served_entities") or []
    attributes = {name: getattr(row, name) for name in AUDITED_ATTRIBUTES}
    return {
        "id": row.id,
        "creator": row.creator,
        "config_version": version,
        "entities": {e["name"]: f"{e['entity_name']}/{e['entity_version']}" for e in entities},
        "settings": {e["name"]: _settings(e) for e in entities},
        "split": contract.percentages(config) if config else {},
        "sticky": (config.get("traffic_config") or {}).get("sticky"),
        "auto_capture_config": config.get("auto_capture_config"),
        **{name: value for name, value in attributes.items() if value},
    }


def _newest(db: sa.Connection, row: state.Endpoint) -> tuple[int | None, dict[str, Any]]:
    """The configuration that serves or is to, with its number; empty: there is none."""
    version = row.pending_version or row.active_version
    found = state.configuration(db, row.id, version) if version else None
    return version, {} if found is None else found.config


def _settings(entity: Mapping[str, Any]) -> dict[str, Any]:
    """How a served entity runs. Of its variables only references to secrets are shown: any other
    value may be one."""
    found = {name: entity[name] for name in AUDITED_SETTINGS if entity.get(name) is not None}
    if variables := entity.get("environment_vars"):
        found["environment_vars"] = {
            name: text if providers.SECRET.fullmatch(text) else "(not shown)"
            for name, text in variables.items()
        }
    return found


def _variables(db: sa.Connection, row: state.Endpoint) -> dict[tuple[str, str], str]:
    """Value by served entity and variable."""
    _, config = _newest(db, row)
    return {
        (entity["name"], name): text
        for entity in config.get("served_entities") or []
        for name, text in (entity.get("environment_vars") or {}).items()
    }


def _audit(db: sa.Connection, request: Request, action: str, name: str, **states: Any) -> None:
    audit.write(db, caller(request).user, action, now_ms(), endpoint=name, **states)
