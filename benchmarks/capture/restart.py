"""Does a gateway with a gigabyte of unfinished log answer later than one with none?

    python benchmarks/capture/restart.py [--rounds 3]

The gateway of a running `inferlake up` is killed; the supervisor starts it again. Counted: from the
start of the new process (each crash is answered later than the one before) until the first answer
of a model. In turn with an empty log and with 1 GiB of sealed segments,
written with `wal.Log` itself, of a gateway that is gone; the committer and its maintenance process
stand still meanwhile. Bar: the median with the log is 0.3 s above that without, at most. Exit code
1 if it is missed.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import live
import traffic

from capture import wal, wal_files
from capture.settings import Settings
from serving import processes, supervisor

BAR_SECONDS = 0.3
BACKLOG_BYTES = 1 << 30
SEGMENT_BYTES = 1 << 19  # as 2,000 requests a second fill until one is sealed by age
GROUP_ROWS = 64
MODEL, ENDPOINT = "main.bench.m", "restart"


def register(settings: Settings) -> None:
    """The model of `live` in the embedded registry."""
    import mlflow

    (settings.data_dir / "mlflow").mkdir(parents=True)
    mlflow.set_tracking_uri(settings.mlflow_uri)
    settings.mlflow_artifacts_dir.mkdir()
    experiment = mlflow.create_experiment("bench", settings.mlflow_artifacts_dir.as_uri())
    live.save_model(settings.data_dir / "model")
    model = mlflow.sklearn.load_model(str(settings.data_dir / "model"))
    signature = mlflow.models.get_model_info(str(settings.data_dir / "model")).signature
    with mlflow.start_run(experiment_id=experiment):
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=signature,
            registered_model_name=MODEL,
            pip_requirements=["mlflow", "scikit-learn"],
            serialization_format="cloudpickle",
        )


def call(url: str, token: str, body: Any = None) -> Any:
    """One call of the API: POST with a body, else GET. Raises OSError if it is not answered 2xx."""
    content = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, content, headers), timeout=30) as found:
        return json.loads(found.read())


def is_answered(running: supervisor.Running) -> bool:
    """Whether the model answers a query."""
    records = [dict.fromkeys(live.COLUMNS, 0.5)]
    try:
        call(running.url + live.path(ENDPOINT), running.admin_token, {"dataframe_records": records})
    except OSError:
        return False
    return True


def fill(folder: Path) -> None:
    """A gigabyte of log, sealed, whose writer is gone."""
    settings = Settings(data_dir=folder, wal_seal_bytes=SEGMENT_BYTES)
    group = traffic.recorded(GROUP_ROWS)
    log = wal.Log(folder, settings)
    while log.appended_bytes < BACKLOG_BYTES:
        log.append(traffic.TABLE, "payload", group)
    log.close()


def first_answer(running: supervisor.Running) -> float:
    """Kill the gateway; seconds from the start of the next one until a model answers."""
    before = gateway(running)
    os.kill(before.pid, signal.SIGKILL)
    live.wait_for(lambda: not processes.alive(before), "the end of the gateway")
    live.wait_for(lambda: is_answered(running), "the next gateway")
    return processes.age_seconds(gateway(running))


def gateway(running: supervisor.Running) -> processes.Identity:
    """The gateway's process."""
    ready = json.loads((running.settings.run_dir / "gateway.ready").read_text())
    found = processes.identity(ready["pid"])
    if found is None:
        raise RuntimeError("The gateway ended.")
    return found


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds to the first answer, by what the log holds."""
    settings = Settings(data_dir=folder / "data", port=0)
    register(settings)
    fill(folder / "backlog")
    taken: dict[str, list[float]] = {"empty": [], "1 GiB": []}
    with supervisor.Running(settings, dashboard=False) as running:
        entity = {"name": "m", "entity_name": MODEL, "entity_version": "1"}
        config = {
            "served_entities": [{**entity, "workload_size": "Small"}],
            "auto_capture_config": {"catalog_name": "main", "schema_name": "bench"},
        }
        url = f"{running.url}/api/2.0/serving-endpoints"
        call(url, running.admin_token, {"name": ENDPOINT, "config": config})
        live.wait_for(lambda: is_answered(running), "endpoint")
        committer = json.loads((running.settings.run_dir / "committer.ready").read_text())["pid"]
        held = processes.members(os.getpgid(committer))
        for process in held:
            os.kill(process.pid, signal.SIGSTOP)
        try:
            for number in range(-1, rounds):  # one round to warm up
                for held_bytes, found in taken.items():
                    seconds = _with_log(running, folder, held_bytes != "empty")
                    if number >= 0:
                        found.append(seconds)
                        print(f"round {number + 1}, {held_bytes}: {seconds:.2f} s", flush=True)
        finally:
            _clear(running.settings.wal_dir)
            for process in held:
                os.kill(process.pid, signal.SIGCONT)
    return taken


def _with_log(running: supervisor.Running, folder: Path, is_full: bool) -> float:
    """One restart, on a log that holds nothing but what it should."""
    log = running.settings.wal_dir
    _clear(log)
    (backlog,) = wal_files.incarnations(folder / "backlog")
    if is_full:
        place = log / backlog.name
        place.mkdir(mode=0o700)
        for segment in backlog.iterdir():
            os.link(segment, place / segment.name)
    return first_answer(running)


def _clear(log: Path) -> None:
    """Take away what gateways that are gone have left."""
    found = wal_files.incarnations(log)
    found.sort(key=lambda folder: (folder / wal_files.OWNER_LOCK).stat().st_mtime)
    for folder in found[:-1]:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    folder = Path(tempfile.mkdtemp(prefix="inferlake-restart-"))
    try:
        taken = measure(folder, parser.parse_args().rounds)
    finally:
        shutil.rmtree(folder)
    empty, full = (statistics.median(found) for found in taken.values())
    print(
        f"restart to first answer: empty log {empty:.2f} s, 1 GiB {full:.2f} s, "
        f"{full - empty:+.2f} s more, bar {BAR_SECONDS} s, ratio {full / empty:.2f}: "
        f"{'met' if full - empty <= BAR_SECONDS else 'MISSED'}"
    )
    return 0 if full - empty <= BAR_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
