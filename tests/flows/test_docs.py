"""The pages of docs/ as a newcomer follows them: every block of code runs, in order, on one server.

Blocks share one session, as a reader's would: Python blocks one notebook, indented lines one
terminal. What a page takes as given (a registered model, tables of one's own) is made beforehand.
"""

import http.server
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
TOKEN = "bootstrap-admin-token"
PATIENCE_SECONDS = 240

REGISTER_IRIS = """
import sys
import mlflow, mlflow.sklearn, pandas
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
uri, artifacts = sys.argv[1:]
mlflow.set_tracking_uri(uri)
experiment = mlflow.create_experiment("docs", artifact_location=artifacts)
rows = pandas.DataFrame({"length": [1.4, 1.3, 4.7, 5.1], "width": [0.2, 0.3, 1.4, 1.9]})
for strength in (1.0, 0.1):
    model = LogisticRegression(C=strength).fit(rows, [0, 0, 1, 1])
    with mlflow.start_run(experiment_id=experiment):
        mlflow.sklearn.log_model(
            model, name="model", signature=infer_signature(rows, model.predict(rows)),
            registered_model_name="main.default.iris",
        )
"""


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes webhooks."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def receiver() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


def terminal_blocks(page: str) -> list[str]:
    outside = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(), flags=re.M | re.S)
    found = re.findall(r"(?:^    .+\n)+", outside, re.M)
    return [textwrap.dedent(block) for block in found]


class Reader:
    """Somebody with one notebook and one terminal. `address` and `hook`: what stands for the ones
    in the docs."""

    def __init__(self, folder: Path, address: str, hook: str) -> None:
        self.folder, self.address, self.hook = folder, address, hook
        self.notebook: dict[str, Any] = {"TOKEN": TOKEN}
        self.said = ""

    def meant(self, text: str) -> str:
        here = text.replace("http://127.0.0.1:8000", self.address)
        return here.replace("https://example.org", self.hook)

    def runs(self, page: str) -> str:
        """Run a page's blocks of Python, then those of the terminal; the terminal's output."""
        for block in python_blocks(page):
            exec(compile(self.meant(block), page, "exec"), self.notebook)  # noqa: S102  our own pages
        self.said = ""
        for block in terminal_blocks(page):
            self.said += self.types(block)
        return self.said

    def types(self, commands: str) -> str:
        environment = {
            **os.environ,
            "INFERLAKE_URL": self.address,
            "INFERLAKE_TOKEN": TOKEN,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.meant(commands)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        assert "error_code" not in done.stdout, f"{commands}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def reader(
    tmp_path_factory: pytest.TempPathFactory,
    up_on: type[Any],
    receiver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reader]:
    """A reader in the folder in which `inferlake up` runs, with the registered model."""
    folder = tmp_path_factory.mktemp("docs")  # a test's own name would make its path too long
    data_dir = folder / "inferlake-data"
    registry = data_dir / "mlflow"
    registry.mkdir(parents=True)
    uri = f"sqlite:///{registry / 'mlflow.db'}"
    command = [sys.executable, "-c", REGISTER_IRIS, uri, (registry / "artifacts").as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    up = up_on(data_dir, "--no-dashboard", INFERLAKE_ADMIN_TOKEN=TOKEN)
    up.start()
    try:
        assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("INFERLAKE_DATA_DIR", str(data_dir))
        yield Reader(folder, up.url, receiver)
    finally:
        assert up.end() == 0, up.errors.read_text()


def test_a_newcomer_follows_the_pages(reader: Reader) -> None:
    answered = reader.runs("serve-a-model.md")
    assert '"predictions"' in answered
    assert reader.notebook["answer"].predictions == [1]

    reader.runs("split-traffic.md")
    seen = reader.notebook["w"].serving_endpoints.get("iris")
    shares = {r.served_model_name: r.traffic_percentage for r in seen.config.traffic_config.routes}
    assert shares == {"v1": 80, "v2": 20}

    assert '"copying"' in reader.runs("try-in-the-shadow.md")
    assert '"accepted"' in reader.runs("send-labels.md")
    assert '"policy"' in reader.runs("run-an-experiment.md")
    assert reader.runs("get-told.md")
    assert '"cost_reason":null' in reader.runs("see-what-it-costs.md")
    assert '"token.create"' in reader.runs("give-access.md")


def test_features_are_joined_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    monkeypatch.setenv("INFERLAKE_DATA_DIR", str(tmp_path / "inferlake-data"))
    hours = pd.to_datetime(["2026-01-01T00:00Z", "2026-01-01T02:00Z"])
    departures = pd.to_datetime(["2025-12-31T23:00Z", "2026-01-01T01:00Z", "2026-01-01T03:00Z"])
    given = {
        "weather": pd.DataFrame(
            {"origin": "JFK", "hour": hours, "temp": [1.0, 3.0], "visib": [9.0, 8.0]}
        ),
        "flights": pd.DataFrame({"origin": "JFK", "sched_dep": departures, "late": [0, 1, 0]}),
    }
    for block in python_blocks("use-features.md"):
        exec(compile(block, "use-features.md", "exec"), given)  # noqa: S102
    rows = given["rows"].sort_values("sched_dep")
    assert rows["temp"].tolist()[1:] == [1.0, 3.0]
    assert rows["visib"].tolist() == [10.0, 9.0, 8.0]  # the first one knows no weather yet
