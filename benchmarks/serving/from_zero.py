"""How long does a request wait that arrives at an entity without replicas?

    python benchmarks/serving/from_zero.py [--repeats 20] [--kinds fresh zygote template]

Through HTTP, on a whole server (`inferlake up`), with a logistic regression on 30 columns: the
request is held, a worker started, the answer sent. Peer, in the same run: a fresh process for every
start (an entity whose variables are read at an interpreter's start cannot be forked). Bars, median
of all repeats: zygote 0.6 s, template 0.15 s; exit code 1 if one is missed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import cold_start

from capture.settings import Settings
from serving import supervisor

BARS = {"zygote": 0.6, "template": 0.15}
KINDS = ("fresh", "zygote", "template")
IDLE_SECONDS = 1.0
PATIENCE_SECONDS = 180
ROW = {"dataframe_records": [{f"x{i}": 0.25 for i in range(30)}]}


class Server:
    """A running server, asked over HTTP as its administrator."""

    def __init__(self, running: supervisor.Running) -> None:
        self.running = running
        self.settings = running.settings

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One exchange in JSON. Raises HTTPError."""
        request = urllib.request.Request(
            self.running.url + path,
            None if body is None else json.dumps(body).encode(),
            {
                "Authorization": f"Bearer {self.running.admin_token}",
                "Content-Type": "application/json",
            },
            method=method,
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.loads(answer.read())

    def state(self, endpoint: str) -> str:
        """What the server says of an endpoint's only entity."""
        return self.message(self.ask("GET", f"/api/2.0/serving-endpoints/{endpoint}"))

    @staticmethod
    def message(found: dict[str, Any]) -> str:
        """The message in an endpoint object, of its only entity."""
        config = found.get("config") or {}
        entities = config.get("served_entities") or found["pending_config"]["served_entities"]
        return str(entities[0]["state"]["deployment_state_message"])

    def event(self, name: str) -> int:
        """How many events of this name the controller has logged so far."""
        path = self.settings.logs_dir / "controller.log"
        return path.read_text().count(f'"event": "{name}"') if path.exists() else 0

    def create(self, endpoint: str, variables: dict[str, str]) -> None:
        """An endpoint of the one model that sleeps soon; returns when it does."""
        entity = {
            "name": "lr",
            "entity_name": "lr",
            "entity_version": "1",
            "workload_size": "Small",
            "scale_to_zero_enabled": True,
            "environment_vars": variables,
        }
        body = {"name": endpoint, "config": {"served_entities": [entity]}}
        self.ask("POST", "/api/2.0/serving-endpoints", body)
        wait_for(lambda: self.state(endpoint) == "Scaled to zero")


def wait_for(condition: Any) -> None:
    """Until the condition is true. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS} s")
        time.sleep(0.05)


def register(settings: Settings) -> None:
    """The model, in the registry of a data directory."""
    import mlflow

    place = settings.mlflow_artifacts_dir
    place.mkdir(parents=True)
    cold_start.save_model(place / "lr")
    client = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    client.create_registered_model("lr")
    client.create_model_version("lr", (place / "lr").as_uri())


def measure(server: Server, endpoint: str, repeats: int) -> list[float]:
    """Seconds of each first answer."""
    found = []
    for _ in range(repeats):
        wait_for(lambda: server.state(endpoint) == "Scaled to zero")
        # The last replica settles, drains and ends after its entity is marked.
        time.sleep(2.5)
        begun = time.perf_counter()
        answer = server.ask("POST", f"/serving-endpoints/{endpoint}/invocations", ROW)
        found.append(time.perf_counter() - begun)
        assert len(answer["predictions"]) == 1
    return found


def run(kind: str, repeats: int) -> list[float]:
    """Seconds to the first answer of one kind of start, on a server of its own."""
    with tempfile.TemporaryDirectory(prefix="zero-") as place:
        settings = Settings(
            data_dir=Path(place),
            port=0,
            scale_to_zero_after_seconds=IDLE_SECONDS,
            template_memory_bytes=(1 << 30) if kind == "template" else 0,
        )
        register(settings)
        with supervisor.Running(settings, dashboard=False) as running:
            server = Server(running)
            server.create(kind, {"OMP_NUM_THREADS": "1"} if kind == "fresh" else {})
            if kind == "template":
                wait_for(lambda: server.event("template_ready") or server.event("template_ended"))
            return measure(server, kind, repeats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    os.environ["DO_NOT_TRACK"] = "1"
    medians: dict[str, float] = {}
    for kind in options.kinds:
        repeats = max(1, options.repeats // 4) if kind == "fresh" else options.repeats
        found = run(kind, repeats)
        medians[kind] = statistics.median(found)
        p90 = statistics.quantiles(found, n=10)[-1] if len(found) > 1 else found[0]
        bar = f"bar {BARS[kind]:g} s" if kind in BARS else "no bar"
        print(
            f"{kind:<9} p50 {medians[kind]:6.3f} s  p90 {p90:6.3f} s  "
            f"({min(found):.3f} - {max(found):.3f}, {repeats} starts; {bar})",
            flush=True,
        )
    for kind in set(medians) - {"fresh"}:
        if "fresh" in medians:
            print(f"ratio fresh / {kind}: {medians['fresh'] / medians[kind]:.1f}")
    missed = [kind for kind, bar in BARS.items() if medians.get(kind, 0) > bar]
    print(f"MISSED: {', '.join(missed)}" if missed else "all bars met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
