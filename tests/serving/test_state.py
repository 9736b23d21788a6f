"""Endpoints, updates, snapshots and counters in SQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from capture import audit, database, errors, outbox
from serving import access_state, changes_state, contract, replica_state, secret_state
from serving import state as sql


def entity(name: str, version: str = "1", id: str | None = None) -> dict[str, Any]:
    return {
        "id": id or f"id-{name}",
        "name": name,
        "entity_name": "main.f.m",
        "entity_version": version,
        "workload_size": "Small",
        "scale_to_zero_enabled": False,
    }


def config(*entities: dict[str, Any], **shares: int) -> dict[str, Any]:
    return {
        "served_entities": list(entities),
        "traffic_config": {"routes": contract.routes_of(shares), "sticky": None},
        "auto_capture_config": {"enabled": True, "schema_name": "f"},
    }


def endpoint(name: str = "x", **changes: Any) -> sql.Endpoint:
    values: dict[str, Any] = {
        "id": f"e-{name}",
        "name": name,
        "creator": "ann",
        "description": None,
        "created_ms": 1,
        "updated_ms": 1,
        "active_version": None,
        "pending_version": None,
        "config_update": sql.NOT_UPDATING,
        "update_message": None,
        "update_started_ms": None,
        "stopped": False,
        "tags": [],
        "ai_gateway": None,
        "rate_limits": None,
        "email_notifications": None,
        "telemetry_config": None,
        "route_optimized": False,
        "budget_policy_id": None,
        "row_version": 1,
    }
    return sql.Endpoint(**{**values, **changes})


@pytest.fixture
def db(state: sa.Engine) -> Iterator[sa.Connection]:
    with database.transaction(state) as connection:
        yield connection


def accept(db: sa.Connection, body: dict[str, Any], at_once: bool = False) -> sql.Endpoint:
    return sql.accept_configuration(
        db,
        sql.endpoint(db, "x"),
        body,
        created_by="ann",
        reason=None,
        origin="user",
        at_once=at_once,
        now_ms=10,
    )


def events(db: sa.Connection) -> list[str]:
    return [event.type for event in outbox.waiting(db)]


def test_an_endpoint_is_read_back_as_written(db: sa.Connection) -> None:
    row = endpoint(tags=[{"key": "a"}], ai_gateway={"rate_limits": []}, description="d")
    sql.insert_endpoint(db, row)
    assert sql.endpoint(db, "x") == row
    assert sql.endpoint_by_id(db, "e-x") == row
    assert sql.all_endpoints(db) == [row]
    assert access_state.grants_on(db, "e-x") == [
        access_state.Grant("e-x", "ann", "user", "CAN_MANAGE")
    ]


def test_names_are_taken_once(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    with pytest.raises(errors.AlreadyExists, match="Endpoint 'x' exists already"):
        sql.insert_endpoint(db, endpoint(id="other"))


def test_what_is_not_there_does_not_exist(db: sa.Connection) -> None:
    with pytest.raises(errors.DoesNotExist):
        sql.endpoint(db, "x")
    with pytest.raises(errors.DoesNotExist):
        sql.endpoint_by_id(db, "x")
    with pytest.raises(errors.DoesNotExist):
        access_state.token(db, "x")


def test_who_writes_second_from_the_same_reading_is_refused(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    seen = sql.endpoint(db, "x")
    assert sql.write_endpoint(db, seen, 2, description="first").description == "first"
    with pytest.raises(errors.Conflict, match="'x' was changed meanwhile"):
        sql.write_endpoint(db, seen, 3, description="second")


def test_a_configuration_is_pending_until_the_controller_completes_it(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    accepted = accept(db, config(entity("a"), a=100))
    assert (accepted.active_version, accepted.pending_version) == (None, 1)
    assert accepted.config_update == sql.IN_PROGRESS
    assert replica_state.states_of(db)["id-a"].deployment == "DEPLOYMENT_CREATING"
    assert sql.complete_update(db, "e-x", 1, 20)
    done = sql.endpoint(db, "x")
    assert (done.active_version, done.pending_version) == (1, None)
    assert (done.config_update, done.update_started_ms) == (sql.NOT_UPDATING, None)
    assert events(db) == ["endpoint.ready"]
    assert not sql.complete_update(db, "e-x", 1, 30)


def test_a_failed_update_leaves_what_was_active(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    accept(db, config(entity("a"), a=100), at_once=True)
    accept(db, config(entity("b"), b=100))
    assert sql.fail_update(db, "e-x", 2, "The model raised.", 20)
    failed = sql.endpoint(db, "x")
    assert (failed.active_version, failed.pending_version) == (1, 2)
    assert (failed.config_update, failed.update_message) == (sql.UPDATE_FAILED, "The model raised.")
    assert events(db) == ["endpoint.update_failed"]
    assert not sql.complete_update(db, "e-x", 2, 30)
    wanted = sql.desired(db)[0]
    assert [each.id for each in wanted.entities] == ["id-a"]


def test_a_newer_pending_configuration_cannot_be_completed_by_the_older(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    accept(db, config(entity("a"), a=100))
    accept(db, config(entity("b"), b=100))
    assert not sql.complete_update(db, "e-x", 1, 20)
    assert not sql.fail_update(db, "e-x", 1, "late", 20)
    assert set(replica_state.states_of(db)) == {"id-b"}


def test_desired_is_the_union_of_active_and_pending(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    accept(db, config(entity("a"), entity("b"), a=90, b=10), at_once=True)
    accept(db, config(entity("b"), entity("c"), b=60, c=40))
    wanted = {each.id: each for each in sql.desired(db)[0].entities}
    roles = {key: (each.in_active, each.in_pending) for key, each in wanted.items()}
    assert roles == {"id-a": (True, False), "id-b": (True, True), "id-c": (False, True)}
    assert wanted["id-b"].percentage == 10
    sql.complete_update(db, "e-x", 2, 20)
    assert {each.id for each in sql.desired(db)[0].entities} == {"id-b", "id-c"}
    assert set(replica_state.states_of(db)) == {"id-b", "id-c"}


def test_a_stopped_endpoint_wants_nothing(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    accept(db, config(entity("a"), a=100), at_once=True)
    sql.write_endpoint(db, sql.endpoint(db, "x"), 5, stopped=True)
    assert sql.desired(db)[0].entities == ()


def test_the_configuration_before_is_the_last_one_that_was_active(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    accept(db, config(entity("a"), a=100), at_once=True)
    accept(db, config(entity("b"), b=100))
    sql.fail_update(db, "e-x", 2, "no", 20)
    accept(db, config(entity("a"), a=100), at_once=True)
    before = sql.configuration_before(db, "e-x", 3)
    assert before is not None and before.config_version == 1
    assert [each.config_version for each in sql.history(db, "e-x", 2)] == [3, 2]
    assert [each.config_version for each in sql.history(db, "e-x", 9, below=2)] == [1]


def replica(id: str, entity_id: str, state: str = "READY") -> replica_state.Replica:
    return replica_state.Replica(id, "e-x", entity_id, f"w-{id}.sock", 5, 1.5, state, None, 3, 4, 4)


def test_a_snapshot_holds_what_a_request_depends_on(db: sa.Connection) -> None:
    sql.insert_endpoint(
        db,
        endpoint(
            rate_limits=[{"calls": 1, "renewal_period": "minute", "key": "user"}],
            ai_gateway={"rate_limits": [{"calls": 2, "renewal_period": "minute"}]},
        ),
    )
    accept(db, config(entity("a"), entity("b"), a=100, b=0), at_once=True)
    for row in (replica("1", "id-a"), replica("2", "id-a", "STARTING"), replica("3", "id-b")):
        replica_state.add_replica(db, row)
    access_state.add_token(db, access_state.Token("t", "ann", None, b"h", 1, None, None))
    access_state.add_token(db, access_state.Token("u", "bob", None, b"h", 1, None, None))
    access_state.revoke_token(db, "u", 2)
    view = sql.snapshot(db)
    only = view.endpoints[0]
    assert (only.name, only.config_version, only.sticky_key, only.sticky_salt) == (
        "x",
        1,
        None,
        "e-x",
    )
    assert [(e.name, e.percentage, e.concurrency) for e in only.entities] == [
        ("a", 100, 4),
        ("b", 0, 4),
    ]
    assert only.entities[0].replicas == (sql.ReplicaView("1", "w-1.sock", 4),)
    assert only.capture == sql.CaptureView("main.f.x_payload", 1.0, "process")
    assert [limit["calls"] for limit in only.rate_limits] == [1, 2]
    assert view.tokens == {"t": sql.TokenView("ann", b"h", None)}
    assert view.grants == {("e-x", "ann"): "CAN_MANAGE"}


def test_an_endpoint_without_an_active_configuration_is_in_the_snapshot(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    accept(db, config(entity("a"), a=100))
    only = sql.snapshot(db).endpoints[0]
    assert (only.entities, only.config_version, only.updating) == ((), None, True)


def test_a_watch_sees_each_change_of_routes_once_and_no_other(state: sa.Engine) -> None:
    watch = changes_state.Watch(state)
    assert watch.changed()
    assert not watch.changed()
    with database.transaction(state) as db:
        replica_state.set_demand(db, [replica_state.Demand("id-a", "g", 1, 0, 5)])
    assert not watch.changed()
    with database.transaction(state) as db:
        sql.insert_endpoint(db, endpoint())
    assert watch.changed()
    assert not watch.changed()
    watch.close()


def test_a_watch_tells_whether_anything_was_committed(state: sa.Engine) -> None:
    watch = changes_state.Watch(state)
    assert watch.touched()
    assert not watch.touched()
    with database.transaction(state) as db:
        replica_state.set_demand(db, [replica_state.Demand("id-a", "g", 1, 0, 5)])
    assert watch.touched()
    assert not watch.touched()
    watch.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda db: replica_state.add_replica(db, replica("9", "id-a")),
        lambda db: replica_state.set_replica(db, "1", state="DRAINING"),
        lambda db: replica_state.remove_replica(db, "1"),
        lambda db: access_state.add_token(
            db, access_state.Token("v", "ann", None, b"h", 1, None, None)
        ),
        lambda db: access_state.revoke_token(db, "t", 5),
        lambda db: access_state.put_grants(
            db, "e-x", [access_state.Grant("e-x", "bob", "user", "CAN_VIEW")]
        ),
        lambda db: access_state.drop_grants(db, principal="ann"),
        lambda db: sql.write_endpoint(db, sql.endpoint(db, "x"), 5, stopped=True),
        lambda db: sql.delete_endpoint(db, sql.endpoint(db, "x")),
        lambda db: sql.complete_update(db, "e-x", 1, 5),
        lambda db: sql.fail_update(db, "e-x", 1, "no", 5),
    ],
)
def test_whatever_a_route_table_depends_on_raises_the_counter(
    db: sa.Connection, change: Any
) -> None:
    sql.insert_endpoint(db, endpoint())
    accept(db, config(entity("a"), a=100))
    replica_state.add_replica(db, replica("1", "id-a"))
    access_state.add_token(db, access_state.Token("t", "ann", None, b"h", 1, None, None))
    before = changes_state.counter(db)
    change(db)
    assert changes_state.counter(db) > before


def test_deleting_leaves_the_replicas_for_the_controller(db: sa.Connection) -> None:
    sql.insert_endpoint(db, endpoint())
    accept(db, config(entity("a"), a=100))
    replica_state.add_replica(db, replica("1", "id-a"))
    sql.delete_endpoint(db, sql.endpoint(db, "x"))
    assert sql.desired(db) == []
    assert [row.id for row in replica_state.all_replicas(db)] == ["1"]
    assert (
        replica_state.states_of(db),
        access_state.all_grants(db),
        sql.history(db, "e-x", 9),
    ) == ({}, [], [])


def test_demand_is_summed_over_gateways(db: sa.Connection) -> None:
    replica_state.set_demand(
        db,
        [replica_state.Demand("id-a", "g1", 1, 2, 5), replica_state.Demand("id-a", "g2", 3, 4, 9)],
    )
    replica_state.set_demand(db, [replica_state.Demand("id-a", "g1", 0, 1, 7)])
    assert replica_state.demand_by_entity(db) == {"id-a": replica_state.Demand("id-a", "", 3, 5, 9)}
    replica_state.clear_demand(db, gateway="g2")
    assert replica_state.demand_by_entity(db)["id-a"].waiting == 0


def test_a_sign_in_code_works_once_and_in_time(db: sa.Connection) -> None:
    access_state.add_sign_in_code(db, b"one", "admin", 100)
    access_state.add_sign_in_code(db, b"two", "admin", 100)
    assert access_state.use_sign_in_code(db, b"one", 99) == "admin"
    assert access_state.use_sign_in_code(db, b"one", 99) is None
    assert access_state.use_sign_in_code(db, b"two", 100) is None
    assert access_state.use_sign_in_code(db, b"other", 1) is None


def test_a_code_asked_for_by_many_at_once_is_given_to_one(state: sa.Engine) -> None:
    with database.transaction(state) as db:
        access_state.add_sign_in_code(db, b"one", "admin", 100)

    def use(_: int) -> str | None:
        with database.transaction(state) as connection:
            return access_state.use_sign_in_code(connection, b"one", 1)

    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(use, range(8)))
    assert sorted(given, key=str) == [None] * 7 + ["admin"]


def test_the_migrated_schema_is_the_one_that_the_tables_say(state: sa.Engine) -> None:
    ours = {
        table.name
        for module in (sql, access_state, audit, changes_state, replica_state, secret_state)
        for table in vars(module).values()
        if isinstance(table, sa.Table)
    }
    assert len(ours) == 12

    def included(_: Any, name: str | None, kind: str, __: bool, ___: Any) -> bool:
        return kind != "table" or name in ours

    with state.connect() as connection:
        options = {"compare_type": True, "include_object": included}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, database.metadata) == []
