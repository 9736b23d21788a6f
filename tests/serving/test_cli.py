"""The command line as a shell sees it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from capture import database
from capture.settings import Settings


def inferlake(*arguments, env=None, **options):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("INFERLAKE_")}
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", *arguments],
        env={**clean, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


@pytest.fixture
def api(tmp_path):
    """An HTTP server that records calls and gives prepared answers, with a data directory that
    holds its token: what the commands send and show, without the cost of the whole server."""
    calls, answers = [], {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            calls.append((self.command, self.path, body, self.headers["Authorization"]))
            path = self.path.partition("?")[0]
            status, reply = answers.get((self.command, path), (200, {}))
            raw = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    (tmp_path / "admin-token").write_text("admins-secret\n")
    env = {
        "INFERLAKE_URL": f"http://127.0.0.1:{server.server_port}",
        "INFERLAKE_DATA_DIR": str(tmp_path),
    }
    yield calls, answers, env
    server.shutdown()
    thread.join()
    server.server_close()


def test_wrong_use_is_exit_code_2_and_says_what_is_wrong():
    done = inferlake("endpoints", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert done.stdout == ""


def test_a_setting_of_the_wrong_type_is_wrong_use():
    done = inferlake("up", env={"INFERLAKE_PORT": "many"})
    assert done.returncode == 2
    assert "INFERLAKE_PORT" in done.stderr


def test_without_a_server_one_sentence_tells_what_to_do(tmp_path):
    env = {"INFERLAKE_URL": "http://127.0.0.1:9", "INFERLAKE_TOKEN": "t"}
    done = inferlake("endpoints", "list", env=env)
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "inferlake up" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_token_one_sentence_tells_where_it_was_looked_for(tmp_path):
    done = inferlake("endpoints", "list", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path / "admin-token") in done.stderr


def test_an_error_of_the_server_is_its_message(api):
    _, answers, env = api
    message = "Endpoint 'x' does not exist."
    answers["GET", "/api/2.0/serving-endpoints/x"] = (
        404,
        {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": message},
    )
    done = inferlake("endpoints", "get", "x", env=env)
    assert (done.returncode, done.stderr) == (1, message + "\n")


def test_token_create_prints_the_token_alone(api):
    calls, answers, env = api
    answers["POST", "/api/1.0/tokens"] = (200, {"id": "7", "token": "il_7_abc"})
    done = inferlake("token", "create", "--user", "ann", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "il_7_abc\n", "")
    assert calls == [("POST", "/api/1.0/tokens", {"user": "ann"}, "Bearer admins-secret")]


def test_the_environments_token_comes_before_the_stored_one(api):
    calls, _, env = api
    inferlake("endpoints", "list", env={**env, "INFERLAKE_TOKEN": "my-own"})
    assert calls[0][3] == "Bearer my-own"


def test_all_pages_of_a_list_are_shown(api):
    calls, answers, env = api
    page = {"tokens": [{"id": "1", "user": "ann", "comment": "a\x1b[2Jb"}]}
    answers["GET", "/api/1.0/tokens"] = (200, page)
    done = inferlake("token", "list", env=env)
    assert done.stdout.splitlines()[0].split() == [
        "ID", "USER", "COMMENT", "CREATED_TIME", "EXPIRES_TIME",
    ]  # fmt: skip
    assert "\x1b" not in done.stdout
    assert len(calls) == 1


def test_endpoints_list_shows_state_and_traffic(api):
    _, answers, env = api
    endpoint = {
        "name": "flights",
        "state": {"ready": "READY", "config_update": "NOT_UPDATING"},
        "config": {
            "traffic_config": {
                "routes": [
                    {"served_model_name": "v1", "traffic_percentage": 90},
                    {"served_model_name": "v2", "traffic_percentage": 10},
                ]
            }
        },
    }
    answers["GET", "/api/2.0/serving-endpoints"] = (200, {"endpoints": [endpoint]})
    done = inferlake("endpoints", "list", env=env)
    assert "v1 90 %, v2 10 %" in done.stdout


def test_promote_sends_what_was_given_and_shows_the_new_traffic(api):
    calls, answers, env = api
    reply = {
        "name": "flights",
        "state": {"config_update": "NOT_UPDATING"},
        "config": {
            "config_version": 4,
            "traffic_config": {"routes": [{"served_model_name": "v2", "traffic_percentage": 100}]},
        },
    }
    answers["POST", "/api/1.0/endpoints/flights/promote"] = (200, reply)
    done = inferlake("promote", "flights", "v2", "--reason", "better", env=env)
    assert done.stdout == "flights: configuration 4, NOT_UPDATING: v2 100 %\n"
    assert calls[0][2] == {"served_entity": "v2", "traffic_percentage": 100, "reason": "better"}


def test_create_reads_the_body_from_a_file_or_from_standard_input(api, tmp_path):
    calls, _, env = api
    body = {"name": "flights"}
    (tmp_path / "body.json").write_text(json.dumps(body))
    inferlake("endpoints", "create", "-f", str(tmp_path / "body.json"), env=env)
    inferlake("endpoints", "create", "-f", "-", env=env, input=json.dumps(body))
    assert [call[2] for call in calls] == [body, body]


def test_a_body_that_is_no_json_is_told_with_its_file(tmp_path):
    (tmp_path / "body.json").write_text("{")
    done = inferlake("endpoints", "create", "-f", str(tmp_path / "body.json"))
    assert done.returncode == 1
    assert "body.json" in done.stderr


def test_a_name_cannot_leave_its_place_in_the_path(api):
    calls, _, env = api
    inferlake("endpoints", "delete", "../../tokens/1", env=env)
    assert calls[0][1] == "/api/2.0/serving-endpoints/..%2F..%2Ftokens%2F1"


def test_help_loads_nothing_heavy():
    code = "import sys, serving.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"pydantic", "sqlalchemy", "mlflow", "pandas", "polars", "deltalake"}


@pytest.mark.parametrize("group", ["monitors", "alerts", "webhooks"])
def test_commands_of_monitors_are_mounted(api, group):
    calls, answers, env = api
    answers["GET", f"/api/1.0/{group}"] = (200, {group: []})
    done = inferlake(group, "list", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert calls[0][1].startswith(f"/api/1.0/{group}")


def test_doctor_says_what_is_missing(tmp_path):
    done = inferlake("doctor", "--data-dir", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "is not there" in done.stdout
    assert "1 problem found" in done.stderr


def test_doctor_tells_of_segments_that_could_not_be_read(tmp_path):
    data_dir = tmp_path / "data"
    database.migrate(Settings(data_dir=data_dir))
    refused = data_dir / "wal" / "5f0e9b7c-6d5a-4f1e-8c2b-1a0d9e8f7a6b" / f"{7:020}.refused"
    refused.parent.mkdir(parents=True)
    refused.write_bytes(b"of another version")
    done = inferlake("doctor", "--data-dir", str(data_dir))
    assert done.returncode == 1
    assert f"1 hold requests that could not be read, the first: {refused.name}" in done.stdout


def test_doctor_finds_nothing_wrong_with_a_sound_directory_and_a_torn_table_in_a_torn_one(tmp_path):
    data_dir = tmp_path / "data"
    database.migrate(Settings(data_dir=data_dir))
    data_dir.chmod(0o700)
    env = {"INFERLAKE_PORT": "0", "INFERLAKE_DASHBOARD_PORT": "0"}
    done = inferlake("doctor", "--data-dir", str(data_dir), env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    torn = data_dir / "tables" / "main" / "default" / "x_payload" / "_delta_log"
    torn.mkdir(parents=True)
    (torn / "00000000000000000000.json").write_text("")
    done = inferlake("doctor", "--data-dir", str(data_dir), env=env)
    assert done.returncode == 1
    assert "main.default.x_payload" in done.stdout
    assert "00000000000000000000.json, is empty" in done.stdout
