"""Does every client drive the server unchanged, call by call?

    python benchmarks/serving/clients.py [--clients databricks-sdk==0.57.0 mlflow curl ...]

databricks-sdk 0.57, 0.71 and the installed one, mlflow.deployments, openai and curl: each call that
the client has on serving endpoints, each documented field there and back, each class of error, and
each route under each method without a token. One `inferlake up` with real models serves them all at
once. Older clients get virtual environments of their own, made once below the temporary folder;
that needs a package index. Prints a table client x call; exits 1 unless every call is ok or is one
that the client does not have (-).
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import up

FOLDER = Path(__file__).parent
OLD = ("databricks-sdk==0.57.0", "databricks-sdk==0.71.0")
CLIENTS = (*OLD, "databricks-sdk", "mlflow", "openai", "curl")
SCRIPTS = {"databricks-sdk": "calls_sdk.py", "mlflow": "calls_mlflow.py",
           "openai": "calls_openai.py", "curl": "calls_curl.py"}  # fmt: skip
LIMITS = {"INFERLAKE_MODEL_TIMEOUT_SECONDS": "3", "INFERLAKE_QUEUE_TIMEOUT_SECONDS": "1"}
MODELS = """
from sklearn.linear_model import LinearRegression
rows = pandas.DataFrame({"a": [0.0, 1.0, 0.0, 5.0], "b": [0.0, 0.0, 1.0, 2.0]})
signature = infer_signature(rows, [0.0])
for factor in (1, 10):
    model = LinearRegression(fit_intercept=False).fit(rows, factor * (rows.a + rows.b))
    model.coef_ = model.coef_.round()
    register(mlflow.sklearn.log_model, "main.clients.sum", model, signature=signature)
class Wild(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        what = model_input["a"].iloc[0]
        if what == 1 and model_input["b"].iloc[0] == 0: raise ValueError("a is one")
        if what == 2: return [object()]
        if what == 6: raise RuntimeError("Unexpected error, Unknown worker environment")
        if what == 3: time.sleep(2.2)
        if what == 4: time.sleep(30)
        return [1.0] * len(model_input)
class Slow(Wild):
    def load_context(self, context):
        time.sleep(4)
class Broken(Wild):
    def load_context(self, context):
        raise ValueError("this model cannot be loaded")
for name, model in (("wild", Wild()), ("slow", Slow()), ("broken", Broken())):
    register_python(f"main.clients.{name}", model, signature=signature)
"""


def interpreter(client: str) -> Path:
    """The Python that has this client: ours, or that of an environment made for it."""
    if "==" not in client:
        return Path(sys.executable)
    home = Path(tempfile.gettempdir()) / "inferlake-clients" / client.replace("==", "-")
    made = home / "bin" / "python"
    if not (home / "complete").exists():
        uv = [sys.executable, "-m", "uv"]
        venv = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)]
        subprocess.run(venv, check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", str(made), client]
        subprocess.run(install, check=True)
        (home / "complete").touch()
    return made


def drive(client: str, url: str) -> dict[str, str]:
    """What each call of a client said. Raises RuntimeError if its script breaks off."""
    name, _, version = client.partition("==")
    prefix = f"{name.replace('databricks-', '')}{version.replace('.', '')}"
    command = [str(interpreter(client)), str(FOLDER / SCRIPTS[name]), url, up.TOKEN, prefix]
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DATABRICKS_", "OPENAI_", "MLFLOW_", "PYTHONPATH"))
    }
    found = subprocess.run(command, capture_output=True, text=True, env=kept, timeout=600)
    said = {line["call"]: line["said"] for line in map(json.loads, found.stdout.splitlines())}
    if not said or found.returncode not in (0, 1):
        raise RuntimeError(f"{client}: {found.stderr[-2000:]}")
    return said


def installed(client: str) -> str:
    """A client with its version."""
    if "==" in client or client == "curl":
        return client
    return f"{client} {importlib.metadata.version(client)}"


def show(found: dict[str, dict[str, str]]) -> int:
    """Print the table; the number of calls that failed."""
    failed = 0
    for script in dict.fromkeys(SCRIPTS[client.partition("==")[0]] for client in found):
        columns = [each for each in found if SCRIPTS[each.partition("==")[0]] == script]
        names = list(dict.fromkeys(call for each in columns for call in found[each]))
        width = max(map(len, names))
        print(f"\n{'':{width}}  " + "  ".join(f"{installed(each):>22}" for each in columns))
        for name in names:
            cells = [found[each].get(name, "-") for each in columns]
            failed += sum(cell not in ("ok", "-") for cell in cells)
            marks = (cell if cell in ("ok", "-") else "FAILED" for cell in cells)
            print(f"{name:{width}}  " + "  ".join(f"{mark:>22}" for mark in marks))
            for each, cell in zip(columns, cells, strict=True):
                if cell not in ("ok", "-"):
                    print(f"    {each}: {cell}")
    return failed


def measure(clients: Sequence[str], folder: Path) -> dict[str, dict[str, str]]:
    """client -> call -> `ok`, `-`, or how it failed; all clients at the same time."""
    with up.served(folder, MODELS, **LIMITS) as url, ThreadPoolExecutor(len(clients)) as pool:
        found = pool.map(lambda client: drive(client, url), clients)
        return dict(zip(clients, found, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", nargs="+", default=CLIENTS, metavar="CLIENT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clients-") as name:
        found = measure(options.clients, Path(name))
    failed = show(found)
    calls = sum(len(said) for said in found.values())
    print(f"\n{calls} calls of {len(found)} clients, {failed} failed: "
          f"{'met' if not failed else 'MISSED'}")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
