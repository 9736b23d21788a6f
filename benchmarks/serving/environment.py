"""How long until a model is ready whose packages are others than the server's?

    python benchmarks/serving/environment.py [--scikit-learn 1.7.2]

On a whole server (`inferlake up`): a scikit-learn model that was made and logged under another
version of scikit-learn is deployed and answers from an environment that uv builds for it, first
with an empty cache (`cold`, a figure without a bar: it is the index's speed), then, its environment
thrown away, with the cache that is there (`warm`). Prints the stages that the API told meanwhile,
with the time of each. Bar: warm, from the request to READY, 30 s, and every stage seen in the
entity's state message or the build log; exit code 1 if it is missed. Needs a package index.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import from_zero

from capture.settings import Settings
from serving import supervisor

BAR_SECONDS = 30.0
STAGES = ("resolving", "downloading", "installing", "importing")
AUTHOR = """
import sys, warnings
warnings.simplefilter("ignore")
import mlflow, numpy as np, pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
folder, version = sys.argv[1:]
draw = np.random.default_rng(7)
rows = pd.DataFrame(draw.normal(size=(1000, 30)), columns=[f"x{i}" for i in range(30)])
model = LogisticRegression().fit(rows, (rows["x0"] > 0).astype(int))
mlflow.sklearn.save_model(
    model, folder, signature=infer_signature(rows, model.predict(rows)),
    pip_requirements=[f"mlflow-skinny=={mlflow.__version__}", f"scikit-learn=={version}", "pandas"],
    serialization_format="cloudpickle",
)
"""


def author(place: Path, version: str, folder: Path) -> None:
    """Save a model under this version of scikit-learn, as its author did on a machine of theirs."""
    import mlflow

    python = place / "author" / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, python.parents[1]],
                   check=True)  # fmt: skip
    packages = [f"mlflow-skinny=={mlflow.__version__}", f"scikit-learn=={version}", "pandas"]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)
    subprocess.run([python, "-c", AUTHOR, folder, version], check=True)


def register(settings: Settings, version: str, place: Path) -> None:
    """The author's model, in the registry of a data directory."""
    import mlflow

    folder = settings.mlflow_artifacts_dir / "lr"
    folder.parent.mkdir(parents=True)
    author(place, version, folder)
    client = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    client.create_registered_model("lr")
    client.create_model_version("lr", folder.as_uri())


def deploy(server: from_zero.Server, endpoint: str) -> tuple[float, list[tuple[float, str]], str]:
    """Seconds to READY, messages with the second each was first seen, and the build log."""
    entity = {"name": "lr", "entity_name": "lr", "entity_version": "1", "workload_size": "Small"}
    begun = time.perf_counter()
    server.ask("POST", "/api/2.0/serving-endpoints",
               {"name": endpoint, "config": {"served_entities": [entity]}})  # fmt: skip
    seen: list[tuple[float, str]] = []
    while True:
        found = server.ask("GET", f"/api/2.0/serving-endpoints/{endpoint}")
        message = server.message(found)
        seconds = time.perf_counter() - begun
        if not seen or seen[-1][1] != message:
            seen.append((seconds, message))
        if found["state"]["config_update"] == "UPDATE_FAILED" or seconds > 600:
            raise RuntimeError(f"not deployed: {message}")
        if found["state"]["ready"] == "READY":
            break
        time.sleep(0.1)
    answer = server.ask("POST", f"/serving-endpoints/{endpoint}/invocations", from_zero.ROW)
    assert len(answer["predictions"]) == 1
    path = f"/api/2.0/serving-endpoints/{endpoint}/served-models/lr/build-logs"
    return seconds, seen, server.ask("GET", path)["logs"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scikit-learn", default="1.7.2", metavar="VERSION")
    version = parser.parse_args().scikit_learn
    missed = []
    with tempfile.TemporaryDirectory(prefix="env-") as name:
        place = Path(name)
        settings = Settings(data_dir=place / "data", port=0)
        register(settings, version, place)
        with supervisor.Running(settings, dashboard=False) as running:
            server = from_zero.Server(running)
            for kind in ("cold", "warm"):
                seconds, seen, build_log = deploy(server, kind)
                print(f"{kind}: READY after {seconds:.1f} s")
                for at, message in seen:
                    print(f"  {at:6.1f} s  {message}")
                print("  build log: " + ", ".join(re.findall(r"\[ *[\d.]+ s\] .*", build_log)))
                told = " ".join(message for _, message in seen) + build_log
                wanted = STAGES if kind == "cold" else [s for s in STAGES if s != "downloading"]
                missed += [f"stage {stage} ({kind})" for stage in wanted if stage not in told]
                server.ask("DELETE", f"/api/2.0/serving-endpoints/{kind}")
                for ready in settings.environments_dir.glob("*/ready"):
                    shutil.rmtree(ready.parent)
            if seconds > BAR_SECONDS:
                missed.append(f"warm {seconds:.1f} s")
    print(f"bar {BAR_SECONDS:g} s warm, all stages told: "
          f"{'MISSED: ' + ', '.join(missed) if missed else 'met'}")  # fmt: skip
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
