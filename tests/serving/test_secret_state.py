"""Scopes of secrets in SQL."""

import pytest
import sqlalchemy as sa

from capture import database, errors
from serving import secret_state


def test_a_dropped_scope_takes_its_secrets_along(state: sa.Engine) -> None:
    with database.transaction(state) as db:
        secret_state.add_secret_scope(db, "s", "ann", 1)
        with pytest.raises(errors.AlreadyExists):
            secret_state.add_secret_scope(db, "s", "bob", 1)
        secret_state.put_secret(db, "s", "k", b"v", 1)
        assert secret_state.all_secret_scopes(db) == [("s", "ann")]
        secret_state.drop_secret_scope(db, "s")
        assert secret_state.secret_scope_creator(db, "s") is None
        assert secret_state.sealed_secret(db, "s", "k") is None
        assert not secret_state.drop_secret(db, "s", "k")
