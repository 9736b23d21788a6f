"""Is every bad input told what and where, within 2 s, and never a fault of the server?

    python benchmarks/serving/fuzz.py [--seed 7] [--mutations 2000] [--sample 1.0]

Against `inferlake up` with a real model, once on the gateway's own short way and once through plain
ASGI: every kind of bad request (fuzz_bodies.py), mutations of good ones in seven formats, HTTP
messages that two readers could read in two ways (fuzz_messages.py), odd paths, and hostile names,
URLs and values in every field of a configuration (fuzz_configs.py, tried by dry runs). Bars: no
5xx but 501 for what is known and not offered, no answer to a smuggled request, none over 2 s, each
refusal in the envelope with one sentence that names what was found and where; and at the end a good
request is answered as at the beginning. Prints counts; exits 1 on any miss.
"""

import argparse
import http.client
import json
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import fuzz_bodies
import fuzz_configs
import fuzz_messages
import up

MOST_SECONDS, GIVE_UP_SECONDS = 2.0, 20.0
MODEL, ENDPOINT = "main.fuzz.echo", "fuzz"
TARGET = f"/serving-endpoints/{ENDPOINT}/invocations"
ANSWER = b"HTTP/1.1 "
CREATE = "/api/2.0/serving-endpoints"
CODES = {
    400: {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"},
    404: {"RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND"},
    405: {"ENDPOINT_NOT_FOUND"},
    409: {"RESOURCE_CONFLICT"},
    501: {"NOT_IMPLEMENTED"},
}
LEAKS = ("Traceback", 'File "', "site-packages", "sqlite", "SELECT ", "inferlake-data", "/tmp/")
PATHS = (
    "..", ".", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%00b", "%ff%fe", "%c0%af", "a%2fb", "%",
    "%zz", "a%0d%0ab", "%F0%9F%92%A5", "x" * 5000, "a;b", "a?b", "a#b", "~", "*", "{name}", "$(id)",
    "..;", "a b", "\x7f", "é", "a%20b", "-", "pt", "chat", "%25%32%65",
)  # fmt: skip
MODELS = """
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [1.0] * len(model_input)
columns = Schema([ColSpec("double", "age"), ColSpec("long", "visits"),
                  ColSpec("string", "city", required=False), ColSpec("boolean", "smoker")])
signature = mlflow.models.ModelSignature(
    inputs=columns, params=ParamSchema([ParamSpec("factor", "double", 1.0)]))
register_python("main.fuzz.echo", Echo(), signature=signature)
"""


@dataclass
class Findings:
    """What one leg saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    misses: list[str] = field(default_factory=list)

    def see(self, name: str, status: int, seconds: float, wrong: str | None) -> None:
        """Note one answer."""
        self.statuses[status] += 1
        self.slowest = max(self.slowest, seconds)
        if wrong is None and seconds > MOST_SECONDS:
            wrong = f"took {seconds:.1f} s"
        if wrong is not None:
            self.misses.append(f"{name}: {wrong}")


class Target:
    """The server, by a connection that is kept while that goes well."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.address = str(parts.hostname), int(parts.port or 0)
        self._kept: http.client.HTTPConnection | None = None

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()
    ) -> tuple[int, bytes, float]:
        """(status, body, seconds); status 0: no answer."""
        begun = time.perf_counter()
        try:
            status, answer = self._ask(method, path, body, dict(headers))
        except (OSError, http.client.HTTPException) as error:
            self.close()
            status, answer = 0, repr(error).encode()
        return status, answer, time.perf_counter() - begun

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if self._kept is None:
            self._kept = http.client.HTTPConnection(*self.address, timeout=GIVE_UP_SECONDS)
        connection = self._kept
        connection.putrequest(method, path, skip_accept_encoding=True)
        for key, value in {"Authorization": f"Bearer {up.TOKEN}", **headers}.items():
            connection.putheader(key, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        try:
            connection.send(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused while it was being sent: the answer is there
        reply = connection.getresponse()
        answer = reply.read()
        if reply.will_close:
            self.close()
        return reply.status, answer

    def close(self) -> None:
        """Close the kept connection; the next request makes another."""
        if self._kept is not None:
            self._kept.close()
        self._kept = None

    def converse(self, sent: Sequence[bytes]) -> tuple[list[int], bytes, float]:
        """(statuses of all answers, the body of the last, seconds): one answer is awaited after
        each message, and after the last whatever comes until the other side closes."""
        begun = time.perf_counter()
        received = b""
        with socket.create_connection(self.address, GIVE_UP_SECONDS) as bare:
            try:
                for number, message in enumerate(sent, 1):
                    bare.sendall(message)
                    last = number == len(sent)
                    while (last or not _whole(received, number)) and (part := bare.recv(1 << 16)):
                        received += part
                        if received.count(ANSWER) > len(sent):
                            break
            except (ConnectionResetError, BrokenPipeError):
                pass
            except TimeoutError:
                received += ANSWER + b"000 nothing came\r\n\r\n"
        self.close()  # the kept connection may have been idle for too long meanwhile
        answers = received.split(ANSWER)[1:]
        body = answers[-1].partition(b"\r\n\r\n")[2] if answers else b""
        return [int(each[:3]) for each in answers], body, time.perf_counter() - begun


def _whole(received: bytes, number: int) -> bool:
    """Whether so many answers came whole."""
    answers = received.split(ANSWER)[1:]
    if len(answers) < number:
        return False
    head, found, body = answers[-1].partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(found) and length is not None and len(body) >= int(length[1])


def wrong_envelope(status: int, body: bytes, words: Iterable[str] = ()) -> str | None:
    """What is wrong with a refusal; None: nothing."""
    if status not in CODES:
        return f"status {status}: {body[:300]!r}"
    try:
        told = json.loads(body)
    except ValueError:
        return f"no JSON: {body[:300]!r}"
    if set(told) != {"error_code", "message"} or told["error_code"] not in CODES[status]:
        return f"no envelope of status {status}: {body[:300]!r}"
    message = told["message"]
    if not 1 <= len(message) <= 2000 or not message.rstrip().endswith((".", ")")):
        return f"no sentence: {message[:300]!r}"
    leaked = [leak for leak in LEAKS if leak in message]
    if leaked:
        return f"leaks {leaked}: {message[:300]!r}"
    lacking = [word for word in words if word.lower() not in message.lower()]
    return f"does not say {lacking}: {message[:300]!r}" if lacking else None


def queries(target: Target, sent: Iterable[fuzz_bodies.Sent], bad: bool) -> Findings:
    """Requests to the model. bad: every one must be refused."""
    found = Findings()
    for one in sent:
        headers = [("Content-Type", one.content_type), *one.headers]
        status, body, seconds = target.ask("POST", TARGET, one.body, headers)
        wrong = None
        if status != 200:
            wrong = wrong_envelope(status, body, one.words)
        elif bad:
            wrong = f"was answered: {body[:200]!r}"
        elif "predictions" not in json.loads(body):
            wrong = f"no predictions: {body[:200]!r}"
        if wrong is not None:
            wrong += f"; sent {one.body[:200]!r}"
        found.see(one.name, status, seconds, wrong)
    return found


def messages(target: Target) -> Findings:
    """Ambiguous messages, each with a second request behind it."""
    found = Findings()
    good = fuzz_messages.good(TARGET, up.TOKEN)
    for name, message in fuzz_messages.messages(TARGET, up.TOKEN):
        for before in ((), (good, good)):  # a fresh connection, and one that is known already
            sent = [*before, message + fuzz_messages.AFTER]
            statuses, body, seconds = target.converse(sent)
            told = statuses[len(before)] if len(statuses) > len(before) else 0
            wrong = wrong_envelope(told, body)
            if len(statuses) > len(sent) or statuses[: len(before)] != [200] * len(before):
                wrong = f"was answered too often, or not before: {statuses}"
            found.see(f"{name}, after {len(before)} good ones", told, seconds, wrong)
    return found


def paths(target: Target) -> Findings:
    """Odd names in the paths of the data plane and of the control API, as raw bytes."""
    found = Findings()
    for name in PATHS:
        for method, form in (
            ("POST", "/serving-endpoints/{}/invocations"),
            ("POST", f"/serving-endpoints/{ENDPOINT}/served-models/{{}}/invocations"),
            ("GET", f"{CREATE}/{{}}"),
            ("GET", f"{CREATE}/{ENDPOINT}/served-models/{{}}/logs"),
            ("DELETE", f"{CREATE}/{{}}"),
            ("GET", "/api/2.0/permissions/serving-endpoints/{}"),
        ):
            line = f"{method} {form.replace('{}', name)} HTTP/1.1\r\n"
            head = f"{line}Host: h\r\nAuthorization: Bearer {up.TOKEN}\r\nConnection: close\r\n"
            message = head.encode() + b"Content-Length: 2\r\n\r\n{}"
            statuses, body, seconds = target.converse([message])
            first = statuses[0] if statuses else 0
            found.see(f"{line[:100]!r}", first, seconds, wrong_envelope(first, body))
    return found


def configs(target: Target, sample: float, source: random.Random) -> Findings:
    """Hostile values in every field. sample: the share of them that is tried."""
    found = Findings()
    bodies = [fuzz_configs.full("hostile", MODEL)]
    bodies += [fuzz_configs.external("hostile", each) for each in fuzz_configs.EXTERNAL]
    for body in bodies:
        for changed in fuzz_configs.hostile(body):
            if source.random() >= sample:
                continue
            sent = json.dumps(changed.body).encode()
            status, answer, seconds = target.ask("POST", f"{CREATE}?dry_run=true", sent)
            passed = status in (200, 501)
            wrong = "passed" if passed and changed.must_fail else None
            if status != 200 and wrong is None:
                wrong = wrong_envelope(status, answer)
            found.see(changed.name, status, seconds, wrong)
    return found


def controls(target: Target, sample: float, source: random.Random) -> Findings:
    """Hostile values in every field of the other control routes."""
    found = Findings()
    shown = json.loads(target.ask("GET", f"{CREATE}/{ENDPOINT}")[1])
    for method, path, body in fuzz_configs.others(ENDPOINT, shown["id"]):
        for changed in fuzz_configs.hostile(body):
            if source.random() >= sample:
                continue
            sent = json.dumps(changed.body).encode()
            status, answer, seconds = target.ask(method, path, sent)
            wrong = "passed" if status == 200 and changed.must_fail else None
            if status != 200 and wrong is None:
                wrong = wrong_envelope(status, answer)
            found.see(f"{method} {path}, {changed.name}", status, seconds, wrong)
    return found


def ready(target: Target) -> None:
    """Create the endpoint, and wait until it answers. Raises TimeoutError."""
    entity = {"name": "one", "entity_name": MODEL, "entity_version": "1", "workload_size": "Small"}
    table = {"catalog_name": "main", "schema_name": "fuzz", "table_name_prefix": "fuzz"}
    config = {"served_entities": [entity], "auto_capture_config": table}
    body = json.dumps({"name": ENDPOINT, "config": config}).encode()
    status, answer, _ = target.ask("POST", CREATE, body)
    if status != 200:
        raise RuntimeError(answer.decode())
    ends = time.monotonic() + up.PATIENCE_SECONDS
    while b"NOT_UPDATING" not in target.ask("GET", f"{CREATE}/{ENDPOINT}")[1]:
        if time.monotonic() > ends:
            raise TimeoutError("the endpoint did not become ready")
        time.sleep(0.1)


def measure(url: str, seed: int, mutations: int, sample: float) -> dict[str, Findings]:
    """Every leg against one server."""
    source, target = random.Random(seed), Target(url)
    ready(target)
    good = queries(target, fuzz_bodies.GOOD, bad=False)
    good.misses += [f"good ones were refused: {good.statuses}"] * (set(good.statuses) != {200})
    found = {
        "bad kinds": queries(target, fuzz_bodies.kinds(), bad=True),
        "mutations": queries(target, fuzz_bodies.mutations(mutations, source), bad=False),
        "ambiguous messages": messages(target),
        "odd paths": paths(target),
        "hostile configurations": configs(target, sample, source),
        "other control routes": controls(target, sample, source),
    }
    after = queries(target, fuzz_bodies.GOOD, bad=False)
    good.misses += [f"afterwards: {after.statuses}"] * (set(after.statuses) != {200})
    target.close()
    return {"good requests, before and after": good, **found}


def show(way: str, found: dict[str, Findings]) -> int:
    """Print the counts; how many misses there are."""
    print(f"\n{way}")
    for leg, seen in found.items():
        statuses = ", ".join(f"{count} x {code}" for code, count in sorted(seen.statuses.items()))
        total = sum(seen.statuses.values())
        print(f"  {leg}: {total} sent, slowest {seen.slowest:.2f} s; {statuses}")
        for miss in seen.misses[:40]:
            print(f"    MISSED {miss}")
    return sum(len(seen.misses) for seen in found.values())


WAYS = {"the gateway's short way": {}, "plain ASGI": {"INFERLAKE_PLAIN_ASGI": "true"}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--sample", type=float, default=1.0, help="share of hostile values tried")
    options = parser.parse_args()
    misses = 0
    for way, setting in WAYS.items():
        with (
            tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
            up.served(Path(folder), MODELS, **setting) as url,
        ):
            misses += show(way, measure(url, options.seed, options.mutations, options.sample))
    print(f"\nseed {options.seed}: {misses} misses, bar 0: {'met' if not misses else 'MISSED'}")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
