"""Routes of alert rules, alerts, webhooks and their deliveries (inferlake-api.md)."""

from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from capture import audit, database, errors, names, outbound, sealing
from monitors import (
    alert_contract,
    alert_state,
    contract,
    delivery,
    routing_context,
    state,
)
from monitors.routing_context import Context

RULES = "/api/1.0/alert-rules"
ALERTS = "/api/1.0/alerts"
WEBHOOKS = "/api/1.0/webhooks"
OLD_SECRET_MS = 24 * 3_600_000
LOOK_UP_SECONDS = 3.0


class Alerts:
    """Rules, and the causes that they found."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["alerts"])
        for method, path, handler in (
            ("GET", RULES, self.rules),
            ("POST", RULES, self.add_rule),
            ("GET", RULES + "/{id}", self.rule),
            ("PATCH", RULES + "/{id}", self.change_rule),
            ("DELETE", RULES + "/{id}", self.delete_rule),
            ("POST", RULES + "/{id}/try", self.try_rule),
            ("GET", ALERTS, self.alerts),
            ("POST", ALERTS + "/{id}/acknowledge", self.acknowledge),
            ("POST", ALERTS + "/{id}/mute", self.mute),
        ):
            router.add_api_route(path, handler, methods=[method])
        return router

    def rules(self, request: Request) -> dict[str, Any]:
        """In the order they were made."""
        self.context.access.require(request, None, "CAN_VIEW")
        given = routing_context.query(request, ("endpoint", "page_size", "page_token"))
        page = routing_context.page(given)
        with database.reading(self.context.engine) as connection:
            found = alert_state.rules(connection, given.get("endpoint"))
        seen = [r for r in found if self.context.may_see(request, r.endpoint)]
        if page.after is not None:
            seen = [r for r in seen if (r.created_ms, r.id) > page.after]
        shown = seen[: page.size]
        reply: dict[str, Any] = {"alert_rules": [alert_contract.rule_info(r) for r in shown]}
        if len(seen) > page.size:
            reply["next_page_token"] = routing_context.page_token(
                shown[-1].created_ms, shown[-1].id
            )
        return reply

    def add_rule(
        self, request: Request, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        now = routing_context.now_ms()
        rule = alert_contract.rule(contract.body(raw), names.new_id(), now)
        caller = self.context.access.require(request, rule.endpoint, "CAN_MANAGE")
        with database.transaction(self.context.engine) as connection:
            if rule.slice is not None:
                monitors = state.monitors_of(connection, rule.endpoint)
                alert_contract.check_slice(rule.slice, [monitor.config for monitor in monitors])
            alert_state.add_rule(connection, rule)
            self._audit(connection, caller.user, "alert_rule.create", None, rule)
        return alert_contract.rule_info(rule)

    def _audit(
        self,
        connection: sa.Connection,
        user: str,
        action: str,
        before: alert_state.Rule | None,
        after: alert_state.Rule | None,
    ) -> None:
        rule = after or before
        assert rule is not None
        audit.write(
            connection,
            user,
            action,
            routing_context.now_ms(),
            endpoint=rule.endpoint,
            before=None if before is None else alert_contract.rule_info(before),
            after=None if after is None else alert_contract.rule_info(after),
        )

    def _rule(self, request: Request, id: str, level: str) -> alert_state.Rule:
        with database.reading(self.context.engine) as connection:
            found = alert_state.get_rule(connection, id)
        self.context.access.require(request, found.endpoint, level)
        return found

    def rule(self, request: Request, id: str) -> dict[str, Any]:
        return alert_contract.rule_info(self._rule(request, id, "CAN_VIEW"))

    def change_rule(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        endpoint = self._rule(request, id, "CAN_MANAGE").endpoint
        caller = self.context.access.require(request, endpoint, "CAN_MANAGE")
        values = alert_contract.rule_change(contract.body(raw))
        with database.transaction(self.context.engine) as connection:
            before = alert_state.get_rule(connection, id)
            if values:
                alert_state.change_rule(connection, id, values)
                after = alert_state.get_rule(connection, id)
                self._audit(connection, caller.user, "alert_rule.change", before, after)
            return alert_contract.rule_info(alert_state.get_rule(connection, id))

    def delete_rule(self, request: Request, id: str) -> dict[str, Any]:
        found = self._rule(request, id, "CAN_MANAGE")
        caller = self.context.access.require(request, found.endpoint, "CAN_MANAGE")
        with database.transaction(self.context.engine) as connection:
            alert_state.delete_rule(connection, id, routing_context.now_ms())
            self._audit(connection, caller.user, "alert_rule.delete", found, None)
        return {}

    async def try_rule(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """The alerts that a rule would have opened between two times, from the metric tables."""
        asked = contract.parse(contract.TryRequest, contract.body(raw))
        span = {
            "from": contract.moment(asked.from_, "from").isoformat(),
            "to": contract.moment(asked.to, "to").isoformat(),
        }
        rule, monitors = await run_in_threadpool(self._tried, request, id)
        if rule.metric not in alert_contract.ON_THE_PAST:
            raise errors.InvalidParameter(
                f"metric: the past of '{rule.metric}' is not kept; a rule can be tried on "
                f"{', '.join(alert_contract.ON_THE_PAST)}."
            )
        found: list[dict[str, Any]] = []
        for monitor in monitors:
            profile_table, drift_table = contract.metric_tables(monitor.table_name, monitor.config)
            arguments = {
                "rule": rule._asdict(),
                "profile_table": profile_table,
                "drift_table": drift_table,
                "filters": span,
                **contract.reading_hints(monitor.config),
            }
            found += await self.context.reader.ask(
                "try_rule", arguments, routing_context.READ_SECONDS
            )
        return {"alerts": sorted(found, key=lambda alert: str(alert["opened_time"]))}

    def _tried(self, request: Request, id: str) -> tuple[alert_state.Rule, list[state.Monitor]]:
        rule = self._rule(request, id, "CAN_VIEW")
        with database.reading(self.context.engine) as connection:
            return rule, state.monitors_of(connection, rule.endpoint)

    def alerts(self, request: Request) -> dict[str, Any]:
        """Newest first."""
        self.context.access.require(request, None, "CAN_VIEW")
        known = ("endpoint", "state", "page_size", "page_token")
        given = routing_context.query(request, known)
        page = routing_context.page(given)
        wanted = routing_context.choice(given, "state", ("open", "closed"))
        with database.reading(self.context.engine) as connection:
            found = alert_state.find_alerts(connection, given.get("endpoint"), wanted, page.after)
        seen = [a for a in found if self.context.may_see(request, a.endpoint)]
        shown = seen[: page.size]
        reply: dict[str, Any] = {"alerts": [alert_contract.alert_info(a) for a in shown]}
        if len(seen) > page.size:
            reply["next_page_token"] = routing_context.page_token(shown[-1].opened_ms, shown[-1].id)
        return reply

    def acknowledge(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        contract.parse(contract.Shape, contract.body(raw))
        return self._change(request, id, "acknowledge", lambda user: {"acknowledged_by": user})

    def mute(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """No event of this cause until then; the alert itself goes on."""
        asked = contract.parse(contract.MuteRequest, contract.body(raw))
        until = contract.unix_ms(contract.moment(asked.until, "until"))
        values = {"muted_until_ms": until, "mute_reason": asked.reason}
        return self._change(request, id, "mute", lambda _user: values)

    def _change(self, request: Request, id: str, deed: str, values: Any) -> dict[str, Any]:
        with database.reading(self.context.engine) as connection:
            found = alert_state.get_alert(connection, id)
        caller = self.context.access.require(request, found.endpoint, "CAN_MANAGE")
        with database.transaction(self.context.engine) as connection:
            alert_state.change_alert(connection, id, values(caller.user))
            after = alert_contract.alert_info(alert_state.get_alert(connection, id))
            named = ("id", "metric", "column", "acknowledged", "muted_until")
            before = alert_contract.alert_info(found)
            audit.write(
                connection,
                caller.user,
                f"alert.{deed}",
                routing_context.now_ms(),
                endpoint=found.endpoint,
                before={name: before.get(name) for name in named},
                after={name: after.get(name) for name in named},
                reason=values(caller.user).get("mute_reason"),
            )
            return after


class Webhooks:
    """Receivers of events. They hear of every endpoint, so they are an administrator's."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["webhooks"])
        one = WEBHOOKS + "/{id}"
        for method, path, handler in (
            ("GET", WEBHOOKS, self.everything),
            ("POST", WEBHOOKS, self.create),
            ("PATCH", one, self.change),
            ("DELETE", one, self.delete),
            ("POST", one + "/test", self.test),
            ("POST", one + "/rotate-secret", self.rotate),
            ("GET", one + "/deliveries", self.deliveries),
            ("POST", one + "/deliveries/{delivery_id}/redeliver", self.redeliver),
        ):
            router.add_api_route(path, handler, methods=[method])
        return router

    def _require(self, request: Request) -> str:
        return self.context.access.require(request, None, "CAN_MANAGE").user

    def everything(self, request: Request) -> dict[str, Any]:
        self._require(request)
        given = routing_context.query(request, ("page_size", "page_token"))
        page = routing_context.page(given)
        with database.reading(self.context.engine) as connection:
            found = alert_state.all_webhooks(connection)
        if page.after is not None:
            found = [w for w in found if (w.created_ms, w.id) > page.after]
        shown = found[: page.size]
        reply: dict[str, Any] = {"webhooks": [alert_contract.webhook_info(w) for w in shown]}
        if len(found) > page.size:
            reply["next_page_token"] = routing_context.page_token(
                shown[-1].created_ms, shown[-1].id
            )
        return reply

    def create(
        self, request: Request, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """The reply holds the secret, this once."""
        user = self._require(request)
        asked = contract.parse(alert_contract.WebhookRequest, contract.body(raw))
        self._check_url(asked.url)
        secret = delivery.new_secret()
        webhook = alert_state.Webhook(
            id=names.new_id(),
            url=asked.url,
            events=asked.events,
            format=asked.format,
            description=asked.description,
            sealed_secret=sealing.encrypt(self.context.settings, secret),
            sealed_old_secret=None,
            old_secret_until_ms=None,
            created_by=user,
            created_ms=routing_context.now_ms(),
        )
        with database.transaction(self.context.engine) as connection:
            alert_state.add_webhook(connection, webhook)
            self._audit(connection, user, "webhook.create", None, webhook)
        return {**alert_contract.webhook_info(webhook), "secret": secret}

    def _audit(
        self,
        connection: sa.Connection,
        user: str,
        action: str,
        before: alert_state.Webhook | None,
        after: alert_state.Webhook | None,
    ) -> None:
        audit.write(
            connection,
            user,
            action,
            routing_context.now_ms(),
            before=None if before is None else _audited(before),
            after=None if after is None else _audited(after),
        )

    def _check_url(self, url: str) -> None:
        """Refuse now what would be refused at every delivery; a host that is down may come."""
        outbound.parse_url(url)
        try:
            outbound.resolve(
                url,
                self.context.settings.allow_private_upstreams,
                routing_context.deadline(LOOK_UP_SECONDS),
            )
        except (outbound.Unreachable, outbound.TooSlow):
            return

    def change(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        user = self._require(request)
        asked = contract.parse(alert_contract.WebhookChange, contract.body(raw))
        if asked.url is not None:
            self._check_url(asked.url)
        values = asked.model_dump(exclude_none=True)
        with database.transaction(self.context.engine) as connection:
            before = alert_state.get_webhook(connection, id)
            if values:
                alert_state.change_webhook(connection, id, values)
                after = alert_state.get_webhook(connection, id)
                self._audit(connection, user, "webhook.change", before, after)
            return alert_contract.webhook_info(alert_state.get_webhook(connection, id))

    def delete(self, request: Request, id: str) -> dict[str, Any]:
        user = self._require(request)
        with database.transaction(self.context.engine) as connection:
            before = alert_state.get_webhook(connection, id)
            alert_state.delete_webhook(connection, id)
            self._audit(connection, user, "webhook.delete", before, None)
        return {}

    def test(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Send an event `webhook.test` to this receiver, on the usual way."""
        user = self._require(request)
        contract.parse(contract.Shape, contract.body(raw))
        now = routing_context.now_ms()
        with database.transaction(self.context.engine) as connection:
            form = alert_state.get_webhook(connection, id).format
            body = delivery.body("webhook.test", {"webhook": id, "sent_by": user}, now, form)
            number = alert_state.add_delivery(
                connection, id, delivery.new_message_id(), "webhook.test", body, now
            )
            found = alert_state.get_delivery(connection, id, number)
        return alert_contract.delivery_info(found)

    def rotate(
        self, request: Request, id: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """A new secret; for a day deliveries are signed with both."""
        user = self._require(request)
        contract.parse(contract.Shape, contract.body(raw))
        secret = delivery.new_secret()
        with database.transaction(self.context.engine) as connection:
            found = alert_state.get_webhook(connection, id)
            values = {
                "sealed_secret": sealing.encrypt(self.context.settings, secret),
                "sealed_old_secret": found.sealed_secret,
                "old_secret_until_ms": routing_context.now_ms() + OLD_SECRET_MS,
            }
            alert_state.change_webhook(connection, id, values)
            self._audit(connection, user, "webhook.rotate_secret", found, found)
        return {**alert_contract.webhook_info(found), "secret": secret}

    def deliveries(self, request: Request, id: str) -> dict[str, Any]:
        """Newest first, with the state of each and why the last attempt failed."""
        self._require(request)
        given = routing_context.query(request, ("page_size", "page_token"))
        page = routing_context.page(given)
        before = page.after[0] if page.after else None
        with database.reading(self.context.engine) as connection:
            alert_state.get_webhook(connection, id)
            found = alert_state.find_deliveries(connection, id, before, page.size + 1)
        shown = found[: page.size]
        reply: dict[str, Any] = {"deliveries": [alert_contract.delivery_info(d) for d in shown]}
        if len(found) > page.size:
            reply["next_page_token"] = routing_context.page_token(shown[-1].id, "")
        return reply

    def redeliver(
        self,
        request: Request,
        id: str,
        delivery_id: str,
        raw: bytes = Depends(routing_context.raw_body),
    ) -> dict[str, Any]:
        """Try again what is dead or was delivered, under the same message id."""
        self._require(request)
        contract.parse(contract.Shape, contract.body(raw))
        if not delivery_id.isascii() or not delivery_id.isdigit() or len(delivery_id) > 18:
            raise errors.DoesNotExist(f"Webhook '{id}' has no delivery '{delivery_id[:50]}'.")
        now = routing_context.now_ms()
        with database.transaction(self.context.engine) as connection:
            alert_state.get_delivery(connection, id, int(delivery_id))
            values = {
                "state": "waiting",
                "attempts": 0,
                "first_attempt_ms": None,
                "next_attempt_ms": now,
                "ended_ms": None,
            }
            alert_state.change_delivery(connection, int(delivery_id), values)
            found = alert_state.get_delivery(connection, id, int(delivery_id))
        return alert_contract.delivery_info(found)


def _audited(webhook: alert_state.Webhook) -> dict[str, Any]:
    """What the audit says of a receiver: of its address the host alone, for the path may be a
    secret (Slack's is)."""
    shown = alert_contract.webhook_info(webhook)
    kept = {name: shown.get(name) for name in ("id", "events", "format", "description")}
    return {**kept, "host": urlsplit(webhook.url).hostname}
