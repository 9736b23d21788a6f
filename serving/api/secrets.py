"""`/api/2.0/secrets`: a scope belongs to who opened it and to administrators."""

import base64
import binascii
import re
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from capture import audit, database, errors, logline
from serving import fields, secret_state, vault
from serving.api import envelope, reading
from serving.api.context import Context, caller, now_ms

BASE = "/api/2.0/secrets"
MOST_BYTES = 128 << 10
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,128}", re.ASCII)
_NAME_TEXT = "1 to 128 letters, digits, '_', '.', '@' or '-'"


class Secrets:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix=BASE, tags=["secrets"])
        for method, path, handler in (
            ("POST", "/scopes/create", self.create_scope),
            ("POST", "/scopes/delete", self.delete_scope),
            ("GET", "/scopes/list", self.scopes),
            ("POST", "/put", self.put),
            ("POST", "/delete", self.delete),
            ("GET", "/list", self.keys),
            ("GET", "/get", self.get),
        ):
            router.add_api_route(path, handler, methods=[method], response_model=None)
        return router

    def create_scope(self, request: Request, body: Any = Depends(reading.json)) -> Response:
        """Open a scope."""
        scope = _named(fields.body(body), "scope")
        with self.context.change() as db:
            secret_state.add_secret_scope(db, scope, caller(request).user, now_ms())
            self._audit(db, request, "secrets.create_scope", scope)
        return envelope.Json({})

    def delete_scope(self, request: Request, body: Any = Depends(reading.json)) -> Response:
        """Remove a scope with everything in it."""
        scope = _named(fields.body(body), "scope")
        with self.context.change() as db:
            self._mine(db, request, scope)
            secret_state.drop_secret_scope(db, scope)
            self._audit(db, request, "secrets.delete_scope", scope, gone=True)
        return envelope.Json({})

    def scopes(self, request: Request) -> Response:
        """The scopes that the caller may use."""
        who = caller(request)
        with database.reading(self.context.engine) as db:
            known = secret_state.all_secret_scopes(db)
        listed = [
            {"name": name, "backend_type": "DATABRICKS"}
            for name, creator in known
            if who.is_admin or creator == who.user
        ]
        return envelope.Json({"scopes": listed})

    def put(self, request: Request, body: Any = Depends(reading.json)) -> Response:
        """Write a secret, or replace it: string_value, or bytes_value in base64."""
        root = fields.body(body)
        scope, key, text = _named(root, "scope"), _named(root, "key"), _value(root)
        logline.hide(text)
        with self.context.change() as db:
            self._mine(db, request, scope)
            vault.put(db, self.context.settings, scope, key, text, now_ms())
            self._audit(db, request, "secrets.put", scope, key)
        return envelope.Json({})

    def delete(self, request: Request, body: Any = Depends(reading.json)) -> Response:
        """Remove a secret."""
        root = fields.body(body)
        scope, key = _named(root, "scope"), _named(root, "key")
        with self.context.change() as db:
            self._mine(db, request, scope)
            if not secret_state.drop_secret(db, scope, key):
                raise errors.DoesNotExist(f"Secret '{scope}/{key}' does not exist.")
            self._audit(db, request, "secrets.delete", scope, key, gone=True)
        return envelope.Json({})

    def keys(self, request: Request) -> Response:
        """The names of a scope's secrets, never their values."""
        scope = _named(_asked(request), "scope")
        with database.reading(self.context.engine) as db:
            self._mine(db, request, scope)
            found = secret_state.secret_keys(db, scope)
        listed = [{"key": key, "last_updated_timestamp": at} for key, at in found]
        return envelope.Json({"secrets": listed})

    def get(self, request: Request) -> Response:
        """A secret in base64, for who manages its scope; each reading stands in the audit."""
        asked = _asked(request)
        scope, key = _named(asked, "scope"), _named(asked, "key")
        with database.transaction(self.context.engine) as db:
            self._mine(db, request, scope)
            text = vault.get(db, self.context.settings, scope, key)
            self._audit(db, request, "secrets.get", scope, key)
        value = base64.b64encode(text.encode()).decode("ascii")
        return envelope.Json({"key": key, "value": value})

    def _mine(self, db: sa.Connection, request: Request, scope: str) -> None:
        """Raises DoesNotExist unless the caller may use the scope."""
        who, creator = caller(request), secret_state.secret_scope_creator(db, scope)
        if creator is None or not (who.is_admin or creator == who.user):
            raise errors.DoesNotExist(f"Scope '{scope}' does not exist.")

    def _audit(
        self,
        db: sa.Connection,
        request: Request,
        action: str,
        scope: str,
        key: str | None = None,
        gone: bool = False,
    ) -> None:
        """Which secret it was: never what it says."""
        named = {"scope": scope} | ({"key": key} if key is not None else {})
        before, after = (named, None) if gone else (None, named)
        audit.write(db, caller(request).user, action, now_ms(), before=before, after=after)


def _asked(request: Request) -> fields.Field:
    return fields.Field(dict(request.query_params), "")


def _named(root: fields.Field, key: str) -> str:
    return root.need(key).matching(_NAME, _NAME_TEXT)


def _value(root: fields.Field) -> str:
    """The text of a secret. No message repeats it."""
    plain, encoded = root.get("string_value"), root.get("bytes_value")
    if (plain is None) == (encoded is None):
        raise errors.InvalidParameter("Exactly one of string_value, bytes_value is needed.")
    if plain is not None:
        if not isinstance(plain.value, str):
            raise errors.InvalidParameter("string_value: expected a string.")
        text = plain.value
    else:
        text = _decoded(encoded.value if encoded else None)
    if not 0 < len(text.encode()) <= MOST_BYTES:
        raise errors.InvalidParameter(f"A secret has 1 to {MOST_BYTES} bytes.")
    return text


def _decoded(value: Any) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, TypeError, UnicodeDecodeError, ValueError):
        raise errors.InvalidParameter("bytes_value: expected UTF-8 text in base64.") from None
