"""Templates of a controller and their zygote: made, used, given up, ended. Real processes."""

import asyncio
import dataclasses
import shutil
import socket
import struct
import sys

import pytest

from capture.settings import Settings
from serving import processes, registry
from serving.controller import local, orders, replicas

GIB = 1 << 30


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    made = Settings(data_dir=tmp_path_factory.mktemp("p"), template_memory_bytes=GIB)
    made.run_dir.mkdir()
    return made


@pytest.fixture(scope="module")
def backend(settings):
    made = local.Local(settings)
    made.warm()
    yield made
    made.close()


def order(settings, folder, entity_id, replica_id="0123456789ab", **variables):
    log = orders.log_path(settings, "numbers", entity_id, replica_id)
    spec = {
        "endpoint": "numbers",
        "entity": entity_id,
        "served_entity_id": entity_id,
        "socket": str(settings.run_dir / f"w-{replica_id}.sock"),
        "model_path": str(folder),
        "log": str(log),
    }
    return orders.Order(replica_id, sys.executable, spec, variables, log, False)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def template(backend, settings, ordered):
    """Has one made; gives its identity once it takes orders, None if there is none."""
    backend.templates.make(ordered)
    await until(lambda: backend.templates.stage(ordered.entity_id) != "making")
    is_there = backend.templates.stage(ordered.entity_id) == "ready"
    return owner(max(ready(settings), key=lambda path: path.stat().st_mtime)) if is_there else None


def ready(settings):
    return list(settings.run_dir.glob("t-*.sock"))


def owner(path):
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return processes.identity(struct.unpack("3i", raw)[0])


def end(backend, process, eventually):
    backend.stop(process, 0, now=0)
    backend.expire(now=1)
    eventually(lambda: not processes.alive(process))


def test_a_template_forks_replicas_until_nobody_wants_its_entity(
    backend, settings, models, eventually
):
    ordered = order(settings, models.folders["1"], "a")

    async def woken():
        assert await backend.wake(ordered) is None
        parent = await template(backend, settings, ordered)
        assert not backend.templates.wants("a")
        process = await backend.wake(ordered)
        pulse = replicas.Pulse(process, ordered.spec["socket"], "a")
        task = asyncio.create_task(replicas.follow(pulse, lambda: None))
        await until(lambda: pulse.answered)
        task.cancel()
        return parent, process

    parent, process = asyncio.run(woken())
    backend.templates.keep({"a"})
    assert processes.alive(parent)
    backend.templates.keep(set())
    eventually(lambda: not processes.alive(parent))
    assert processes.alive(process)
    assert not ready(settings)
    end(backend, process, eventually)


def test_what_cannot_have_a_template_is_not_asked_again(backend, settings, models):
    raises = order(settings, models.folders["2"], "raises")
    assert asyncio.run(template(backend, settings, raises)) is None
    assert not backend.templates.wants("raises")
    backend.templates.make(order(settings, models.folders["1"], "read", OMP_NUM_THREADS="2"))
    assert not backend.templates.wants("read")
    assert backend.templates.wants("another")


def test_a_model_whose_files_changed_gets_no_template(backend, settings, models, tmp_path):
    folder = shutil.copytree(models.folders["1"], tmp_path / "model")
    model = registry.Accepted("double", "1", folder, registry.digest(folder))
    (folder / "MLmodel").write_text("other")
    ordered = dataclasses.replace(order(settings, folder, "changed"), model=model)
    assert asyncio.run(template(backend, settings, ordered)) is None
    assert not ordered.log.exists()
    assert not backend.templates.wants("changed")


def test_an_entity_whose_fork_did_not_answer_has_no_template_any_more(
    backend, settings, models, eventually
):
    ordered = order(settings, models.folders["1"], "frozen")
    parent = asyncio.run(template(backend, settings, ordered))
    backend.templates.distrust("frozen")
    eventually(lambda: not processes.alive(parent))
    assert asyncio.run(backend.wake(ordered)) is None
    assert not backend.templates.wants("frozen")


def test_templates_hold_no_more_memory_than_they_may(backend, settings, models, eventually):
    one, two = (order(settings, models.folders["1"], name) for name in ("one", "two"))
    first = asyncio.run(template(backend, settings, one))
    holds = processes.private_bytes(first.pid)
    backend.templates.most_bytes = int(1.5 * holds)
    second = asyncio.run(template(backend, settings, two))
    eventually(lambda: not processes.alive(first))
    assert processes.alive(second)
    backend.templates.keep({"one", "two"})
    assert not backend.templates.wants("one")  # or the two would take turns for ever
    backend.templates.keep({"one", "two"}, awake={"one"})
    assert backend.templates.wants("one")
    backend.templates.keep(set())
    backend.templates.most_bytes = 1000
    assert asyncio.run(template(backend, settings, two)) is None
    backend.templates.most_bytes = GIB


def test_templates_die_with_their_zygote_and_replicas_do_not(backend, settings, models, eventually):
    ordered = order(settings, models.folders["1"], "last")

    async def woken():
        parent = await template(backend, settings, ordered)
        return parent, await backend.wake(ordered)

    parent, process = asyncio.run(woken())
    backend.zygotes.close()
    eventually(lambda: not processes.alive(parent))
    assert processes.alive(process)
    backend.templates.keep({"last"})
    assert backend.templates.wants("last")
    end(backend, process, eventually)
