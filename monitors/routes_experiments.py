"""Routes of experiments, ramps and recommendations (inferlake-api.md)."""

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from capture import audit, database, errors, outbox
from monitors import contract, experiment_state, policies, routing_context, state
from monitors.routing_context import Context

ENDPOINT = "/api/1.0/endpoints/{name}"
OURS = "/api/1.0/recommendations"
STATES = ("open", "applied", "dismissed", "snoozed", "expired")


class Experiments:
    """`/api/1.0/endpoints/{name}/experiment` and `/ramp`."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["experiments"])
        for method, path, handler in (
            ("GET", "/experiment", self.get),
            ("PUT", "/experiment", self.put),
            ("DELETE", "/experiment", self.delete),
            ("GET", "/ramp", self.ramp),
            ("PUT", "/ramp", self.put_ramp),
            ("DELETE", "/ramp", self.delete_ramp),
            ("POST", "/ramp/approve", self.approve),
            ("POST", "/ramp/resume", self.resume),
        ):
            router.add_api_route(ENDPOINT + path, handler, methods=[method])
        return router

    async def get(self, request: Request, name: str) -> dict[str, Any]:
        """The policy and the newest decision per challenger; `?history=true`: all of them."""
        given = routing_context.query(request, ("history",))
        history = routing_context.choice(given, "history", ("true", "false")) == "true"
        experiment, table = await run_in_threadpool(self._experiment, request, name)
        decisions = []
        if table is not None:
            asked = {"table": table, "experiment": experiment.number, "history": history}
            decisions = await self.context.reader.ask(
                "decisions", asked, routing_context.READ_SECONDS
            )
        return {"policy": experiment.body, "decisions": decisions}

    def _experiment(
        self, request: Request, name: str
    ) -> tuple[experiment_state.Experiment, str | None]:
        self.context.access.require(request, name, "CAN_VIEW")
        with database.reading(self.context.engine) as connection:
            found = experiment_state.get_experiment(connection, name)
            table = state.unpacked_table(connection, name)
        if found is None:
            raise errors.DoesNotExist(f"Endpoint '{name}' has no experiment.")
        return found, table

    async def put(
        self, request: Request, name: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Begin a new experiment: the one before is over, and so are its latches."""
        table = await run_in_threadpool(self._manageable_table, request, name)
        body = contract.experiment(contract.body(raw))
        for policy in contract.policies_of(body):
            metrics = policies.Policy.parse(policy).placed_metrics.values()
            if any(metric.value for metric in metrics):
                # Asked of the reading child: what parses and computes is not loaded here.
                asked = {"table": table, "policy": policy}
                await self.context.reader.ask("check_metrics", asked, routing_context.READ_SECONDS)
        return await run_in_threadpool(self._begin, request, name, body)

    def _manageable_table(self, request: Request, name: str) -> str | None:
        """The unpacked table of an endpoint that the caller may manage."""
        self.context.access.require(request, name, "CAN_MANAGE")
        with database.reading(self.context.engine) as connection:
            return state.unpacked_table(connection, name)

    def _begin(self, request: Request, name: str, body: dict[str, Any]) -> dict[str, Any]:
        caller = self.context.access.require(request, name, "CAN_MANAGE")
        now = routing_context.now_ms()
        with database.transaction(self.context.engine) as connection:
            before = experiment_state.get_experiment(connection, name)
            experiment = experiment_state.begin_experiment(connection, name, body, caller.user, now)
            audit.write(
                connection,
                caller.user,
                "experiment.begin",
                now,
                endpoint=name,
                before=None if before is None else before.body,
                after=experiment.body,
            )
        return {"policy": experiment.body, "decisions": []}

    def delete(self, request: Request, name: str) -> dict[str, Any]:
        caller = self.context.access.require(request, name, "CAN_MANAGE")
        with database.transaction(self.context.engine) as connection:
            before = experiment_state.get_experiment(connection, name)
            experiment_state.end_experiment(connection, name)
            audit.write(
                connection,
                caller.user,
                "experiment.end",
                routing_context.now_ms(),
                endpoint=name,
                before=None if before is None else before.body,
            )
        return {}

    def ramp(self, request: Request, name: str) -> dict[str, Any]:
        self.context.access.require(request, name, "CAN_VIEW")
        with database.reading(self.context.engine) as connection:
            return contract.ramp_info(_ramp(connection, name))

    def put_ramp(
        self, request: Request, name: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Plan how a challenger's traffic grows, and what a regression does to it."""
        caller = self.context.access.require(request, name, "CAN_MANAGE")
        body = contract.ramp_request(contract.body(raw))
        with database.transaction(self.context.engine) as connection:
            before = experiment_state.get_ramp(connection, name)
            experiment_state.put_ramp(connection, name, body, routing_context.now_ms())
            after = _ramp(connection, name)
            _audit_ramp(connection, caller.user, "ramp.put", name, before, after)
            return contract.ramp_info(after)

    def delete_ramp(self, request: Request, name: str) -> dict[str, Any]:
        caller = self.context.access.require(request, name, "CAN_MANAGE")
        with database.transaction(self.context.engine) as connection:
            before = _ramp(connection, name)
            experiment_state.delete_ramp(connection, name)
            _audit_ramp(connection, caller.user, "ramp.delete", name, before, None)
        return {}

    def approve(
        self, request: Request, name: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Let the step go that waits for a person."""
        return self._change(request, name, raw, "ramp.approve", {"approved": True})

    def resume(
        self, request: Request, name: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Go on from the traffic of now, after a person's own change had paused the ramp."""
        now = routing_context.now_ms()
        values = {
            "paused": False,
            "config_version": None,
            "state": "running",
            "since_ms": now,
            "since_event_ms": None,
        }
        return self._change(request, name, raw, "ramp.resume", values)

    def _change(
        self, request: Request, name: str, raw: bytes, action: str, values: dict[str, Any]
    ) -> dict[str, Any]:
        caller = self.context.access.require(request, name, "CAN_MANAGE")
        contract.parse(contract.Shape, contract.body(raw))
        with database.transaction(self.context.engine) as connection:
            ramp = _ramp(connection, name)
            if ramp.state not in experiment_state.UNFINISHED:
                raise errors.Conflict(f"The ramp of '{name}' is {ramp.state}; plan a new one.")
            experiment_state.change_ramp(connection, ramp, values)
            after = _ramp(connection, name)
            _audit_ramp(connection, caller.user, action, name, ramp, after)
            return contract.ramp_info(after)


def _audit_ramp(
    connection: sa.Connection,
    user: str,
    action: str,
    endpoint: str,
    before: experiment_state.Ramp | None,
    after: experiment_state.Ramp | None,
) -> None:
    audit.write(
        connection,
        user,
        action,
        routing_context.now_ms(),
        endpoint=endpoint,
        before=None if before is None else contract.ramp_info(before),
        after=None if after is None else contract.ramp_info(after),
    )


def _ramp(connection: sa.Connection, endpoint: str) -> experiment_state.Ramp:
    found = experiment_state.get_ramp(connection, endpoint)
    if found is None:
        raise errors.DoesNotExist(f"Endpoint '{endpoint}' has no ramp.")
    return found


class Recommendations:
    """`/api/1.0/recommendations`: proposals with their evidence; applying one is a promotion."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["recommendations"])
        router.add_api_route(OURS, self.everything, methods=["GET"])
        router.add_api_route(OURS + "/{id}/apply", self.apply, methods=["POST"])
        router.add_api_route(OURS + "/{id}/dismiss", self.dismiss, methods=["POST"])
        router.add_api_route(OURS + "/{id}/snooze", self.snooze, methods=["POST"])
        return router

    def everything(self, request: Request) -> dict[str, Any]:
        """Newest first."""
        self.context.access.require(request, None, "CAN_VIEW")
        known = ("endpoint", "state", "page_size", "page_token")
        given = routing_context.query(request, known)
        page = routing_context.page(given)
        wanted = routing_context.choice(given, "state", STATES)
        endpoint = given.get("endpoint")
        if endpoint is not None:
            self.context.access.require(request, endpoint, "CAN_VIEW")
        with database.reading(self.context.engine) as connection:
            found = experiment_state.find_recommendations(connection, endpoint, wanted, page.after)
        seen = [r for r in found if self.context.may_see(request, r.endpoint)]
        shown = seen[: page.size]
        reply: dict[str, Any] = {
            "recommendations": [contract.recommendation_info(r) for r in shown]
        }
        if len(seen) > page.size:
            reply["next_page_token"] = routing_context.page_token(
                shown[-1].created_ms, shown[-1].id
            )
        return reply

    def _open(self, request: Request, id: str) -> tuple[Any, experiment_state.Recommendation]:
        with database.reading(self.context.engine) as connection:
            found = experiment_state.get_recommendation(connection, id)
        caller = self.context.access.require(request, found.endpoint, "CAN_MANAGE")
        if found.state not in ("open", "snoozed"):
            raise errors.Conflict(f"Recommendation '{id}' is {found.state} already.")
        return caller, found

    def apply(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Do what is proposed, as the caller, in the one way in which traffic is changed."""
        caller, found = self._open(request, id)
        asked = contract.parse(contract.ApplyRequest, contract.body(raw))
        split = experiment_state.proposed_split(found)
        if split is None:
            raise errors.InvalidParameter(
                f"Recommendation '{id}' proposes '{found.action['kind']}', which changes no "
                "traffic; dismiss it when it is done."
            )
        entity = found.action["served_entity"]
        share = split.get(entity, 0)
        reason = f"recommendation {id}: {found.expected_effect}"[:4096]
        done = self.context.promote(
            caller, found.endpoint, entity, share, asked.if_config_version, reason,
            "recommendation", split,
        )  # fmt: skip
        now = routing_context.now_ms()
        outcome = {
            "applied_by": caller.user,
            "applied_time": contract.rfc3339(now),
            "audit_id": done.get("audit_id"),
            "traffic_percentage": share,
        }
        event = {"endpoint": found.endpoint, "recommendation": id, "action": found.action}
        with database.transaction(self.context.engine) as connection:
            values = {"state": "applied", "outcome": outcome}
            experiment_state.change_recommendation(connection, id, values)
            experiment_state.expire_other_splits(connection, found)
            outbox.emit(connection, "recommendation.applied", {**event, **outcome}, now)
            applied = experiment_state.get_recommendation(connection, id)
        return {**contract.recommendation_info(applied), "endpoint_object": done}

    def dismiss(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        caller, found = self._open(request, id)
        asked = contract.parse(contract.DismissRequest, contract.body(raw))
        outcome = {
            "dismissed_by": caller.user,
            "dismissed_time": contract.rfc3339(routing_context.now_ms()),
            "reason": asked.reason,
        }
        values = {"state": "dismissed", "outcome": outcome}
        return self._set(caller.user, found, values, asked.reason)

    def snooze(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        caller, found = self._open(request, id)
        asked = contract.parse(contract.UntilRequest, contract.body(raw))
        until = contract.unix_ms(contract.moment(asked.until, "until"))
        if until <= routing_context.now_ms():
            raise errors.InvalidParameter("until: must lie in the future.")
        return self._set(caller.user, found, {"state": "snoozed", "snoozed_until_ms": until})

    def _set(
        self,
        user: str,
        before: experiment_state.Recommendation,
        values: dict[str, Any],
        reason: str | None = None,
    ) -> dict[str, Any]:
        with database.transaction(self.context.engine) as connection:
            experiment_state.change_recommendation(connection, before.id, values)
            after = experiment_state.get_recommendation(connection, before.id)
            audit.write(
                connection,
                user,
                f"recommendation.{after.state}",
                routing_context.now_ms(),
                endpoint=before.endpoint,
                before={"id": before.id, "action": before.action, "state": before.state},
                after={"id": after.id, "action": after.action, "state": after.state},
                reason=reason,
            )
        return contract.recommendation_info(after)
