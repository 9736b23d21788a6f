import os
import signal
from pathlib import Path

from serving.worker import process as process_module


def test_forks_serve_different_models_and_lead_their_own_sessions(worker):
    for process in (worker("linear"), worker("wild")):
        assert process.connect().report()["pid"] == process.pid
        assert os.getsid(process.pid) == process.pid


def test_a_fork_has_the_environment_it_was_given_and_not_the_zygotes(worker):
    process = worker("environment")
    process.connect().report()
    names = process.log.read_text().partition("NAMES ")[2].partition("\n")[0].split()
    ours = set(process_module.LIMITS) | set(process_module.QUIET)
    assert "HOME" in os.environ
    assert {name for name in names if not name.startswith("MLFLOW")} - ours == {"PATH"}


def test_a_forks_output_goes_to_its_own_log(worker):
    process = worker("linear")
    process.connect().report()
    assert '"event": "model_loaded"' in process.log.read_text()


def test_a_fork_that_ended_is_waited_for(worker, eventually):
    process = worker("linear")
    process.connect().report()
    os.kill(process.pid, signal.SIGTERM)
    assert eventually(lambda: not Path(f"/proc/{process.pid}").exists())


def test_a_broken_order_is_answered_and_the_next_is_served(zygote, worker):
    assert "error" in zygote.order(b"nonsense\n")
    assert "error" in zygote.order(b"{}\n")
    assert "error" in zygote.order(b"no end of line")
    assert worker("linear").connect().report()["entity"] == "m"


def test_the_zygote_never_loads_what_forks_cannot_bear(zygote):
    maps = Path(f"/proc/{zygote.popen.pid}/maps").read_text()
    assert "polars" not in maps
    assert "deltalake" not in maps


def test_the_zygote_has_one_thread_besides_arrows_allocator(zygote):
    tasks = Path(f"/proc/{zygote.popen.pid}/task").iterdir()
    names = [(task / "comm").read_text().strip() for task in tasks]
    assert len([name for name in names if not name.startswith("jemalloc")]) == 1
