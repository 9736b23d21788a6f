"""Reads in a child process: answers, errors, deadlines, a child that dies."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from capture import errors, reading

CHILD = """
import os, threading, time
from datetime import UTC, datetime
from capture import errors, reading

def echo(settings, arguments): return {"data_dir": str(settings.data_dir), **arguments}
def refuse(settings, arguments): raise errors.DoesNotExist("Nothing there.")
def fail(settings, arguments): raise KeyError("secret detail")
def die(settings, arguments): os._exit(3)
def pid(settings, arguments): return os.getpid()
def stall(settings, arguments): threading.Event().wait()
def values(settings, arguments): return [datetime(2024, 1, 2, tzinfo=UTC), float("nan")]
def meet(settings, arguments): barrier.wait(30); return "met"
barrier = threading.Barrier(2)

names = ("echo", "refuse", "fail", "die", "pid", "stall", "values", "meet")
reading.serve({name: globals()[name] for name in names})
"""

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[reading.Reader]:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = {**os.environ, "INFERLAKE_DATA_DIR": "here"}
    reader = reading.Reader([sys.executable, str(script)], environment)
    yield reader
    await reader.close()


async def test_a_question_is_answered_with_settings_from_the_environment(reader):
    answer = await reader.ask("echo", {"text": "ä", "n": [1, None]})
    assert answer == {"data_dir": "here", "text": "ä", "n": [1, None]}


async def test_many_questions_get_each_their_own_answer(reader):
    answers = await asyncio.gather(*(reader.ask("echo", {"n": n}, 60) for n in range(200)))
    assert [answer["n"] for answer in answers] == list(range(200))


async def test_two_reads_run_at_the_same_time(reader):
    assert await asyncio.gather(*(reader.ask("meet", {}, 60) for _ in range(2))) == ["met"] * 2


async def test_times_are_rfc_3339_and_nan_is_null(reader):
    assert await reader.ask("values", {}) == ["2024-01-02T00:00:00Z", None]


async def test_an_operations_own_error_comes_back_as_it_was(reader):
    with pytest.raises(errors.DoesNotExist, match=r"^Nothing there\.$"):
        await reader.ask("refuse", {})


async def test_an_unforeseen_error_tells_no_detail_to_the_caller(reader):
    with pytest.raises(errors.InternalError) as caught:
        await reader.ask("fail", {})
    assert "secret" not in caught.value.message


async def test_an_unknown_operation_is_named(reader):
    with pytest.raises(errors.InvalidParameter, match="nothing"):
        await reader.ask("nothing", {})


async def test_a_child_that_dies_fails_what_was_asked_and_is_replaced(reader):
    first = await reader.ask("pid", {})
    with pytest.raises(errors.Unavailable):
        await reader.ask("die", {})
    assert await reader.ask("pid", {}) != first


async def test_a_child_that_is_killed_is_replaced(reader):
    first = await reader.ask("pid", {})
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            assert await reader.ask("pid", {}) != first
            return
        except errors.Unavailable:
            continue
    pytest.fail("the child was not replaced")


async def test_a_read_that_takes_too_long_is_unavailable_and_holds_up_no_other(reader):
    first = await reader.ask("pid", {})
    with pytest.raises(errors.Unavailable, match=r"0\.2 seconds"):
        await reader.ask("stall", {}, deadline_seconds=0.2)
    assert await reader.ask("pid", {}) == first


async def test_a_child_with_all_threads_stuck_is_replaced(reader):
    first = await reader.ask("pid", {})
    for _ in range(reading.THREADS):
        with pytest.raises(errors.Unavailable):
            await reader.ask("stall", {}, deadline_seconds=0.2)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            assert await reader.ask("pid", {}) != first
            return
        except errors.Unavailable:
            continue
    pytest.fail("the child was not replaced")


async def test_closing_ends_the_child(reader):
    pid = await reader.ask("pid", {})
    await reader.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_child_ends_when_its_parent_vanishes(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import asyncio, os, sys\n"
        "from capture import reading\n"
        "async def main():\n"
        "    reader = reading.Reader([sys.executable, sys.argv[1]])\n"
        "    print(await reader.ask('pid', {}, 60), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(parent), str(script), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{int(output)}").exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
