"""The HTTP API as the dashboard uses it: one function per route, the signed-in person's token.

Replies are returned as they came (JSON objects); what was refused is an exception whose class says
what a page can do about it. No cookies, no proxies, no retries: a page is drawn again anyway.
"""

import functools
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

Json = dict[str, Any]
OURS = "/api/1.0"
SERVING = "/api/2.0/serving-endpoints"
SECRETS = "/api/2.0/secrets"
MONITORS = "/api/2.1/unity-catalog/tables"
PERMISSIONS = "/api/2.0/permissions/serving-endpoints"
READ_SECONDS = 15.0
QUERY_SECONDS = 300.0
END_OF_CERTIFICATE = "-----END CERTIFICATE-----"
REGISTRY_SECONDS = 120.0  # a registry may be far away, and a digest reads every file of a model


@dataclass(frozen=True, slots=True)
class Client:
    """Address of the server and the person's token. The token stays out of `repr`."""

    url: str
    token: str | None = field(default=None, repr=False)


class ApiError(Exception):
    """Base of every refusal. message: one sentence for a person."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        error_code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.error_code = error_code
        self.request_id = request_id


class Unreachable(ApiError):
    """Nobody answers at the address, or not in time."""


class Denied(ApiError):
    """401, 403: no valid token, or its user has no grant for this."""


class NotFound(ApiError):
    """404: no such endpoint, table, id or route."""


class Conflict(ApiError):
    """409: somebody changed it meanwhile, or an update is running."""


class Rejected(ApiError):
    """400: a field breaks its rule; the message names it."""


class Busy(ApiError):
    """429, 503: worth another try in a moment."""


class Failed(ApiError):
    """5xx and everything else: the server's fault."""


CLASSES: dict[int, type[ApiError]] = {
    400: Rejected,
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    429: Busy,
    503: Busy,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered query of an endpoint. served_by: entity; elapsed_ms: as seen from here."""

    status: int
    body: str
    served_by: str | None
    request_id: str | None
    elapsed_ms: float


@functools.cache
def _connections(url: str) -> httpx2.Client:
    """Connections are shared by all sessions; a request carries its own token and no cookie."""
    return httpx2.Client(base_url=url, trust_env=False, follow_redirects=False, verify=trust())


def trust() -> ssl.SSLContext:
    """What the server's certificate is held against: the one it was started with, whatever name the
    address has, or what the system trusts."""
    certificate = os.environ.get("INFERLAKE_TLS_CERTIFICATE")
    if not certificate:
        return ssl.create_default_context()
    own, end, _ = Path(certificate).read_text("ascii", "replace").partition(END_OF_CERTIFICATE)
    context = ssl.create_default_context(cadata=own + end)
    context.check_hostname = False
    context.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def send(
    client: Client,
    method: str,
    path: str,
    *,
    params: dict[str, Any] | None = None,
    json: Any = None,
    content: bytes | None = None,
    timeout: float = READ_SECONDS,
) -> httpx2.Response:
    """One request. Raises Unreachable; every status is a response."""
    headers = {"Accept": "application/json"}
    if client.token:
        headers["Authorization"] = f"Bearer {client.token}"
    if content is not None:
        headers["Content-Type"] = "application/json"
    given = {key: value for key, value in (params or {}).items() if value not in (None, "")}
    try:
        return _connections(client.url).request(
            method,
            path,
            params=given,
            json=json,
            content=content,
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=3.0),
        )
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        late = isinstance(error, httpx2.TimeoutException)
        said = f"did not answer within {timeout:.0f} s" if late else "cannot be reached"
        raise Unreachable(f"The server at {client.url} {said}.") from None


def call(client: Client, method: str, path: str, **options: Any) -> Json:
    """The JSON object that a route answers. Raises the class of the status (see above)."""
    response = send(client, method, path, **options)
    if response.is_success:
        return _object(response)
    raise refusal(response)


def refusal(response: httpx2.Response) -> ApiError:
    """The exception of a reply that is no success; reads the error envelope."""
    status = response.status_code
    body = _object(response)
    message = body.get("message") or f"The server answered {status}."
    kind = CLASSES.get(status, Failed)
    return kind(str(message), status, body.get("error_code"), response.headers.get("x-request-id"))


def _object(response: httpx2.Response) -> Json:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {"items": body}


def _part(name: str) -> str:
    return quote(name, safe="")


# sign-in


def sign_in(client: Client, code: str) -> Json:
    """A short-lived token for the one-time code of a dashboard link."""
    return call(client, "POST", f"{OURS}/sign-in", json={"code": code})


def me(client: Client) -> Json:
    return call(client, "GET", f"{OURS}/me")


# now


def overview(client: Client) -> Json:
    return call(client, "GET", f"{OURS}/overview")


def alerts(client: Client, state: str) -> Json:
    return call(client, "GET", f"{OURS}/alerts", params={"state": state, "page_size": 200})


def acknowledge_alert(client: Client, alert: str) -> Json:
    return call(client, "POST", f"{OURS}/alerts/{_part(alert)}/acknowledge", json={})


def mute_alert(client: Client, alert: str, until: str, reason: str) -> Json:
    body = {"until": until, "reason": reason}
    return call(client, "POST", f"{OURS}/alerts/{_part(alert)}/mute", json=body)


def alert_rules(client: Client) -> Json:
    return call(client, "GET", f"{OURS}/alert-rules", params={"page_size": 200})


def create_alert_rule(client: Client, rule: Json) -> Json:
    return call(client, "POST", f"{OURS}/alert-rules", json=rule)


def change_alert_rule(client: Client, rule: str, change: Json) -> Json:
    return call(client, "PATCH", f"{OURS}/alert-rules/{_part(rule)}", json=change)


def delete_alert_rule(client: Client, rule: str) -> Json:
    return call(client, "DELETE", f"{OURS}/alert-rules/{_part(rule)}")


def try_alert_rule(client: Client, rule: str, span: Json) -> Json:
    """The alerts that a rule would have opened `from` one time `to` another."""
    return call(client, "POST", f"{OURS}/alert-rules/{_part(rule)}/try", json=span)


def webhooks(client: Client) -> Json:
    return call(client, "GET", f"{OURS}/webhooks", params={"page_size": 200})


def create_webhook(client: Client, webhook: Json) -> Json:
    """The reply holds the secret, this once."""
    return call(client, "POST", f"{OURS}/webhooks", json=webhook)


def delete_webhook(client: Client, webhook: str) -> Json:
    return call(client, "DELETE", f"{OURS}/webhooks/{_part(webhook)}")


def test_webhook(client: Client, webhook: str) -> Json:
    return call(client, "POST", f"{OURS}/webhooks/{_part(webhook)}/test", json={})


def rotate_webhook_secret(client: Client, webhook: str) -> Json:
    """The reply holds the new secret, this once."""
    return call(client, "POST", f"{OURS}/webhooks/{_part(webhook)}/rotate-secret", json={})


def deliveries(client: Client, webhook: str) -> Json:
    """The newest deliveries of a receiver."""
    path = f"{OURS}/webhooks/{_part(webhook)}/deliveries"
    return call(client, "GET", path, params={"page_size": 100})


def redeliver(client: Client, webhook: str, delivery: str) -> Json:
    path = f"{OURS}/webhooks/{_part(webhook)}/deliveries/{_part(delivery)}/redeliver"
    return call(client, "POST", path, json={})


# serve


def endpoints(client: Client) -> Json:
    return call(client, "GET", SERVING)


def endpoint(client: Client, name: str) -> Json:
    return call(client, "GET", f"{SERVING}/{_part(name)}")


def delete_endpoint(client: Client, name: str) -> Json:
    return call(client, "DELETE", f"{SERVING}/{_part(name)}")


def stop_endpoint(client: Client, name: str) -> Json:
    return call(client, "POST", f"{OURS}/endpoints/{_part(name)}/stop", json={})


def start_endpoint(client: Client, name: str) -> Json:
    return call(client, "POST", f"{OURS}/endpoints/{_part(name)}/start", json={})


def models(client: Client, part: str = "") -> Json:
    """Registered models whose name holds `part`, with their versions: the first 100."""
    params = {"name_contains": part, "page_size": 100}
    return call(client, "GET", f"{OURS}/models", params=params, timeout=REGISTRY_SECONDS)


def model_version(client: Client, name: str, version: str) -> Json:
    """What a version (or @alias) of a registered model asks for."""
    path = f"{OURS}/models/{_part(name)}/versions/{_part(version)}"
    return call(client, "GET", path, timeout=REGISTRY_SECONDS)


def create_endpoint(client: Client, body: Json, dry_run: bool = False) -> Json:
    """A new endpoint. dry_run: everything is checked, nothing is made."""
    params = {"dry_run": "true"} if dry_run else None
    return call(client, "POST", SERVING, params=params, json=body, timeout=REGISTRY_SECONDS)


def update_config(client: Client, name: str, body: Json, dry_run: bool = False) -> Json:
    """The next configuration. dry_run: everything is checked, nothing is changed."""
    path, params = f"{SERVING}/{_part(name)}/config", {"dry_run": "true"} if dry_run else None
    return call(client, "PUT", path, params=params, json=body, timeout=REGISTRY_SECONDS)


def put_gateway(client: Client, name: str, body: Json) -> Json:
    """Limits, usage tracking and inference table of the gateway; what is not named stays."""
    return call(client, "PUT", f"{SERVING}/{_part(name)}/ai-gateway", json=body)


def replicas(client: Client, name: str) -> Json:
    """Served entities with their state, load and replicas."""
    return call(client, "GET", f"{OURS}/endpoints/{_part(name)}/replicas")


def events(client: Client, name: str) -> Json:
    """What happened to an endpoint, newest first."""
    return call(client, "GET", f"{OURS}/endpoints/{_part(name)}/events")


def permissions(client: Client, endpoint_id: str) -> Json:
    return call(client, "GET", f"{PERMISSIONS}/{_part(endpoint_id)}")


def grant(client: Client, endpoint_id: str, grants: list[Json]) -> Json:
    """Adds grants, or changes their level."""
    body = {"access_control_list": grants}
    return call(client, "PATCH", f"{PERMISSIONS}/{_part(endpoint_id)}", json=body)


def set_permissions(client: Client, endpoint_id: str, grants: list[Json]) -> Json:
    """Replaces all direct grants; the creator keeps CAN_MANAGE."""
    body = {"access_control_list": grants}
    return call(client, "PUT", f"{PERMISSIONS}/{_part(endpoint_id)}", json=body)


def versions(client: Client, name: str) -> Json:
    return call(client, "GET", f"{OURS}/endpoints/{_part(name)}/versions")


def openapi(client: Client, name: str) -> Json:
    return call(client, "GET", f"{SERVING}/{_part(name)}/openapi")


def build_logs(client: Client, name: str, entity: str) -> Json:
    return call(client, "GET", f"{SERVING}/{_part(name)}/served-models/{_part(entity)}/build-logs")


def service_logs(client: Client, name: str, entity: str) -> Json:
    return call(client, "GET", f"{SERVING}/{_part(name)}/served-models/{_part(entity)}/logs")


def timeseries(
    client: Client,
    name: str,
    metrics: str,
    start: str,
    end: str,
    step: int,
    by: str | None = None,
) -> Json:
    """Series of `metrics` (names joined by commas); step in seconds, times RFC 3339."""
    params = {"metrics": metrics, "from": start, "to": end, "step": step, "by": by}
    return call(client, "GET", f"{OURS}/endpoints/{_part(name)}/timeseries", params=params)


def capture(client: Client, name: str) -> Json:
    return call(client, "GET", f"{OURS}/endpoints/{_part(name)}/capture")


def query(client: Client, name: str, body: str) -> Answer:
    """Sends `body` to the endpoint as it is. An error of the model is an answer too."""
    path = f"/serving-endpoints/{_part(name)}/invocations"
    response = send(client, "POST", path, content=body.encode(), timeout=QUERY_SECONDS)
    return Answer(
        response.status_code,
        response.text,
        response.headers.get("served-model-name"),
        response.headers.get("x-request-id"),
        response.elapsed.total_seconds() * 1000,
    )


def change_traffic(client: Client, path: str, body: Json) -> Json:
    """Promote, roll back or apply: the routes that move traffic, all of the form POST path body."""
    return call(client, "POST", path, json=body)


def promote_path(name: str) -> str:
    return f"{OURS}/endpoints/{_part(name)}/promote"


def rollback_path(name: str) -> str:
    return f"{OURS}/endpoints/{_part(name)}/rollback"


def apply_path(recommendation: str) -> str:
    return f"{OURS}/recommendations/{_part(recommendation)}/apply"


# watch


def requests(client: Client, filters: Json) -> Json:
    return call(client, "GET", f"{OURS}/requests", params=filters)


def request(client: Client, request_id: str) -> Json:
    return call(client, "GET", f"{OURS}/requests/{_part(request_id)}")


def export(client: Client, form: str, filters: Json) -> bytes:
    """The same rows as a file; form: `csv` or `parquet`."""
    response = send(client, "GET", f"{OURS}/requests.{form}", params=filters, timeout=120.0)
    if response.is_success:
        return response.content
    raise refusal(response)


def monitors(client: Client) -> Json:
    return call(client, "GET", f"{OURS}/monitors")


def monitor(client: Client, table: str) -> Json:
    """The monitor's configuration as Databricks shows it."""
    return call(client, "GET", f"{MONITORS}/{_part(table)}/monitor")


def drift(client: Client, table: str, filters: Json) -> Json:
    return call(client, "GET", f"{OURS}/monitors/{_part(table)}/drift", params=filters)


def profiles(client: Client, table: str, filters: Json) -> Json:
    return call(client, "GET", f"{OURS}/monitors/{_part(table)}/profiles", params=filters)


def quality(client: Client, table: str, filters: Json) -> Json:
    return call(client, "GET", f"{OURS}/monitors/{_part(table)}/quality", params=filters)


def create_monitor(client: Client, table: str, body: Json) -> Json:
    return call(client, "POST", f"{MONITORS}/{_part(table)}/monitor", json=body)


def refresh(client: Client, table: str) -> Json:
    return call(client, "POST", f"{MONITORS}/{_part(table)}/monitor/refreshes", json={})


def report(client: Client, given: Json) -> Json:
    """Ask for a report on a window; a job makes it."""
    return call(client, "POST", f"{OURS}/reports", json=given)


def job(client: Client, number: str) -> Json:
    return call(client, "GET", f"{OURS}/jobs/{_part(number)}")


def cancel_job(client: Client, number: str) -> Json:
    return call(client, "POST", f"{OURS}/jobs/{_part(number)}/cancel", json={})


def job_result(client: Client, number: str) -> bytes:
    """The file that a job has made."""
    response = send(client, "GET", f"{OURS}/jobs/{_part(number)}/result", timeout=120.0)
    if response.is_success:
        return response.content
    raise refusal(response)


# decide


def experiment(client: Client, name: str, history: bool = False) -> Json:
    params = {"history": "true"} if history else None
    return call(client, "GET", f"{OURS}/endpoints/{_part(name)}/experiment", params=params)


def shadow(client: Client, name: str) -> Json:
    return call(client, "GET", f"{OURS}/endpoints/{_part(name)}/shadow")


def put_shadow(client: Client, name: str, body: Json) -> Json:
    return call(client, "PUT", f"{OURS}/endpoints/{_part(name)}/shadow", json=body)


def delete_shadow(client: Client, name: str) -> Json:
    return call(client, "DELETE", f"{OURS}/endpoints/{_part(name)}/shadow")


def ramp(client: Client, name: str) -> Json:
    return call(client, "GET", f"{OURS}/endpoints/{_part(name)}/ramp")


def put_ramp(client: Client, name: str, body: Json) -> Json:
    return call(client, "PUT", f"{OURS}/endpoints/{_part(name)}/ramp", json=body)


def delete_ramp(client: Client, name: str) -> Json:
    return call(client, "DELETE", f"{OURS}/endpoints/{_part(name)}/ramp")


def approve_ramp(client: Client, name: str) -> Json:
    return call(client, "POST", f"{OURS}/endpoints/{_part(name)}/ramp/approve", json={})


def resume_ramp(client: Client, name: str) -> Json:
    return call(client, "POST", f"{OURS}/endpoints/{_part(name)}/ramp/resume", json={})


def recommendations(client: Client, name: str | None, state: str | None) -> Json:
    params = {"endpoint": name, "state": state, "page_size": 100}
    return call(client, "GET", f"{OURS}/recommendations", params=params)


def dismiss(client: Client, recommendation: str, reason: str) -> Json:
    path = f"{OURS}/recommendations/{_part(recommendation)}/dismiss"
    return call(client, "POST", path, json={"reason": reason})


def snooze(client: Client, recommendation: str, until: str) -> Json:
    path = f"{OURS}/recommendations/{_part(recommendation)}/snooze"
    return call(client, "POST", path, json={"until": until})


# usage, audit, settings


def usage(client: Client, asked: Json) -> Json:
    """asked: by, from, to, endpoint, order_by, page_size."""
    return call(client, "GET", f"{OURS}/usage", params=asked, timeout=60.0)


def prices(client: Client) -> Json:
    return call(client, "GET", f"{OURS}/prices")


def put_prices(client: Client, table: Json) -> Json:
    return call(client, "PUT", f"{OURS}/prices", json=table)


def audit(client: Client, filters: Json) -> Json:
    return call(client, "GET", f"{OURS}/audit", params=filters)


def audit_file(client: Client, filters: Json) -> bytes:
    """The entries of a filter as CSV."""
    response = send(client, "GET", f"{OURS}/audit.csv", params=filters, timeout=120.0)
    if response.is_success:
        return response.content
    raise refusal(response)


def tokens(client: Client) -> Json:
    return call(client, "GET", f"{OURS}/tokens", params={"page_size": 1000})


def create_token(client: Client, asked: Json) -> Json:
    return call(client, "POST", f"{OURS}/tokens", json=asked)


def revoke_token(client: Client, token_id: str) -> Json:
    return call(client, "DELETE", f"{OURS}/tokens/{_part(token_id)}")


def grants(client: Client, user: str) -> Json:
    return call(client, "GET", f"{OURS}/users/{_part(user)}/grants")


def put_grants(client: Client, user: str, given: list[Json]) -> Json:
    return call(client, "PUT", f"{OURS}/users/{_part(user)}/grants", json={"grants": given})


def secret_scopes(client: Client) -> Json:
    return call(client, "GET", f"{SECRETS}/scopes/list")


def secret_keys(client: Client, scope: str) -> Json:
    """Names of a scope's secrets. No page ever asks for a value."""
    return call(client, "GET", f"{SECRETS}/list", params={"scope": scope})


def create_scope(client: Client, scope: str) -> Json:
    return call(client, "POST", f"{SECRETS}/scopes/create", json={"scope": scope})


def delete_scope(client: Client, scope: str) -> Json:
    return call(client, "POST", f"{SECRETS}/scopes/delete", json={"scope": scope})


def put_secret(client: Client, scope: str, key: str, value: str) -> Json:
    body = {"scope": scope, "key": key, "string_value": value}
    return call(client, "POST", f"{SECRETS}/put", json=body)


def delete_secret(client: Client, scope: str, key: str) -> Json:
    return call(client, "POST", f"{SECRETS}/delete", json={"scope": scope, "key": key})


def tables(client: Client, page_token: str | None = None) -> Json:
    return call(
        client, "GET", f"{OURS}/tables", params={"page_size": 100, "page_token": page_token}
    )


def table(client: Client, name: str) -> Json:
    return call(client, "GET", f"{OURS}/tables/{_part(name)}")


def keep_days(client: Client, name: str, days: int | None) -> Json:
    body = {"retention_days": days}
    return call(client, "PATCH", f"{OURS}/tables/{_part(name)}", json=body)


def maintain(client: Client, name: str) -> Json:
    path = f"{OURS}/tables/{_part(name)}/maintain"
    return call(client, "POST", path, json={}, timeout=60.0)


def storage(client: Client) -> Json:
    return call(client, "GET", f"{OURS}/storage")
