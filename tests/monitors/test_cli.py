import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import typer
from typer.testing import CliRunner

from monitors import cli

TABLE = "main.flights.p_unpacked"


class Api:
    """A server whose replies are given by method and path; it keeps what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, object] = {}
        self.asked: list[tuple[str, str | None, object]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"] or 0))
                token = self.headers["Authorization"]
                outer.asked.append(
                    (f"{self.command} {self.path}", token, json.loads(raw) if raw else None)
                )
                key = f"{self.command} {self.path.partition('?')[0]}"
                found = outer.replies.get(key)
                body = found if found is not None else {"message": f"No route {key}."}
                data = json.dumps(body).encode()
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Silent."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Api]:
    made = Api()
    (tmp_path / "admin-token").write_text("secret-token\n")
    monkeypatch.setenv("INFERLAKE_URL", f"http://127.0.0.1:{made.http.server_port}")
    monkeypatch.setenv("INFERLAKE_DATA_DIR", str(tmp_path))
    for name in ("INFERLAKE_TOKEN", "INFERLAKE_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.http.shutdown()
    made.http.server_close()
    made.thread.join(10)


def run(app: typer.Typer, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_monitors_are_listed_with_their_worst_column(server):
    one = {
        "table": TABLE, "endpoint": "delay", "status": "MONITOR_STATUS_ACTIVE",
        "last_refresh": {"state": "SUCCESS"}, "worst_column": {"column": "temp", "effect": 7.9},
    }  # fmt: skip
    server.replies["GET /api/1.0/monitors"] = {"monitors": [one]}
    out, _ = run(cli.monitors_app, "list")
    assert out.splitlines()[0].split()[:2] == ["TABLE", "ENDPOINT"]
    assert "temp" in out and "7.9" in out and "SUCCESS" in out
    assert server.asked[0][1] == "Bearer secret-token"


def test_a_refresh_is_waited_for_and_its_failure_is_an_exit_code(server):
    path = f"/api/2.1/unity-catalog/tables/{TABLE}/monitor/refreshes"
    server.replies[f"POST {path}"] = {"refresh_id": 4, "state": "PENDING"}
    server.replies[f"GET {path}/4"] = {"refresh_id": 4, "state": "FAILED", "message": "no table"}
    out, err = run(cli.monitors_app, "refresh", TABLE, "--until", "2024-01-08", code=1)
    assert (out, err) == ("", "refresh 4 FAILED: no table\n")
    assert server.asked[0][2] == {"until": "2024-01-08"}
    run(cli.monitors_app, "refresh", TABLE, "--no-wait")


def test_refreshes_are_listed_and_cancelled(server):
    path = f"/api/2.1/unity-catalog/tables/{TABLE}/monitor/refreshes"
    one = {
        "refresh_id": 4, "state": "RUNNING", "trigger": "SCHEDULE", "start_time_ms": 0,
        "progress": {"files_done": 2, "files_total": 9},
    }  # fmt: skip
    server.replies[f"GET {path}"] = {"refreshes": [one]}
    out, _ = run(cli.monitors_app, "refreshes", TABLE)
    assert "1970-01-01 00:00:00+00:00" in out and '"files_total": 9' in out and "SCHEDULE" in out
    server.replies[f"POST {path}/4/cancel"] = {}
    run(cli.monitors_app, "cancel", TABLE, "4")
    assert server.asked[-1][0] == f"POST {path}/4/cancel"
    run(cli.monitors_app, "cancel", TABLE, "four", code=2)


def test_a_monitor_is_made_and_changed_from_a_file(server, tmp_path):
    path, body = f"/api/2.1/unity-catalog/tables/{TABLE}/monitor", tmp_path / "body.json"
    body.write_text('{"output_schema_name": "main.flights"}')
    for method, command in (("POST", "create"), ("PUT", "update")):
        server.replies[f"{method} {path}"] = {"table_name": TABLE}
        out, _ = run(cli.monitors_app, command, TABLE, "-f", str(body))
        assert json.loads(out) == {"table_name": TABLE}
        assert server.asked[-1][2] == {"output_schema_name": "main.flights"}
    body.write_text("{")
    assert "not valid JSON" in run(cli.monitors_app, "update", TABLE, "-f", str(body), code=1)[1]


def test_drift_and_quality_show_the_newest_window(server):
    cell = {
        "window": ["2024-01-08T00:00:00Z", "2024-01-15T00:00:00Z"], "status": "drifted",
        "severity": "critical", "metric": "ks", "value": 0.43, "threshold": 0.1, "n": 900,
    }  # fmt: skip
    base = f"/api/1.0/monitors/{TABLE}"
    server.replies[f"GET {base}/drift"] = {"columns": [{"name": "temp", "cells": [cell]}]}
    out, _ = run(cli.monitors_app, "drift", TABLE, "--served-entity", "v2", "--slice", "kind=a")
    assert "temp" in out and "0.43" in out and "served_entity=v2" in server.asked[-1][0]
    assert "slice=kind%3Da" in server.asked[-1][0]
    point = {"window": cell["window"], "value": 0.8, "low": 0.7, "high": 0.9, "labelled": 5}
    series = [{"served_entity": "v1", "metric": "accuracy", "points": [point]}]
    server.replies[f"GET {base}/quality"] = {"series": series}
    out, _ = run(cli.monitors_app, "quality", TABLE)
    assert "accuracy" in out and "0.7" in out


def test_alerts_are_listed_acknowledged_and_muted(server):
    alert = {"id": "a1", "endpoint": "delay", "severity": "critical", "message": "bad\x1b[31m news"}
    server.replies["GET /api/1.0/alerts"] = {"alerts": [alert]}
    out, _ = run(cli.alerts_app, "list")
    assert "bad [31m news" in out  # no escape sequence of a stranger reaches the terminal
    server.replies["POST /api/1.0/alerts/a1/acknowledge"] = {}
    run(cli.alerts_app, "acknowledge", "a1")
    server.replies["POST /api/1.0/alerts/a1/mute"] = {}
    run(cli.alerts_app, "mute", "a1", "--until", "2999-01-01", "--reason", "known")
    assert server.asked[-1][2] == {"until": "2999-01-01", "reason": "known"}
    rule = {
        "id": "r",
        "name": "n",
        "metric": "ks",
        "condition": {"operator": ">", "threshold": 0.1},
    }
    server.replies["GET /api/1.0/alert-rules"] = {"alert_rules": [rule]}
    assert "> 0.1" in run(cli.alerts_app, "rules")[0]


def test_a_webhook_is_made_and_its_secret_printed(server):
    server.replies["POST /api/1.0/webhooks"] = {"id": "w1", "secret": "whsec_x"}
    out, _ = run(cli.webhooks_app, "create", "http://127.0.0.1:1/", "--event", "alert.*")
    assert out == "w1 whsec_x\n"
    wanted = {"url": "http://127.0.0.1:1/", "events": ["alert.*"], "format": "standard"}
    assert server.asked[-1][2] == wanted
    server.replies["POST /api/1.0/webhooks/w1/rotate-secret"] = {"secret": "whsec_y"}
    assert run(cli.webhooks_app, "rotate-secret", "w1")[0] == "whsec_y\n"
    server.replies["GET /api/1.0/webhooks/w1/deliveries"] = {"deliveries": [{"id": "3"}]}
    assert "3" in run(cli.webhooks_app, "deliveries", "w1")[0]
    server.replies["POST /api/1.0/webhooks/w1/deliveries/3/redeliver"] = {}
    run(cli.webhooks_app, "redeliver", "w1", "3")


def test_a_refusal_is_one_sentence_and_exit_code_1(server):
    _, err = run(cli.monitors_app, "show", "main.flights.none", code=1)
    assert err.startswith("No route GET") and err.count("\n") == 1


def test_without_a_token_or_a_server_it_says_what_to_do(server, monkeypatch, tmp_path):
    monkeypatch.setenv("INFERLAKE_DATA_DIR", str(tmp_path / "empty"))
    assert "INFERLAKE_TOKEN" in run(cli.alerts_app, "list", code=1)[1]
    monkeypatch.setenv("INFERLAKE_TOKEN", "x")
    monkeypatch.setenv("INFERLAKE_URL", "http://127.0.0.1:1")
    assert "inferlake up" in run(cli.alerts_app, "list", code=1)[1]


def test_wrong_use_is_exit_code_2(server):
    run(cli.webhooks_app, "create", code=2)
    run(cli.monitors_app, "nothing", code=2)
