"""Replicas as processes: started, asked, stopped. Real workers, a real zygote."""

import asyncio
import dataclasses
import shutil
import signal
import sys
from pathlib import Path

import pytest

from capture import logline
from capture.settings import Settings
from serving import logs, processes, registry
from serving.controller import local, orders, replicas

ENTITY = "e" * 32


@pytest.fixture
def settings(tmp_path):
    made = Settings(data_dir=tmp_path)
    made.run_dir.mkdir()
    return made


@pytest.fixture
def backend(settings):
    made = local.Local(settings)
    yield made
    made.close()


def order(settings, folder, replica_id="0123456789ab", fresh=False, **variables):
    log = orders.log_path(settings, "numbers", "double", replica_id)
    spec = {
        "endpoint": "numbers",
        "entity": "double",
        "served_entity_id": ENTITY,
        "socket": str(settings.run_dir / f"w-{replica_id}.sock"),
        "model_path": str(folder),
        "feature_spec": None,
        "snapshots_dir": str(settings.snapshots_dir),
        "batch": None,
        "max_batch": 64,
        "log": str(log),
    }
    return orders.Order(replica_id, sys.executable, spec, variables, log, fresh)


async def answered(process, ordered):
    """Ask until the replica answers; gives its report."""
    ready = asyncio.Event()
    pulse = replicas.Pulse(process, ordered.spec["socket"], ENTITY)
    task = asyncio.create_task(replicas.follow(pulse, ready.set))
    try:
        async with asyncio.timeout(120):
            await ready.wait()
    finally:
        task.cancel()
    return pulse


def test_a_replica_starts_with_and_without_a_zygote_answers_and_ends(
    backend, settings, models, eventually
):
    folder = models.folders["1"]

    async def both():
        forked = order(settings, folder)
        plain = order(settings, folder, "ba9876543210", fresh=True)
        backend.warm()
        for ordered in (forked, plain):
            process = await backend.start(ordered)
            pulse = await answered(process, ordered)
            assert pulse.report["entity"] == "double"
            assert processes.alive(process)
            assert backend.adopt(ordered.spec["socket"]) == process
            yield process

    async def run():
        return [process async for process in both()]

    forked, plain = asyncio.run(run())
    for process in (forked, plain):
        backend.stop(process, 60, now=0)
        backend.expire(now=1)
        eventually(lambda process=process: not processes.alive(process))
    backend.remove_files("0123456789ab")
    assert not list(settings.run_dir.glob("w-0123456789ab.*"))


def test_a_replica_sees_its_own_variables_and_none_of_the_servers(
    backend, settings, models, monkeypatch, eventually
):
    monkeypatch.setenv("INFERLAKE_ADMIN_TOKEN", "top-secret-token")
    ordered = order(settings, models.folders["1"], fresh=True, GREETING="hello")
    process = asyncio.run(backend.start(ordered))
    seen = Path(f"/proc/{process.pid}/environ")
    eventually(lambda: b"GREETING=hello" in seen.read_bytes())
    assert b"top-secret-token" not in seen.read_bytes()
    backend.stop(process, 0, now=0)
    backend.expire(now=1)
    eventually(lambda: not processes.alive(process))


def test_a_model_that_raises_ends_its_process_and_leaves_its_words(
    backend, settings, models, eventually
):
    ordered = order(settings, models.folders["2"], fresh=True)
    process = asyncio.run(backend.start(ordered))
    eventually(lambda: not processes.alive(process))
    assert "RuntimeError: the weights are missing" in logs.tail(ordered.log)


@pytest.mark.parametrize("fresh", [False, True])
def test_no_process_is_started_for_a_model_whose_files_changed(
    backend, settings, models, tmp_path, fresh
):
    folder = shutil.copytree(models.folders["1"], tmp_path / "model")
    model = registry.Accepted("double", "1", folder, registry.digest(folder))
    ordered = dataclasses.replace(order(settings, folder, fresh=fresh), model=model)
    about = (folder / "MLmodel").read_bytes()
    (folder / "MLmodel").write_bytes(about[:-1] + b"#")  # same size
    with pytest.raises(local.StartFailed, match=r"'double' version 1 changed .* a new version"):
        asyncio.run(backend.start(ordered))
    assert not ordered.log.exists()


def test_a_model_that_prints_its_secret_and_dies_does_not_show_it(
    backend, settings, tmp_path, eventually
):
    path = tmp_path / "data"
    path.mkdir()
    logline.hide("hunter2-hunter2")
    (path / "MLmodel").write_text("flavors: {python_function: {loader_module: teller}}\n")
    (path / "teller.py").write_text(
        "import os\ndef _load_pyfunc(path):\n    raise ValueError(os.environ['API_KEY'])\n"
    )
    telling = (path / "MLmodel").read_text().replace("teller}", "teller, code: .}")
    (path / "MLmodel").write_text(telling)
    ordered = order(settings, path, fresh=True, API_KEY="hunter2-hunter2")
    process = asyncio.run(backend.start(ordered))
    eventually(lambda: not processes.alive(process))
    assert "ValueError: ***" in logs.tail(ordered.log)
    assert "hunter2" not in logs.tail(ordered.log)
    assert "hunter2" not in logs.of_entity(settings, "numbers", "double")


def test_what_does_not_end_in_time_is_killed_with_its_group(backend, settings, models, eventually):
    ordered = order(settings, models.folders["3"], fresh=True)
    process = asyncio.run(backend.start(ordered))
    processes.signal_group(process, signal.SIGSTOP)
    backend.stop(process, 10, now=0)
    backend.expire(now=9)
    assert processes.alive(process)
    backend.stop(process, 100, now=9)
    backend.expire(now=11)
    eventually(lambda: not processes.alive(process))
    eventually(lambda: not processes.members(process.pid))


def test_an_interpreter_that_is_not_there_is_told(backend, settings, models):
    ordered = order(settings, models.folders["1"])
    gone = orders.Order("1" * 12, "/nowhere/python", ordered.spec, {}, ordered.log, False)
    with pytest.raises(local.StartFailed, match="No such file"):
        asyncio.run(backend.start(gone))
