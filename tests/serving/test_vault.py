"""Secrets are sealed at rest and opened only where they are used."""

import pytest
import sqlalchemy as sa

from capture import database, errors
from capture.settings import Settings
from serving import secret_state, vault


def test_a_secret_is_not_in_the_database_in_the_clear(settings: Settings, state: sa.Engine) -> None:
    with database.transaction(state) as db:
        vault.put(db, settings, "s", "k", "hunter2-hunter2", 1)
        assert vault.get(db, settings, "s", "k") == "hunter2-hunter2"
        vault.put(db, settings, "s", "k", "hunter3-hunter3", 2)
        assert vault.get(db, settings, "s", "k") == "hunter3-hunter3"
        assert secret_state.secret_keys(db, "s") == [("k", 2)]
    stored = b"".join(path.read_bytes() for path in settings.data_dir.glob("inferlake.db*"))
    assert b"hunter" not in stored


def test_references_are_resolved_inside_text(settings: Settings, state: sa.Engine) -> None:
    with database.transaction(state) as db:
        vault.put(db, settings, "s", "k", r"a\1b", 1)
        asked = {"A": "{{secrets/s/k}}", "B": "x-{{secrets/s/k}}-y", "C": "{{other}}"}
        found = vault.resolve_all(db, settings, asked)
        assert found == {"A": r"a\1b", "B": r"x-a\1b-y", "C": "{{other}}"}
        with pytest.raises(errors.DoesNotExist, match="Secret 's/none' does not exist"):
            vault.resolve(db, settings, "{{secrets/s/none}}")
