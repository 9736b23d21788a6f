import alembic.autogenerate
import alembic.migration
import pytest
import sqlalchemy as sa

from capture import catalog, database, errors
from capture.settings import Settings
from monitors import alert_state, experiment_state, state

TABLE = "main.flights.p_unpacked"


@pytest.fixture
def engine(tmp_path):
    settings = Settings(data_dir=tmp_path)
    database.migrate(settings)
    engine = database.open_engine(settings)
    yield engine
    engine.dispose()


def test_the_migrated_schema_is_the_one_that_the_code_uses(engine):
    mine = sa.MetaData(naming_convention=database.metadata.naming_convention)
    for module in (state, experiment_state, alert_state):
        for table in vars(module).values():
            if isinstance(table, sa.Table):
                table.to_metadata(mine)

    def is_mine(name, kind, _parents):
        return kind != "table" or name in mine.tables

    with engine.connect() as connection:
        options = {"include_name": is_mine}
        context = alembic.migration.MigrationContext.configure(connection, opts=options)
        assert alembic.autogenerate.compare_metadata(context, mine) == []


def test_a_monitor_knows_the_endpoint_whose_rows_it_watches(engine):
    with database.transaction(engine) as connection:
        catalog.record(connection, "main.flights.p_payload", "e1", "delay", {}, {}, 1)
        state.create_monitor(connection, TABLE, "t1", {}, "ann", 1)
        assert state.monitor(connection, TABLE).endpoint == "delay"
        assert state.unpacked_table(connection, "delay") == TABLE
        assert [m.table_name for m in state.monitors_of(connection, "delay")] == [TABLE]


def test_a_second_monitor_on_a_table_is_refused_and_letter_case_does_not_matter(engine):
    with database.transaction(engine) as connection:
        state.create_monitor(connection, TABLE, "t1", {}, "ann", 1)
        with pytest.raises(errors.AlreadyExists):
            state.create_monitor(connection, TABLE, "t2", {}, "ann", 1)
        assert state.monitor(connection, TABLE.upper()).table_name == TABLE
        with pytest.raises(errors.DoesNotExist):
            state.monitor(connection, "main.flights.other")


def test_a_refresh_goes_from_pending_to_its_end_once(engine):
    with database.transaction(engine) as connection:
        state.create_monitor(connection, TABLE, "t1", {}, "ann", 1)
        first = state.request_refresh(connection, TABLE, "MANUAL", 5, 1)
        second = state.request_refresh(connection, TABLE, "MANUAL", None, 2)
        assert state.pending_refresh(connection).id == first
        assert state.start_refresh(connection, first, 3)
        assert not state.start_refresh(connection, first, 3)
        assert not state.report_progress(connection, first, {"files": 1})
        state.cancel_refresh(connection, TABLE, first, 4)
        assert state.report_progress(connection, first, {"files": 2})
        state.end_refresh(connection, first, "CANCELED", None, 5)
        state.cancel_refresh(connection, TABLE, second, 6)
        assert state.get_refresh(connection, TABLE, second).state == "CANCELED"
        assert state.pending_refresh(connection) is None
        newest = state.newest_refreshes(connection, TABLE)
        assert [r.id for r in newest] == [second, first]


def test_tables_that_differ_by_letter_case_are_one_to_a_monitor(engine):
    with database.transaction(engine) as connection:
        state.create_monitor(connection, TABLE, "t1", {}, "ann", 1)
        with pytest.raises(errors.AlreadyExists):
            state.create_monitor(connection, TABLE.replace("p_", "P_"), "t1", {}, "ann", 1)
        assert state.monitor_of_id(connection, "t1").table_name == TABLE
        assert state.monitor_of_id(connection, "t2") is None


def test_a_baseline_of_kind_none_ends_the_one_before_and_the_next_has_a_new_number(engine):
    with database.transaction(engine) as connection:
        state.create_monitor(connection, TABLE, "t1", {}, "ann", 1)
        state.add_baseline(connection, TABLE, {"kind": "previous", "windows": 1}, "ann", 1)
        state.add_baseline(connection, TABLE, {"kind": "none"}, "ann", 2)
        assert state.current_baseline(connection, TABLE) is None
        third = state.add_baseline(connection, TABLE, {"kind": "training", "table": "t"}, "ann", 3)
        assert third == 3 and state.current_baseline(connection, TABLE).baseline_version == 3


def test_refreshes_are_paged_and_only_an_ended_one_can_be_deleted(engine):
    with database.transaction(engine) as connection:
        state.create_monitor(connection, TABLE, "t1", {}, "ann", 1)
        ids = [state.request_refresh(connection, TABLE, "MANUAL", None, n) for n in range(3)]
        page = state.newest_refreshes(connection, TABLE, 2)
        assert [r.id for r in page] == [ids[2], ids[1]]
        after = state.newest_refreshes(connection, TABLE, 2, before_id=page[-1].id)
        assert [r.id for r in after] == [ids[0]]
        with pytest.raises(errors.Conflict, match="PENDING"):
            state.delete_refresh(connection, TABLE, ids[0])
        state.cancel_refresh(connection, TABLE, ids[0], 5)
        state.delete_refresh(connection, TABLE, ids[0])
        with pytest.raises(errors.DoesNotExist):
            state.delete_refresh(connection, TABLE, ids[0])


def test_what_a_dead_process_left_running_waits_again(engine):
    with database.transaction(engine) as connection:
        refresh = state.request_refresh(connection, TABLE, "SCHEDULE", None, 1)
        state.start_refresh(connection, refresh, 2)
        assert state.queue_again(connection) == 1
        assert state.pending_refresh(connection).id == refresh


def test_a_latch_holds_until_a_new_experiment_begins(engine):
    with database.transaction(engine) as connection:
        first = experiment_state.begin_experiment(connection, "delay", {}, "ann", 1)
        experiment_state.latch(connection, first, "v1", "v2", "worse", 2)
        experiment_state.latch(connection, first, "v1", "v2", "worse again", 3)
        assert experiment_state.is_latched(connection, first, "v1", "v2")
        experiment_state.end_experiment(connection, "delay")
        assert experiment_state.get_experiment(connection, "delay") is None
        second = experiment_state.begin_experiment(connection, "delay", {}, "ann", 4)
        assert second.number == 2
        assert not experiment_state.is_latched(connection, second, "v1", "v2")


def test_of_two_changes_of_one_ramp_the_second_is_told_that_it_is_late(engine):
    with database.transaction(engine) as connection:
        experiment_state.put_ramp(connection, "delay", {"challenger": "v2"}, 1)
        seen = experiment_state.get_ramp(connection, "delay")
        assert experiment_state.change_ramp(connection, seen, {"state": "held"})
        assert not experiment_state.change_ramp(connection, seen, {"state": "completed"})
        assert experiment_state.get_ramp(connection, "delay").state == "held"


def test_deleting_an_endpoint_ends_what_waited_for_it(engine):
    with database.transaction(engine) as connection:
        experiment_state.begin_experiment(connection, "delay", {}, "ann", 1)
        experiment_state.put_ramp(connection, "delay", {"challenger": "v2"}, 1)
        state.forget_endpoint(connection, "delay", 9)
        assert experiment_state.get_experiment(connection, "delay") is None
        assert experiment_state.get_ramp(connection, "delay") is None
        assert state.open_alerts(connection) == []
        assert state.open_recommendations(connection, "delay") == []
