"""How many times the requests per second of `mlflow models serve`?

    python benchmarks/serving/mlflow_ratio.py [--seconds 6] [--pairs 3] [--connections 64]

Logistic regression on 30 doubles, one row a request, 64 connections, on this machine in one run.
Peer: `mlflow models serve`. Ours: gateway with token, route, capture and counts, one worker, and
the committer that writes the rows away. The two are measured in turn, so that a busy moment of the
machine hits both. Needs `wrk`. Exit code 1 if the median ratio is under the bar.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BAR = 20.0
COLUMNS = [f"c{number}" for number in range(30)]
TOKEN = "benchmark-admin-token"
PATIENCE_SECONDS = 180
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
os.environ.update(QUIET)
# mlflow starts "uvicorn" by name: the one beside this interpreter, activated or not.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


class Load(NamedTuple):
    """What wrk saw: requests per second, and latencies as it prints them."""

    per_second: float
    p50: str
    p99: str
    failed: int


def save_model(folder: Path) -> None:
    """A logistic regression on 30 doubles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
        import numpy as np
        import pandas as pd
        from mlflow.models import infer_signature
        from sklearn.linear_model import LogisticRegression

        random = np.random.default_rng(0)
        rows = pd.DataFrame(random.normal(size=(500, len(COLUMNS))), columns=COLUMNS)
        target = (rows.c0 + rows.c1 > 0).astype(int)
        model = LogisticRegression().fit(rows, target)
        mlflow.sklearn.save_model(
            model,
            folder,
            signature=infer_signature(rows, model.predict(rows)),
            pip_requirements=["mlflow", "scikit-learn"],
            serialization_format="cloudpickle",
        )


def free_ports() -> tuple[int, int]:
    """Two ports that are free just now."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def wait_for(condition: Callable[[], object]) -> None:
    """Until the condition is true. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS} s")
        time.sleep(0.05)


@contextmanager
def process(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a file, ended with all it started."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)


def answers(url: str, body: bytes) -> bool:
    """Whether a query is answered with predictions."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return "predictions" in json.loads(found.read())
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def measure(url: str, script: Path, connections: int, seconds: int) -> Load:
    """One run of wrk."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)

    def found(pattern: str) -> str:
        match = re.search(pattern, text)
        return match[1] if match else "?"

    return Load(
        float(found(r"Requests/sec:\s+([\d.]+)")),
        found(r"\n\s+50%\s+(\S+)"),
        found(r"\n\s+99%\s+(\S+)"),
        int(failed[1]) if failed else 0,
    )


def cpu_seconds(pid: int) -> float:
    """Processor time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def prepare(folder: Path, model: Path) -> Path:
    """A data directory with a live endpoint `lr` and its replica, as the controller would leave it;
    gives the worker's spec file."""
    from capture import catalog, database
    from capture.settings import Settings
    from serving import replica_state, state

    settings = Settings(data_dir=folder)
    folder.mkdir()
    database.migrate(settings)
    settings.run_dir.mkdir()
    entity = {"id": "e1", "name": "m", "entity_name": "main.d.m", "entity_version": "1"}
    route = {"served_model_name": "m", "served_entity_name": "m", "traffic_percentage": 100}
    table = {"enabled": True, "catalog_name": "main", "schema_name": "d", "table_name_prefix": "lr"}
    config = {
        "served_entities": [entity],
        "traffic_config": {"routes": [route], "sticky": None},
        "auto_capture_config": table,
    }
    seen = state.Endpoint(
        "1" * 32, "lr", "admin", None, 1, 1, None, None, "NOT_UPDATING", None, None, False, [],
        None, None, None, None, False, None, 1,
    )  # fmt: skip
    engine = database.open_engine(settings)
    path = settings.run_dir / "w-1.sock"
    with database.transaction(engine) as db:
        state.insert_endpoint(db, seen)
        state.accept_configuration(
            db, seen, config, created_by="admin", reason=None, origin="user", at_once=True,
            now_ms=1,
        )  # fmt: skip
        replica_state.add_replica(
            db,
            replica_state.Replica(
                "r1", seen.id, "e1", str(path), None, None, "READY", None, 1, 1, 4
            ),
        )
        columns = dict.fromkeys(COLUMNS, "double")
        catalog.record(db, "main.d.lr_payload", seen.id, "lr", columns, {}, 1)
    engine.dispose()
    spec = settings.run_dir / "w-1.json"
    content = {"endpoint": "lr", "entity": "m", "served_entity_id": "e1", "socket": str(path),
               "model_path": str(model)}  # fmt: skip
    spec.write_text(json.dumps(content))
    return spec


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=6, help="length of one measurement")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each")
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="ratio-") as name:
        return compare(Path(name), options)


def compare(folder: Path, options: argparse.Namespace) -> int:
    """Start both, measure in turn, print; 0 if the bar is met."""
    model, data = folder / "model", folder / "data"
    save_model(model)
    body = json.dumps({"dataframe_records": [dict.fromkeys(COLUMNS, 0.25)]}).encode()
    script = folder / "query.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer {TOKEN}"\nwrk.body = [[{body.decode()}]]\n'
    )
    spec = prepare(data, model)
    peer_port, port = free_ports()
    ours = {"INFERLAKE_DATA_DIR": str(data), "INFERLAKE_ADMIN_TOKEN": TOKEN,
            "INFERLAKE_PORT": str(port)}  # fmt: skip
    python = sys.executable
    mlflow = [str(Path(python).parent / "mlflow"), "models", "serve", "-m", str(model), "-p",
              str(peer_port), "--env-manager", "local"]  # fmt: skip
    peer_url = f"http://127.0.0.1:{peer_port}/invocations"
    url = f"http://127.0.0.1:{port}/serving-endpoints/lr/invocations"
    with (
        process(mlflow, folder / "mlflow.log"),
        process([python, "-m", "serving.worker", "--spec", str(spec)], folder / "w.log") as worker,
        process([python, "-m", "serving.gateway"], folder / "gateway.log", **ours) as gateway,
        process([python, "-m", "capture"], folder / "capture.log", **ours),
    ):
        for name, where in (("mlflow", peer_url), ("gateway", url)):
            try:
                wait_for(lambda where=where: answers(where, body))
            except TimeoutError:
                print((folder / f"{name}.log").read_text()[-3000:], file=sys.stderr)
                raise
        measure(peer_url, script, options.connections, 1)
        measure(url, script, options.connections, 1)
        ratios, served, spent = [], 0.0, {"gateway": 0.0, "worker": 0.0}
        for number in range(options.pairs):
            peer = measure(peer_url, script, options.connections, options.seconds)
            # What wrk left behind in its line must not run while the other is measured.
            wait_for(lambda: answers(peer_url, body))
            before = cpu_seconds(gateway.pid), cpu_seconds(worker.pid)
            mine = measure(url, script, options.connections, options.seconds)
            spent["gateway"] += cpu_seconds(gateway.pid) - before[0]
            spent["worker"] += cpu_seconds(worker.pid) - before[1]
            served += mine.per_second * options.seconds
            ratios.append(mine.per_second / peer.per_second)
            print(
                f"pair {number + 1}: mlflow models serve {peer.per_second:8.1f} req/s"
                f" (p50 {peer.p50}, p99 {peer.p99}, failed {peer.failed})"
                f" | inferlake {mine.per_second:8.1f} req/s"
                f" (p50 {mine.p50}, p99 {mine.p99}, failed {mine.failed})"
                f" | ratio {ratios[-1]:.1f}",
                flush=True,
            )
    for part, seconds in spent.items():
        print(f"CPU of the {part} per request: {seconds / served * 1e6:.0f} us")
    ratio = statistics.median(ratios)
    print(f"ratio {ratio:.1f} (median of {len(ratios)}), bar {BAR:g}: "
          f"{'met' if ratio >= BAR else 'MISSED'}")  # fmt: skip
    return 0 if ratio >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
