"""The one path of a traffic change."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from capture import audit, catalog, database, errors, outbox
from capture.settings import Settings
from serving import (
    access,
    changes_state,
    configuration,
    contract,
    promotion,
    registry,
    replica_state,
)
from serving import state as sql

Register = Callable[..., Path]
_ids = itertools.count()
WHO = access.Caller("bob", False, False)


def order(if_config_version: int | None = None, reason: str | None = None) -> promotion.Order:
    author = configuration.Author("bob", 50, lambda: f"new{next(_ids)}")
    return promotion.Order(WHO, author, reason, if_config_version)


def config(*versions: str, capture: bool = False, **shares: int) -> dict[str, Any]:
    return {
        "served_entities": [
            {
                "id": f"id-v{version}",
                "name": f"v{version}",
                "entity_name": "main.f.m",
                "entity_version": version,
            }
            for version in versions
        ],
        "traffic_config": {"routes": contract.routes_of(shares), "sticky": None},
        "auto_capture_config": {"enabled": True} if capture else None,
    }


def accept(db: sa.Connection, body: dict[str, Any], at_once: bool = True) -> None:
    sql.accept_configuration(
        db,
        sql.endpoint(db, "x"),
        body,
        created_by="ann",
        reason=None,
        origin="user",
        at_once=at_once,
        now_ms=10,
    )


def ready(db: sa.Connection, *versions: str, deployment: str = "DEPLOYMENT_READY") -> None:
    for version in versions:
        replica_state.set_entity_state(db, "e-x", f"id-v{version}", deployment, "", 11)


def write(db: sa.Connection) -> None:
    """Endpoint x, 90 % v1, 10 % v2, 0 % v3, all ready."""
    row = sql.Endpoint(
        "e-x", "x", "ann", None, 1, 1, None, None, sql.NOT_UPDATING, None, None, False, [],
        None, None, None, None, False, None, 1,
    )  # fmt: skip
    sql.insert_endpoint(db, row)
    accept(db, config("1", "2", "3", v1=90, v2=10, v3=0))
    ready(db, "1", "2", "3")


@pytest.fixture
def db(state: sa.Engine) -> Iterator[sa.Connection]:
    with database.transaction(state) as connection:
        write(connection)
        yield connection


def shares(db: sa.Connection, version: int) -> dict[str, int]:
    found = sql.configuration(db, "e-x", version)
    assert found is not None
    return contract.percentages(found.config)


def test_a_promotion_between_ready_entities_is_active_at_once(db: sa.Connection) -> None:
    before = changes_state.counter(db)
    done = promotion.promote(db, "x", "v2", 100, order(reason="better"))
    assert (done.endpoint.active_version, done.endpoint.pending_version) == (2, None)
    assert done.endpoint.config_update == sql.NOT_UPDATING
    assert shares(db, 2) == {"v1": 0, "v2": 100, "v3": 0}
    assert done.champion == ("main.f.m", "2")
    assert changes_state.counter(db) > before
    kept = sql.configuration(db, "e-x", 2)
    assert kept is not None
    assert (kept.created_by, kept.reason, kept.origin) == ("bob", "better", "user")
    assert [e["id"] for e in kept.config["served_entities"]] == ["id-v1", "id-v2", "id-v3"]


def test_audit_and_event_tell_the_split_before_and_after(db: sa.Connection) -> None:
    done = promotion.promote(db, "x", "v2", 50, order(reason="canary"), origin="ramp")
    row = audit.read(db, 1)[0]
    assert (row.id, row.actor, row.action) == (done.audit_id, "bob", "endpoint.promoted")
    assert (row.endpoint, row.reason) == ("x", "canary")
    assert row.before == {"config_version": 1, "split": {"v1": 90, "v2": 10, "v3": 0}}
    assert row.after is not None
    assert row.after["split"] == {"v1": 50, "v2": 50, "v3": 0}
    assert row.after["origin"] == "ramp"
    event = outbox.waiting(db)[-1]
    assert event.type == "endpoint.promoted"
    assert event.data["before"] == row.before
    assert event.data["after"] == {"config_version": 2, "split": row.after["split"]}
    assert event.data["audit_id"] == done.audit_id
    assert done.champion is None


def test_the_version_that_was_seen_must_be_the_one_that_is(db: sa.Connection) -> None:
    promotion.promote(db, "x", "v2", 50, order(1))
    with pytest.raises(errors.Conflict, match="'x' is at configuration 2, not 1"):
        promotion.promote(db, "x", "v2", 90, order(1))
    assert sql.newest_version(db, "e-x") == 2
    assert len(audit.read(db, 9)) == 1


def test_of_many_promotions_from_one_version_one_wins(state: sa.Engine) -> None:
    with database.transaction(state) as db:
        write(db)

    def go(percentage: int) -> str:
        try:
            with database.transaction(state) as connection:
                promotion.promote(connection, "x", "v2", percentage, order(1))
            return "won"
        except errors.Conflict:
            return "lost"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(go, range(20, 28)))
    assert sorted(found) == ["lost"] * 7 + ["won"]
    with database.reading(state) as db:
        assert sql.newest_version(db, "e-x") == 2
        assert len(outbox.waiting(db)) == 1


def test_a_promotion_to_an_entity_that_recovers_waits_for_the_controller(db: sa.Connection) -> None:
    ready(db, "2", deployment="DEPLOYMENT_RECOVERING")
    done = promotion.promote(db, "x", "v2", 100, order())
    assert (done.endpoint.active_version, done.endpoint.pending_version) == (1, 2)
    assert done.endpoint.config_update == sql.IN_PROGRESS


def test_traffic_leaves_a_failing_entity_at_once(db: sa.Connection) -> None:
    ready(db, "2", "3", deployment="DEPLOYMENT_FAILED")
    assert promotion.promote(db, "x", "v1", 100, order()).endpoint.active_version == 2


def test_nothing_is_promoted_while_an_update_runs(db: sa.Connection) -> None:
    accept(db, config("4", v4=100), at_once=False)
    with pytest.raises(errors.Conflict, match=r"An update of 'x' started at 1970-.* in progress"):
        promotion.promote(db, "x", "v2", 100, order())
    with pytest.raises(errors.Conflict):
        promotion.rollback(db, "x", None, order())


def test_what_is_not_there_is_told(db: sa.Connection) -> None:
    with pytest.raises(errors.DoesNotExist, match="Endpoint 'y' does not exist"):
        promotion.promote(db, "y", "v2", 100, order())
    with pytest.raises(errors.DoesNotExist, match="Served entity 'v9' does not exist"):
        promotion.promote(db, "x", "v9", 100, order())
    with pytest.raises(errors.DoesNotExist, match="has no configuration before 1"):
        promotion.rollback(db, "x", None, order())
    with pytest.raises(errors.DoesNotExist, match="has no configuration 7"):
        promotion.rollback(db, "x", 7, order())


def test_a_rollback_is_the_configuration_before_as_a_new_version(db: sa.Connection) -> None:
    promotion.promote(db, "x", "v2", 100, order())
    done = promotion.rollback(db, "x", None, order(2, "worse"))
    assert done.endpoint.active_version == 3
    assert shares(db, 3) == {"v1": 90, "v2": 10, "v3": 0}
    kept = sql.configuration(db, "e-x", 3)
    assert kept is not None and kept.origin == "rollback"
    event = outbox.waiting(db)[-1]
    assert (event.type, event.data["to_config_version"]) == ("endpoint.rolled_back", 1)
    assert event.data["after"]["split"] == {"v1": 90, "v2": 10, "v3": 0}


def test_a_rollback_passes_over_what_never_served(db: sa.Connection) -> None:
    accept(db, config("4", v4=100), at_once=False)
    sql.fail_update(db, "e-x", 2, "no", 20)
    promotion.promote(db, "x", "v2", 100, order())
    done = promotion.rollback(db, "x", None, order())
    assert shares(db, 4) == {"v1": 90, "v2": 10, "v3": 0}
    assert done.endpoint.config_update == sql.NOT_UPDATING


def test_a_rollback_to_entities_that_are_gone_starts_them_again(db: sa.Connection) -> None:
    accept(db, config("4", v4=100), at_once=False)
    sql.complete_update(db, "e-x", 2, 20)
    done = promotion.rollback(db, "x", 1, order())
    assert (done.endpoint.active_version, done.endpoint.pending_version) == (2, 3)
    wanted = sql.desired(db)[0].entities
    assert {e.name for e in wanted if e.in_pending} == {"v1", "v2", "v3"}
    assert not {e.id for e in wanted} & {"id-v1", "id-v2", "id-v3"}


def test_recording_follows_the_configuration(db: sa.Connection) -> None:
    accept(db, config("1", "2", "3", capture=True, v1=100))
    promotion.rollback(db, "x", None, order())
    assert catalog.everything(db) == []
    promotion.rollback(db, "x", 2, order())
    recorded = catalog.everything(db)
    assert [(t.full_name, t.endpoint_id, t.enabled) for t in recorded] == [
        ("main.default.x_payload", "e-x", True)
    ]
    promotion.rollback(db, "x", 1, order())
    assert [t.enabled for t in catalog.everything(db)] == [False]


def test_an_alias_that_cannot_move_is_told_in_the_audit(
    settings: Settings, state: sa.Engine, register: Register
) -> None:
    """The registry file is no database, so that the helper process refuses at its first query."""
    register("main.f.m", 2)
    (settings.data_dir / "mlflow" / "mlflow.db").write_bytes(b"this is no database" * 100)
    with database.transaction(state) as db:
        write(db)
        done = promotion.promote(db, "x", "v2", 100, order())
    aliases = promotion.Aliases(settings, state)
    aliases.follow(done)
    aliases.close()
    with database.reading(state) as db:
        newest = audit.read(db, 1)[0]
    assert (newest.action, newest.endpoint) == ("registry.alias_not_moved", "x")
    assert newest.after == {"model": "main.f.m", "alias": "champion", "version": "2"}
    assert newest.reason


def test_a_promotion_to_all_the_traffic_names_the_champion(db: sa.Connection) -> None:
    assert promotion.promote(db, "x", "v3", 100, order()).champion == ("main.f.m", "3")
    assert registry.local_folder("s3://b/m") is None
