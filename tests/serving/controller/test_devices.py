"""GPUs are counted from the driver's folder, and each is held once."""

import sys

from serving.controller import devices, orders


def test_gpus_are_those_of_the_driver(tmp_path):
    assert devices.present(tmp_path / "none") == 0
    for bus in ("0000:17:00.0", "0000:65:00.0"):
        (tmp_path / bus).mkdir()
    assert devices.present(tmp_path) == 2


def test_a_gpu_that_a_replica_holds_is_not_free():
    assert devices.free(4, [1, 2]) == [0, 3]
    assert devices.free(0, []) == []


def test_a_replica_sees_its_own_gpus_alone_and_others_none():
    asked = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert orders.environment(asked, None, (2, 3))["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert orders.environment(asked, None)["CUDA_VISIBLE_DEVICES"] == ""


def test_what_an_interpreter_reads_at_its_start_forbids_a_fork(tmp_path):
    def forkable(fresh=False, **variables):
        log = tmp_path / "log"
        return orders.Order("r", sys.executable, {}, variables, log, fresh).forkable

    assert forkable(GREETING="hello")
    assert not forkable(OMP_NUM_THREADS="2")
    assert not forkable(LD_PRELOAD="x.so")
    assert not forkable(fresh=True)
