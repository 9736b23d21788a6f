"""The controller as a process beside a real database and real models: what it makes of a
configuration, of crashes, and of its own end."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from capture import database, lives, names
from capture.settings import Settings
from serving import logs, processes, registry, replica_state, state, vault, wire
from serving.controller import devices


class House:
    """A data directory with a controller."""

    def __init__(self, place, models, **changes):
        self.settings = Settings(data_dir=place, mlflow_tracking_uri=models.uri, **changes)
        self.changes = changes
        database.migrate(self.settings)
        self.engine = database.open_engine(self.settings)
        self.process = None

    def start(self, stop_workers=True):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("INFERLAKE_")}
        chosen = {f"INFERLAKE_{k.upper()}": str(v) for k, v in self.changes.items()}
        env = {
            **clean,
            **chosen,
            "INFERLAKE_DATA_DIR": str(self.settings.data_dir),
            "MLFLOW_TRACKING_URI": self.settings.mlflow_uri,
            "INFERLAKE_STOP_WORKERS": "1" if stop_workers else "0",
        }
        with (self.settings.data_dir / "controller.log").open("ab") as out:
            command = [sys.executable, "-m", "serving.controller"]
            self.process = subprocess.Popen(command, env=env, stderr=out)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def close(self):
        for replica in self.replicas():
            if replica.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(replica.pid, signal.SIGKILL)
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.engine.dispose()

    def knock(self):
        path = str(self.settings.run_dir / "controller.sock")
        knocker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with knocker, contextlib.suppress(OSError):
            knocker.sendto(b"look", path)

    def create(self, name):
        now_ms = time.time_ns() // 1_000_000
        row = state.Endpoint(
            id=names.new_id(),
            name=name,
            creator="admin",
            description=None,
            created_ms=now_ms,
            updated_ms=now_ms,
            active_version=None,
            pending_version=None,
            config_update=state.NOT_UPDATING,
            update_message=None,
            update_started_ms=None,
            stopped=False,
            tags=[],
            ai_gateway=None,
            rate_limits=None,
            email_notifications=None,
            telemetry_config=None,
            route_optimized=False,
            budget_policy_id=None,
            row_version=1,
        )
        with database.transaction(self.engine) as connection:
            state.insert_endpoint(connection, row)

    def configure(self, name, *entities):
        shares = [100, *[0] * (len(entities) - 1)]
        routes = [
            {
                "served_model_name": each["name"],
                "served_entity_name": each["name"],
                "traffic_percentage": share,
            }
            for each, share in zip(entities, shares, strict=True)
        ]
        config = {
            "served_entities": list(entities),
            "traffic_config": {"routes": routes, "sticky": None},
            "auto_capture_config": None,
        }
        with database.transaction(self.engine) as connection:
            state.accept_configuration(
                connection,
                state.endpoint(connection, name),
                config,
                created_by="admin",
                reason=None,
                origin="user",
                at_once=False,
                now_ms=time.time_ns() // 1_000_000,
            )
        self.knock()

    def delete(self, name):
        with database.transaction(self.engine) as connection:
            state.delete_endpoint(connection, state.endpoint(connection, name))
        self.knock()

    def demand(self, entity, waiting):
        wanted = replica_state.Demand(
            entity["id"], "gateway-1", waiting, 0, time.time_ns() // 1_000_000
        )
        with database.transaction(self.engine) as connection:
            replica_state.set_demand(connection, [wanted])
        self.knock()

    def endpoint(self, name):
        with database.reading(self.engine) as connection:
            return state.endpoint(connection, name)

    def said(self, entity):
        with database.reading(self.engine) as connection:
            return replica_state.states_of(connection)[entity["id"]]

    def replicas(self, entity=None, only=None):
        with database.reading(self.engine) as connection:
            found = replica_state.all_replicas(connection)
        return [
            each
            for each in found
            if (entity is None or each.served_entity_id == entity["id"])
            and (only is None or each.state == only)
        ]


def entity(name, version, **changes):
    return {
        "id": names.new_id(),
        "name": name,
        "entity_name": "double",
        "entity_version": version,
        "workload_type": "CPU",
        "workload_size": "Small",
        "scale_to_zero_enabled": False,
        **changes,
    }


def asked(replica, x):
    """One prediction of a replica over its socket."""
    return round(answered(replica, x)["predictions"][0], 6)


def refused(replica, x):
    """Why a replica does not answer."""
    return answered(replica, x)["message"]


def answered(replica, x):
    body = json.dumps({"dataframe_records": [{"x": x}]}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(replica.socket)
        connection.sendall(wire.pack_request(1, body))
        frames = wire.answer_reader()
        while True:
            found = frames.feed(connection.recv(65_536))
            if found:
                return json.loads(found[0].body)


@pytest.fixture(scope="module")
def running(models, tmp_path_factory):
    house = House(tmp_path_factory.mktemp("c"), models, scale_to_zero_after_seconds=0.5)
    house.start()
    yield house
    house.close()


def serve(house, eventually, name, *entities):
    """An endpoint with these entities, once it answers."""
    house.create(name)
    house.configure(name, *entities)
    eventually(lambda: house.endpoint(name).config_update == state.NOT_UPDATING)


def test_a_new_endpoint_answers_before_it_is_said_to(running, eventually):
    one = entity("one", "1")
    serve(running, eventually, "first", one)
    (replica,) = running.replicas(one)
    assert replica.state == "READY"
    assert asked(replica, 21.0) == 42.0
    assert running.said(one).deployment == "DEPLOYMENT_READY"
    assert running.endpoint("first").active_version == 1
    log = running.settings.logs_dir / "first" / "one" / f"replica-{replica.id}.log"
    assert log.is_file()


def test_the_ways_to_a_model_are_told_with_the_requests_that_each_answered(running, eventually):
    one = entity("one", "1")
    serve(running, eventually, "ways", one)
    (replica,) = running.replicas(one, only="READY")
    assert replica.report["ways"]["numpy"] == replica.report["ways"]["mlflow"] == "proven"
    assert asked(replica, 1.0) == asked(replica, 1.0) == 2.0
    eventually(lambda: sum(running.replicas(one)[0].report["calls"].values()) == 2)


def test_a_model_may_answer_as_much_as_the_setting_says(models, tmp_path, eventually):
    house = House(tmp_path, models, max_answer_bytes=5)
    house.start()
    try:
        one = entity("one", "1")
        serve(house, eventually, "bounded", one)
        (replica,) = house.replicas(one)
        assert "5 are allowed" in refused(replica, 21.0)
    finally:
        house.close()


def test_an_update_takes_over_and_the_old_replica_ends(running, eventually):
    old, new = entity("old", "1"), entity("new", "4")
    serve(running, eventually, "update", old)
    running.configure("update", new)
    eventually(lambda: running.endpoint("update").active_version == 2)
    (replica,) = running.replicas(new)
    assert asked(replica, 1.0) == 0.0
    eventually(lambda: not running.replicas(old))


def test_a_change_of_traffic_keeps_every_process(running, eventually):
    one, two = entity("one", "1"), entity("two", "4")
    serve(running, eventually, "traffic", one, two)
    before = {each.pid for each in running.replicas(one) + running.replicas(two)}
    running.configure("traffic", two, one)
    eventually(lambda: running.endpoint("traffic").active_version == 2)
    after = {each.pid for each in running.replicas(one) + running.replicas(two)}
    assert (len(after), before) == (2, after)


def test_a_model_that_raises_fails_the_update_with_its_words_and_the_old_one_serves(
    running, eventually
):
    good, bad = entity("good", "1"), entity("bad", "2")
    serve(running, eventually, "broken", good)
    (before,) = running.replicas(good)
    running.configure("broken", bad)
    eventually(lambda: running.endpoint("broken").config_update == state.UPDATE_FAILED)
    found = running.endpoint("broken")
    assert "RuntimeError: the weights are missing" in found.update_message
    assert found.active_version == 1
    assert running.said(bad).deployment == "DEPLOYMENT_FAILED"
    eventually(lambda: not running.replicas(bad))
    assert running.replicas(good) == [before]
    assert asked(before, 3.0) == 6.0
    better = entity("better", "4")
    running.configure("broken", better)
    eventually(lambda: running.endpoint("broken").active_version == 3)


def test_a_model_that_is_not_there_fails_the_update(running, eventually):
    missing = entity("missing", "99")
    running.create("nowhere")
    running.configure("nowhere", missing)
    eventually(lambda: running.endpoint("nowhere").config_update == state.UPDATE_FAILED)
    assert "does not exist" in running.endpoint("nowhere").update_message


def test_a_model_whose_files_changed_is_not_started_again(models, tmp_path, eventually):
    folder = shutil.copytree(models.folders["1"], tmp_path / "model")
    uri = _registry_of(models, tmp_path / "mlflow.db", folder)
    house = House(tmp_path / "data", SimpleNamespace(uri=uri))
    one = entity("one", "1", model_digest=registry.digest(folder))
    try:
        house.start()
        serve(house, eventually, "changed", one)
        (before,) = house.replicas(one)
        about = (folder / "MLmodel").read_bytes()
        (folder / "MLmodel").write_bytes(about[:-1] + b"#")  # same size
        os.killpg(before.pid, signal.SIGKILL)
        eventually(
            lambda: "changed since the version was accepted" in (house.said(one).message or "")
        )
        assert "model 'double' version 1" in house.said(one).message
        assert not house.replicas(one, "READY")
        (folder / "MLmodel").write_bytes(about)
        eventually(lambda: house.replicas(one, "READY"))
    finally:
        house.close()


def _registry_of(models, path, folder):
    """A copy of the registry whose version 1 lies in this folder; its address."""
    shutil.copy(models.uri.removeprefix("sqlite:///"), path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        where = (folder.as_uri(), folder.as_uri())
        db.execute(
            "UPDATE model_versions SET source = ?, storage_location = ? WHERE version = 1", where
        )
        db.commit()
    return f"sqlite:///{path}"


def test_a_model_that_prints_its_secret_and_dies_tells_all_but_it(models, tmp_path, eventually):
    folder = shutil.copytree(models.folders["2"], tmp_path / "model")
    (script,) = folder.glob("*.py")
    script.write_text(
        script.read_text().replace(
            "'the weights are missing'", "__import__('os').environ['API_KEY']"
        )
    )
    uri = _registry_of(models, tmp_path / "mlflow.db", folder)
    house = House(tmp_path / "data", SimpleNamespace(uri=uri))
    with database.transaction(house.engine) as connection:
        vault.put(connection, house.settings, "s", "k", "hunter2-hunter2", 1)
    teller = entity("teller", "1", environment_vars={"API_KEY": "{{secrets/s/k}}"})
    try:
        house.start()
        house.create("telling")
        house.configure("telling", teller)
        eventually(lambda: house.endpoint("telling").config_update == state.UPDATE_FAILED)
        told = (house.endpoint("telling").update_message, house.said(teller).message)
        assert all("RuntimeError: ***" in each and "hunter2" not in each for each in told)
        written = (house.settings.data_dir / "controller.log").read_text()
        assert "RuntimeError: ***" in written and "hunter2" not in written
    finally:
        house.close()


def test_an_endpoint_whose_model_hangs_can_be_deleted(running, eventually):
    stuck = entity("stuck", "3")
    running.create("hanging")
    running.configure("hanging", stuck)
    replica = eventually(lambda: [r for r in running.replicas(stuck) if r.pid])[0]
    running.delete("hanging")
    eventually(lambda: not running.replicas(stuck))
    assert processes.identity(replica.pid) is None


def test_a_killed_replica_comes_back(running, eventually):
    one = entity("one", "1")
    serve(running, eventually, "killed", one)
    (before,) = running.replicas(one)
    os.kill(before.pid, signal.SIGKILL)
    after = eventually(
        lambda: [r for r in running.replicas(one, only="READY") if r.id != before.id]
    )[0]
    assert asked(after, 5.0) == 10.0
    assert not [r for r in running.replicas(one) if r.id == before.id]


def test_a_frozen_replica_is_found_and_replaced(running, eventually):
    one = entity("one", "1")
    serve(running, eventually, "frozen", one)
    (before,) = running.replicas(one)
    os.kill(before.pid, signal.SIGSTOP)
    after = eventually(
        lambda: [r for r in running.replicas(one, only="READY") if r.id != before.id]
    )[0]
    assert asked(after, 5.0) == 10.0
    eventually(lambda: processes.identity(before.pid) is None)


def test_an_idle_entity_sleeps_and_waiting_requests_wake_one_replica(running, eventually):
    lazy = entity("lazy", "1", scale_to_zero_enabled=True)
    serve(running, eventually, "sleepy", lazy)
    eventually(lambda: not running.replicas(lazy))
    assert running.said(lazy).message == "Scaled to zero"
    (template,) = eventually(lambda: templates(running))
    running.demand(lazy, waiting=200)
    (replica,) = eventually(lambda: running.replicas(lazy, only="READY"))
    assert asked(replica, 2.0) == 4.0
    assert parent(replica.pid) == template
    running.demand(lazy, waiting=0)
    eventually(lambda: not running.replicas(lazy))
    running.delete("sleepy")
    eventually(lambda: processes.identity(template) is None)


def templates(house):
    """Pids of the templates that take orders."""
    found = []
    for path in house.settings.run_dir.glob("t-*.sock"):
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(path))
            found.append(
                struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            )
    return found


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_a_fork_that_hangs_is_replaced_by_a_fresh_process(running, eventually):
    shy = entity("shy", "6")
    serve(running, eventually, "shy", shy)
    (replica,) = running.replicas(shy)
    assert asked(replica, 1.0) == 1.0
    assert Path(f"/proc/{replica.pid}/cmdline").read_text().split("\0")[2] == "serving.worker"
    running.delete("shy")


@pytest.mark.slow
def test_a_gigabyte_of_prints_does_not_stay_on_the_disk(running, eventually):
    chatty = entity("chatty", "5")
    running.create("chatty")
    running.configure("chatty", chatty)
    eventually(lambda: running.endpoint("chatty").config_update == state.NOT_UPDATING)
    (replica,) = running.replicas(chatty)
    assert asked(replica, 1.0) == 1.0
    eventually(
        lambda: (
            sum(
                path.stat().st_size
                for path in (running.settings.logs_dir / "chatty" / "chatty").iterdir()
            )
            <= logs.LOG_BYTES
        )
    )
    kept = logs.of_entity(running.settings, "chatty", "chatty")
    assert "x" * 99 in kept.splitlines()
    running.delete("chatty")


def test_an_entity_that_waits_for_a_gpu_says_so_and_can_be_replaced_and_deleted(
    running, eventually
):
    if devices.present():
        pytest.skip("this machine has what the entity asks for")
    waits = entity("waits", "1", workload_type="GPU_SMALL")
    running.create("gpu")
    running.configure("gpu", waits)
    said = "Waiting for a GPU: GPU_SMALL takes 1 GPU, this machine has none"
    eventually(lambda: running.said(waits).message.startswith(said))
    assert running.endpoint("gpu").config_update == state.IN_PROGRESS
    running.configure("gpu", entity("plain", "1"))
    eventually(lambda: running.endpoint("gpu").config_update == state.NOT_UPDATING)
    running.configure("gpu", waits)
    eventually(lambda: running.said(waits).message.startswith(said))
    running.delete("gpu")
    eventually(lambda: not running.replicas(waits))


def test_templates_end_with_a_killed_controller_and_the_next_makes_its_own(
    models, tmp_path, eventually
):
    house = House(tmp_path, models, scale_to_zero_after_seconds=0.2)
    try:
        house.start()
        lazy = entity("lazy", "1", scale_to_zero_enabled=True)
        serve(house, eventually, "sleepy", lazy)
        (before,) = eventually(lambda: templates(house))
        assert house.end(signal.SIGKILL) == -signal.SIGKILL
        eventually(lambda: processes.identity(before) is None)
        house.start()
        (after,) = eventually(lambda: templates(house))
        assert house.end() == 0
        eventually(lambda: processes.identity(after) is None)
        assert not list(house.settings.run_dir.glob("t-*"))
    finally:
        house.close()


def test_a_model_over_its_memory_is_not_let_in(models, tmp_path, eventually):
    house = House(tmp_path, models, worker_memory_bytes=50 << 20)
    try:
        house.start()
        large = entity("large", "1")
        house.create("large")
        house.configure("large", large)
        eventually(lambda: house.endpoint("large").config_update == state.UPDATE_FAILED)
        assert "more memory" in house.endpoint("large").update_message
        eventually(lambda: not house.replicas())
        assert house.end() == 0
    finally:
        house.close()


def test_replicas_survive_the_controller_and_are_adopted(models, tmp_path, eventually):
    house = House(tmp_path, models)
    try:
        house.start(stop_workers=False)
        one, two = entity("one", "1"), entity("two", "4")
        serve(house, eventually, "lasting", one)
        before = house.replicas()
        assert house.end(signal.SIGKILL) == -signal.SIGKILL
        assert asked(before[0], 4.0) == 8.0
        house.start(stop_workers=False)
        house.configure("lasting", one, two)
        eventually(lambda: house.endpoint("lasting").active_version == 2)
        assert [(r.id, r.pid) for r in house.replicas(one)] == [(before[0].id, before[0].pid)]
        assert house.end() == 0
        kept = house.replicas()
        assert len(kept) == 2
        assert all(processes.identity(each.pid) for each in kept)
        os.kill(kept[0].pid, signal.SIGKILL)
        house.start(stop_workers=True)
        eventually(lambda: kept[0].pid not in {r.pid for r in house.replicas(one, only="READY")})
        eventually(lambda: house.replicas(one, only="READY"))
        last = house.replicas()
        assert house.end() == 0
        assert house.replicas() == []
        assert not any(processes.identity(each.pid) for each in last)
        assert not list(house.settings.run_dir.glob("*.sock"))
        with database.reading(house.engine) as connection:
            lived = lives.between(connection, None, None, "lasting")
        assert [life.served_entity for life in lived] == ["one", "two", "one"]
        assert {life.replica_id for life in lived} == {r.id for r in (*before, *kept, *last)}
        assert all(life.until_ms > life.from_ms for life in lived)
    finally:
        house.close()
