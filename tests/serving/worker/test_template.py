"""Templates: which models get one, and what its forks are. Real processes."""

import json
import os
import signal
import socket
import sys
import threading
import time
import warnings

import pytest

from serving import processes, wire


class Template:
    """A template that a zygote was asked for."""

    def __init__(self, zygote, worker):
        self.path = worker.spec.with_name("t.sock")
        self.log = worker.log.with_name("template.log")
        order = {"spec": str(worker.spec), "env": {"PATH": os.environ["PATH"]},
                 "log": str(self.log), "template": str(self.path)}  # fmt: skip
        self.pid = zygote.order(json.dumps(order).encode() + b"\n")["pid"]

    @property
    def ended(self):
        return processes.identity(self.pid) is None

    def fork(self, worker):
        order = {"spec": str(worker.spec), "env": {"PATH": os.environ["PATH"], "MINE": "1"},
                 "log": str(worker.log)}  # fmt: skip
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.path))
            connection.sendall(json.dumps(order).encode() + b"\n")
            worker.pid = json.loads(connection.recv(1000))["pid"]


@pytest.fixture
def template(zygote):
    """template(worker that was not started) -> a template of its model; ended after the test."""
    made = []

    def make(worker):
        made.append(Template(zygote, worker))
        return made[-1]

    yield make
    for each in made:
        if not each.ended:
            os.killpg(each.pid, signal.SIGKILL)


def test_forks_of_a_template_answer_as_the_model_does_and_lead_their_own_sessions(
    unstarted, template, worker, records, eventually
):
    one, two = unstarted("linear"), unstarted("linear", "two")
    parent = template(one)
    eventually(parent.path.exists)
    row = {f"c{number}": number / 3 for number in range(8)}
    for process in (one, two):
        parent.fork(process)
        answer = process.connect().ask(wire.pack_request(1, records(row)))[0]
        expected = worker("linear").connect().ask(wire.pack_request(1, records(row)))[0]
        assert answer.body == expected.body
        assert os.getsid(process.pid) == process.pid
    assert len({one.pid, two.pid, parent.pid}) == 3
    assert one.log.exists()
    assert "model_loaded" not in one.log.read_text()
    os.killpg(parent.pid, signal.SIGKILL)
    eventually(lambda: parent.ended)
    assert one.connect().report()["pid"] == one.pid


def test_a_fork_of_a_template_shares_what_was_loaded(unstarted, template, eventually):
    process = unstarted("forest")
    parent = template(process)
    eventually(parent.path.exists)
    parent.fork(process)
    process.connect().report()
    assert processes.private_bytes(process.pid) < 25 << 20


def test_a_model_of_a_flavour_that_may_hold_anything_has_no_template(
    unstarted, template, eventually
):
    refused = template(unstarted("wild"))
    eventually(lambda: refused.ended)
    assert "no template: models of mlflow.pyfunc.loaders.code_model" in refused.log.read_text()
    assert not refused.path.exists()


def restless(misbehave):
    """A model that does this when it is loaded; its class travels inside its file."""
    from sklearn.linear_model import LinearRegression

    class Restless(LinearRegression):
        def __setstate__(self, state):
            self.__dict__.update(state)
            misbehave(self)

    return Restless().fit([[0.0], [1.0]], [0.0, 1.0])


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        (lambda model: setattr(model, "kept", os.open(os.devnull, os.O_RDONLY)), "it opened"),
        (lambda _: threading.Thread(target=time.sleep, args=(60,)).start(), "it has 2 threads"),
        (lambda _: sys.modules.update(torch=sys), "it imported torch"),
    ],
)
def test_a_model_that_a_fork_would_harm_has_no_template(
    misbehave, reason, tmp_path, unstarted, template, eventually
):
    import mlflow.sklearn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            restless(misbehave),
            tmp_path / "restless",
            pip_requirements=["mlflow"],
            serialization_format="cloudpickle",
        )
    refused = template(unstarted(tmp_path / "restless"))
    eventually(lambda: refused.ended)
    assert f"no template: {reason}" in refused.log.read_text()
