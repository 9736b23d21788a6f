import json
from pathlib import Path

FOREIGN = ("polars", "deltalake", "/pandas/", "/scipy/", "/sklearn/", "/mlflow/")


def test_the_gateway_loads_no_library_of_models_or_tables(shared):
    shared.ask("wild", [{"c0": 4, "c1": 0}])
    maps = Path(f"/proc/{shared.process.pid}/maps").read_text()
    assert [name for name in FOREIGN if name in maps] == []


def test_a_worker_loads_no_library_of_tables(shared):
    shared.ask("wild", [{"c0": 4, "c1": 0}])
    maps = Path(f"/proc/{shared.replicas[0].pid}/maps").read_text()
    assert [name for name in ("polars", "deltalake") if name in maps] == []


def test_the_ready_file_names_the_process_and_its_port(shared):
    told = json.loads((shared.settings.run_dir / "gateway.ready").read_text())
    assert told == {"pid": shared.process.pid, "port": shared.port}


def test_health_is_open(shared):
    with shared.connect() as bare:
        bare.send(b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n")
        assert bare.receive()[0] == 200
