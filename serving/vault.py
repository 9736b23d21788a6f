"""Secrets of users: sealed in the database, opened at the last moment."""

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from capture import errors, logline, sealing
from capture.settings import Settings
from serving import providers, secret_state

log = logline.logger(__name__)

# Every column that holds sealed values.
SEALED = (
    ("secrets", "sealed"),
    ("webhooks", "sealed_secret"),
    ("webhooks", "sealed_old_secret"),
)


def put(
    connection: sa.Connection, settings: Settings, scope: str, key: str, text: str, now_ms: int
) -> None:
    """Seal a secret and write it."""
    sealed = sealing.encrypt(settings, text).encode("ascii")
    secret_state.put_secret(connection, scope, key, sealed, now_ms)


def get(connection: sa.Connection, settings: Settings, scope: str, key: str) -> str:
    """Open a secret, and hide it in what this process writes. Raises DoesNotExist."""
    sealed = secret_state.sealed_secret(connection, scope, key)
    if sealed is None:
        raise errors.DoesNotExist(f"Secret '{scope}/{key}' does not exist.")
    text = sealing.decrypt(settings, sealed.decode("ascii"))
    logline.hide(text)
    return text


def renew(connection: sa.Connection, settings: Settings) -> tuple[int, int]:
    """Seal with the present key what an earlier one sealed: (values renewed, values that no known
    key opens, which stay as they are)."""
    renewed = unknown = 0
    for name, written in SEALED:
        column: sa.ColumnClause[Any] = sa.column(written)
        table = sa.table(name, column)
        rows = connection.execute(sa.select(column).select_from(table).where(column.is_not(None)))
        for sealed in rows.scalars().all():
            try:
                new = _renewed(settings, sealed)
            except errors.InternalError:
                unknown += 1
                continue
            if new is not None:
                # Each seal is one of its kind: it names its row.
                connection.execute(sa.update(table).where(column == sealed).values({written: new}))
                renewed += 1
    return renewed, unknown


def _renewed(settings: Settings, sealed: bytes | str) -> bytes | str | None:
    if isinstance(sealed, str):
        return sealing.renewed(settings, sealed)
    new = sealing.renewed(settings, bytes(sealed).decode("ascii"))
    return None if new is None else new.encode("ascii")


def hide_all(connection: sa.Connection, settings: Settings) -> None:
    """Hide every stored secret in what this process writes and shows: a model prints what it was
    started with, before this process was."""
    for scope, key, sealed in secret_state.all_secrets(connection):
        try:
            logline.hide(sealing.decrypt(settings, sealed.decode("ascii")))
        except errors.InternalError as error:
            log.warning("secret_not_hidden", scope=scope, key=key, reason=error.message)


def resolve(connection: sa.Connection, settings: Settings, text: str) -> str:
    """`text` with every {{secrets/scope/key}} in it opened. Raises DoesNotExist."""

    def opened(reference: re.Match[str]) -> str:
        return get(connection, settings, reference[1], reference[2])

    return providers.SECRET.sub(opened, text)


def resolve_all(
    connection: sa.Connection, settings: Settings, variables: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables of an entity, as its worker gets them. Raises DoesNotExist."""
    return {name: resolve(connection, settings, text) for name, text in variables.items()}
