"""Secrets are sealed at rest and opened only where they are used."""

import base64
import os

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from capture import database, errors, logline, sealing
from capture.settings import Settings
from monitors import alert_state
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


def key() -> SecretStr:
    return SecretStr(base64.b64encode(os.urandom(32)).decode())


def test_what_is_opened_is_hidden(settings: Settings, state: sa.Engine) -> None:
    with database.transaction(state) as db:
        vault.put(db, settings, "s", "one", "opened-by-get", 1)
        vault.put(db, settings, "s", "two", "opened-by-all", 1)
        vault.get(db, settings, "s", "one")
        assert logline.mask("opened-by-get opened-by-all") == "*** opened-by-all"
        vault.hide_all(db, settings)
        assert logline.mask("opened-by-get opened-by-all") == "*** ***"
        foreign = settings.model_copy(update={"secret_key": key()})
        vault.put(db, foreign, "s", "lost", "sealed-elsewhere", 1)
        vault.hide_all(db, settings)  # one that cannot be opened does not stop it


def test_a_new_key_seals_everything_anew(settings: Settings, state: sa.Engine) -> None:
    old = settings.model_copy(update={"secret_key": key()})
    new = settings.model_copy(update={"secret_key": key(), "secret_key_before": old.secret_key})
    alone = new.model_copy(update={"secret_key_before": None})
    with database.transaction(state) as db:
        vault.put(db, old, "s", "k", "hunter2-hunter2", 1)
        vault.put(db, settings, "s", "of-the-file", "hunter3-hunter3", 1)
        other = settings.model_copy(update={"secret_key": key()})
        vault.put(db, other, "s", "lost", "x", 1)
        sealed = sealing.encrypt(old, "whsec")
        db.execute(
            sa.insert(alert_state.webhooks).values(
                id="w",
                url="http://127.0.0.1",
                events=[],
                format="json",
                sealed_secret=sealed,
                created_by="ann",
                created_ms=1,
            )
        )
        assert vault.renew(db, new) == (3, 1)
        assert vault.renew(db, new) == (0, 1)
        assert vault.get(db, alone, "s", "k") == "hunter2-hunter2"
        (found,) = db.execute(sa.select(alert_state.webhooks.c.sealed_secret)).scalars()
        assert sealing.decrypt(alone, found) == "whsec"
    (settings.data_dir / sealing.KEY_FILE).unlink()
    with database.reading(state) as db:
        assert vault.get(db, alone, "s", "of-the-file") == "hunter3-hunter3"
        with pytest.raises(errors.InternalError, match="INFERLAKE_SECRET_KEY_BEFORE"):
            vault.get(db, alone, "s", "lost")
