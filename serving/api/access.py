"""Tokens, sign-in, permissions and grants."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from capture import audit, database, errors
from serving import access, access_state, contract, fields, replies, state
from serving.api import envelope, reading
from serving.api.context import Context, caller, now_ms

OURS = "/api/1.0"
PERMISSIONS = "/api/2.0/permissions/serving-endpoints/{endpoint_id}"
SESSION_SECONDS = 12 * 3600
LONGEST_LIFETIME_SECONDS = 10 * 366 * 86_400
GROUPS = ("users", "admins")
_KINDS = {
    "user_name": "user",
    "group_name": "group",
    "service_principal_name": "service_principal",
}


class Access:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["access"])
        for method, path, handler in (
            ("GET", f"{OURS}/me", self.me),
            ("POST", f"{OURS}/sign-in", self.sign_in),
            ("GET", f"{OURS}/tokens", self.tokens),
            ("POST", f"{OURS}/tokens", self.create_token),
            ("DELETE", f"{OURS}/tokens/{{token_id}}", self.revoke_token),
            ("GET", f"{OURS}/users/{{user}}/grants", self.grants),
            ("PUT", f"{OURS}/users/{{user}}/grants", self.put_grants),
            ("GET", PERMISSIONS, self.permissions),
            ("PUT", PERMISSIONS, self.set_permissions),
            ("PATCH", PERMISSIONS, self.update_permissions),
            ("GET", f"{PERMISSIONS}/permissionLevels", self.permission_levels),
        ):
            router.add_api_route(path, handler, methods=[method], response_model=None)
        return router

    # --- who is there -----------------------------------------------------------------------------

    def me(self, request: Request) -> Response:
        """The caller as the server knows them."""
        who = caller(request)
        return envelope.Json({"user": who.user, "is_admin": who.is_admin, "token_id": who.token_id})

    def sign_in(self, request: Request, raw: bytes = Depends(reading.raw)) -> Response:
        """A one-time code from a dashboard link -> a short-lived token.

        The code is the credential here: without one, 401; with a wrong one, 403 and a failed
        login."""
        code = _code(raw)
        now = now_ms()
        made = _Made(lifetime_seconds=SESSION_SECONDS, now=now)
        with self.context.change() as db:
            user = access_state.use_sign_in_code(db, access.token_hash(code), now)
            if user is not None:
                access_state.drop_expired_tokens(db, now)
                access_state.add_token(db, made.row(user, "signed in"))
                audit.write(db, user, "token.sign_in", now, after={"id": made.id})
        if user is None:
            self.context.data_plane.door.failed(envelope.address(request.scope), time.monotonic())
            raise errors.PermissionDenied("The code is not valid, was used, or is too old.")
        reply = {"token": made.text, "user": user, "expires_time": replies.rfc3339(made.expires)}
        return envelope.Json(reply)

    # --- tokens -----------------------------------------------------------------------------------

    def tokens(self, request: Request) -> Response:
        """Tokens that are not revoked: the caller's, an administrator's view is everybody's."""
        who, given = caller(request), reading.query(request, reading.PAGE)
        page = reading.page(given)
        with database.reading(self.context.engine) as db:
            known = [t for t in access_state.valid_tokens(db) if who.is_admin or t.user == who.user]
        known.sort(key=lambda each: each.id)
        rest = [each for each in known if page.after is None or each.id > page.after]
        reply: dict[str, Any] = {"tokens": [_shown(each) for each in rest[: page.size]]}
        if len(rest) > page.size:
            reply["next_page_token"] = reading.token(rest[page.size - 1].id)
        return envelope.Json(reply)

    def create_token(self, request: Request, body: Any = Depends(reading.json)) -> Response:
        """A new token, shown once. Only administrators make tokens for others."""
        who = caller(request)
        asked = fields.body(body).only(("comment", "user", "lifetime_seconds"))
        user = fields.text(asked, "user", 256) or who.user
        if user != who.user:
            access.require_admin(who)
        if user == contract.SERVICE_USER:
            raise asked.need("user").refuse("a name other than that of the service")
        lifetime = asked.get("lifetime_seconds")
        seconds = lifetime.integer(1, LONGEST_LIFETIME_SECONDS) if lifetime else None
        made = _Made(lifetime_seconds=seconds, now=now_ms())
        row = made.row(user, fields.text(asked, "comment", 1024, least=0))
        with self.context.change() as db:
            access_state.add_token(db, row)
            audit.write(db, who.user, "token.create", made.now, after=_shown(row))
        return envelope.Json({**_shown(row), "token": made.text})

    def revoke_token(self, request: Request, token_id: str) -> Response:
        """The token is worth nothing from now on."""
        who = caller(request)
        with self.context.change() as db:
            row = access_state.token(db, token_id)
            if not who.is_admin and row.user != who.user:
                raise errors.DoesNotExist(f"Token '{token_id[:200]}' does not exist.")
            access_state.revoke_token(db, token_id, now_ms())
            audit.write(db, who.user, "token.revoke", now_ms(), before=_shown(row))
        return envelope.Json({})

    # --- grants of one user -----------------------------------------------------------------------

    def grants(self, request: Request, user: str) -> Response:
        """What a user may do on which endpoint; one's own, or as an administrator."""
        who = caller(request)
        if user != who.user:
            access.require_admin(who)
        with database.reading(self.context.engine) as db:
            found = state.grants_to(db, user)
        listed = [{"endpoint": name, "level": grant.level} for name, grant in found]
        return envelope.Json({"user": user, "grants": listed})

    def put_grants(
        self, request: Request, user: str, body: Any = Depends(reading.json)
    ) -> Response:
        """Replace a user's grants: {"grants": [{"endpoint", "level"}]}. Administrators only."""
        who = caller(request)
        access.require_admin(who)
        asked = [
            (each.only(("endpoint", "level")).need("endpoint").text(63), _level(each, "level"))
            for each in fields.body(body).only(("grants",)).need("grants").items(1000)
        ]
        with self.context.change() as db:
            before = {"user": user, **{n: g.level for n, g in state.grants_to(db, user)}}
            access_state.drop_grants(db, principal=user)
            for name, level in asked:
                row = state.endpoint(db, name)
                access_state.put_grants(
                    db, row.id, [access_state.Grant(row.id, user, "user", level)]
                )
            after = dict(asked)
            audit.write(
                db, who.user, "grants.put", now_ms(), before=before, after={"user": user, **after}
            )
        return self.grants(request, user)

    # --- permissions of one endpoint, as Databricks has them --------------------------------------

    def permissions(self, request: Request, endpoint_id: str) -> Response:
        """Who may do what on an endpoint, by its id."""
        with database.reading(self.context.engine) as db:
            self._row(db, request, endpoint_id, "CAN_VIEW")
            found = access_state.grants_on(db, endpoint_id)
        return envelope.Json(replies.permissions(endpoint_id, found))

    def set_permissions(
        self, request: Request, endpoint_id: str, body: Any = Depends(reading.json)
    ) -> Response:
        """Replace the direct grants; the creator keeps CAN_MANAGE."""
        return self._write(request, endpoint_id, body, replace=True)

    def update_permissions(
        self, request: Request, endpoint_id: str, body: Any = Depends(reading.json)
    ) -> Response:
        """Add grants, or change their level."""
        return self._write(request, endpoint_id, body, replace=False)

    def permission_levels(self, request: Request, endpoint_id: str) -> Response:
        """The three levels, each holding the one before."""
        with database.reading(self.context.engine) as db:
            self._row(db, request, endpoint_id, "CAN_VIEW")
        return envelope.Json(replies.PERMISSION_LEVELS)

    def _write(self, request: Request, endpoint_id: str, body: Any, replace: bool) -> Response:
        with database.reading(self.context.engine) as db:
            self._row(db, request, endpoint_id, "CAN_MANAGE")
        asked = _acl(fields.body(body), endpoint_id)
        with self.context.change() as db:
            row = state.endpoint_by_id(db, endpoint_id)
            before = {grant.principal: grant.level for grant in access_state.grants_on(db, row.id)}
            if replace:
                access_state.drop_grants(db, endpoint_id=row.id)
            creator = access_state.Grant(row.id, row.creator, "user", "CAN_MANAGE")
            access_state.put_grants(db, row.id, [*asked, creator])
            found = access_state.grants_on(db, row.id)
            after = {grant.principal: grant.level for grant in found}
            audit.write(
                db,
                caller(request).user,
                "endpoint.permissions",
                now_ms(),
                endpoint=row.name,
                before=before,
                after=after,
            )
        return envelope.Json(replies.permissions(endpoint_id, found))

    def _row(
        self, db: sa.Connection, request: Request, endpoint_id: str, level: str
    ) -> state.Endpoint:
        row = state.endpoint_by_id(db, endpoint_id)
        if self.context.right(caller(request), row) is None:
            raise errors.DoesNotExist(f"Endpoint with id '{endpoint_id[:200]}' does not exist.")
        self.context.allowed(caller(request), row, level)
        return row


class _Made:
    """A token that is being made."""

    def __init__(self, lifetime_seconds: int | None, now: int) -> None:
        self.id = secrets.token_hex(8)
        self.text = access.token_text(self.id, secrets.token_urlsafe(32))
        self.now = now
        self.expires = now + lifetime_seconds * 1000 if lifetime_seconds is not None else None

    def row(self, user: str, comment: str | None) -> access_state.Token:
        hashed = access.token_hash(self.text)
        return access_state.Token(self.id, user, comment, hashed, self.now, self.expires, None)


def _shown(row: access_state.Token) -> dict[str, Any]:
    return {
        "id": row.id,
        "user": row.user,
        "comment": row.comment,
        "created_time": replies.rfc3339(row.created_ms),
        "expires_time": replies.rfc3339(row.expires_ms),
    }


def _code(raw: bytes) -> str:
    try:
        body = reading.parse(raw)
    except errors.BadRequest:
        body = None
    code = body.get("code") if isinstance(body, dict) else None
    if not isinstance(code, str) or not code:
        raise errors.Unauthenticated('Send {"code": ...} from a sign-in link.')
    return code


def _level(item: fields.Field, key: str) -> access.Level:
    return item.need(key).choice(access.LEVELS)


def _acl(body: fields.Field, endpoint_id: str) -> Sequence[access_state.Grant]:
    found = body.get("access_control_list")
    return [_grant(item, endpoint_id) for item in (found.items(1000) if found else ())]


def _grant(item: fields.Field, endpoint_id: str) -> access_state.Grant:
    named = [(kind, each) for key, kind in _KINDS.items() if (each := item.get(key)) is not None]
    if len(named) != 1:
        raise errors.InvalidParameter(
            f"{item.where}: exactly one of {', '.join(_KINDS)} is needed, found {len(named)}."
        )
    kind, each = named[0]
    level = _level(item, "permission_level")
    if kind != "group":
        return access_state.Grant(endpoint_id, each.text(256), kind, level)
    return access_state.Grant(endpoint_id, f"group:{each.choice(GROUPS)}", kind, level)
