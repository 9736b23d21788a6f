"""How does the whole product compare with other ways to serve the same model?

    python benchmarks/serving/peers.py [--peer async_numpy --peer litserve] [--cell "lr x1 c16"]
                                       [--seconds 4] [--pairs 3] [--interpreted]
                                       all of it: 20 minutes

Ours: gateway with token, rate limit, grant, capture and counts, one worker process for a model, and
the committer that writes the rows away; compiled as `INFERLAKE_COMPILE=1 pip install .` does it,
which needs a C compiler, or with --interpreted as the source stands. Peers (the files in peers/):
`mlflow models serve`; FastAPI around pyfunc; async FastAPI with orjson and numpy, by hand; LitServe
and BentoML with batching; uvicorn with a bare echo and no model. None of them has a token, a limit
or a record. LitServe, BentoML and the compiled inferlake are installed once, by uv, in --cache.

A cell is a model (lr: logistic regression, rf: forest of 100 trees; 30 doubles), rows a request
(xN) and connections (cN). wrk asks both in turn, ours first in every second pair, so that a busy
moment hits both. Printed: medians of requests per second, of p50 and p99; the median ratio of the
pairs' rates and its bar; the processor time of our gateway and worker per request; p99 / p50;
capture on against off. Exit code 1 if something measured misses its bar, 2 if nothing was measured.
A peer that cannot be installed or started is left out, and said to be.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import environments
import load
import product

HERE = Path(__file__).parent / "peers"
MOST_GATEWAY_US, MOST_WORKER_US = 16, 30
MOST_SPREAD = 4.0  # p99 / p50
LEAST_WITH_CAPTURE = 0.95
BY_HAND = "async_numpy"


class Cell(NamedTuple):
    """A model, how many rows a request has, how many connections ask."""

    model: str
    rows: int
    connections: int

    def __str__(self) -> str:
        return f"{self.model} x{self.rows} c{self.connections}"


CELLS = (
    Cell("lr", 1, 1),
    Cell("lr", 1, 16),
    Cell("lr", 1, 64),
    Cell("lr", 100, 16),
    Cell("rf", 1, 16),
)
AT_16 = CELLS[1]
# Least ratio of our requests per second to the peer's, in the order of CELLS.
BARS = {
    "mlflow": (12, 80, 170, 20, 18),
    "fastapi_pyfunc": (5, 35, 40, 9, 14),
    BY_HAND: (1.0, 4.5, 9, 1.3, 6),
    "litserve": (7, 14, 22, 4.5, 2.5),
    "bentoml": (9, 80, 150, 12, 20),
    "echo": (0.10, 0.50, 0.75, 0.12, 0.06),
}
PACKAGES = {"litserve": ["litserve==0.2.19"], "bentoml": ["bentoml==1.4.40"]}
SCRIPTS = {"litserve": "litserve_batching.py", "bentoml": "bentoml_batching.py"}


class NoAnswer(Exception):
    """A peer was up, and answered nothing while it was measured."""


class Pair(NamedTuple):
    """Two runs, one after the other."""

    ours: load.Load
    theirs: load.Load

    @property
    def ratio(self) -> float:
        """Our requests per second to theirs."""
        return self.ours.per_second / self.theirs.per_second


class Row(NamedTuple):
    """A line of the table."""

    peer: str
    cell: Cell
    pairs: list[Pair]
    bar: float

    @property
    def ratio(self) -> float:
        """The median of the pairs."""
        return statistics.median(pair.ratio for pair in self.pairs)

    @property
    def met(self) -> bool:
        """Whether the bar is reached by clean answers."""
        return self.ratio >= self.bar and not any(pair.ours.failed for pair in self.pairs)


@contextmanager
def serving(peer: str, model: Path, folder: Path, cache: Path) -> Iterator[str]:
    """A peer with one model, answering; its URL. Raises NotInstalled, TimeoutError."""
    port = product.free_port()
    command, environment = [sys.executable, str(HERE / f"{peer}.py"), str(model), str(port)], {}
    if peer == "mlflow":
        command = product.mlflow(model, port)
    elif peer in PACKAGES:
        own = environments.python(cache, peer, PACKAGES[peer])
        command[:2] = [str(own), str(HERE / SCRIPTS[peer])]
        if peer == "bentoml":
            command = [str(own), "-m", "bentoml", "serve", "bentoml_batching:Estimator",
                       "--working-dir", str(HERE), "--port", str(port),
                       "--host", "127.0.0.1"]  # fmt: skip
            environment = {"PEER_MODEL": str(model), "BENTOML_DO_NOT_TRACK": "true",
                           "BENTOML_HOME": str(folder / "bentoml")}  # fmt: skip
    url = f"http://127.0.0.1:{port}/invocations"
    log = folder / f"{peer}-{model.name}.log"
    body = load.records(product.COLUMNS, 1)
    expected = b"dataframe_records" if peer == "echo" else b"["
    with product.process(command, log, **environment):
        try:
            load.wait_for(lambda: load.answers(url, body, expected))
        except TimeoutError:
            print(log.read_text()[-3000:], file=sys.stderr)
            raise
        yield url


class Bench:
    """One run of this benchmark: the product, its queries, what is to be measured."""

    def __init__(self, ours: product.Product, folder: Path, options: argparse.Namespace) -> None:
        self.ours = ours
        self.folder = folder
        self.options = options
        self.rows: list[Row] = []
        self._queries = {
            rows: load.script(folder / f"{rows}.lua", load.records(product.COLUMNS, rows))
            for rows in {cell.rows for cell in CELLS}
        }

    def pairs(self, cell: Cell, theirs: str) -> list[Pair]:
        """Ask ours and another URL in turn."""
        query, connections = self._queries[cell.rows], cell.connections
        mine, seconds = self.ours.url(cell.model), self.options.seconds
        body = load.records(product.COLUMNS, 1)
        for url in (mine, theirs):
            load.measure(url, query, connections, 1)

        def other() -> load.Load:
            found = load.measure(theirs, query, connections, seconds)
            # What wrk left in its line must not run while ours is measured.
            load.wait_for(lambda: load.answers(theirs, body, b"["))
            if not found.per_second:
                raise NoAnswer(f"it answered nothing in {seconds} s to {connections} connections")
            return found

        def own() -> load.Load:
            watched = self.ours.processes(cell.model)
            return load.measure(mine, query, connections, seconds, watched)

        found = []
        for number in range(self.options.pairs):
            if number % 2:
                one = own()
                found.append(Pair(one, other()))
            else:
                one = other()
                found.append(Pair(own(), one))
        return found

    def against(self, peer: str, model: Path, cells: Sequence[Cell]) -> None:
        """All cells of one model against one peer."""
        with serving(peer, model, self.folder, self.options.cache) as url:
            for cell in cells:
                bar = BARS[peer][CELLS.index(cell)]
                row = Row(peer, cell, self.pairs(cell, url), bar)
                self.rows.append(row)
                print(line(row), flush=True)


def line(row: Row) -> str:
    """A row of the table as text."""

    def told(loads: list[load.Load]) -> str:
        rate, p50, p99 = (
            statistics.median(getattr(each, name) for each in loads)
            for name in ("per_second", "p50_ms", "p99_ms")
        )
        failed = sum(each.failed for each in loads)
        return f"{rate:9.1f} {p50:7.2f} {p99:8.2f}" + (f" ({failed} failed)" if failed else "")

    ours, theirs = (list(each) for each in zip(*row.pairs, strict=True))
    return (
        f"{row.cell!s:12} {row.peer:15} {told(ours)} | {told(theirs)} | ratio {row.ratio:8.2f}"
        f"  bar {row.bar:6.2f}  {'met' if row.met else 'MISSED'}"
    )


def judge(name: str, found: float, bar: float, least: bool) -> bool:
    """Print one more figure with its bar; whether it is met."""
    met = found >= bar if least else found <= bar
    sign = ">=" if least else "<="
    print(f"{name:58} {found:7.2f}  bar {sign} {bar:<6g} {'met' if met else 'MISSED'}")
    return met


def own_figures(rows: Sequence[Row]) -> bool:
    """CPU per request, spread of latencies; whether their bars are met."""
    met = True
    for cell in CELLS:
        loads = [pair.ours for row in rows if row.cell == cell for pair in row.pairs]
        if not loads:
            continue
        gateway, worker = (statistics.median(part) for part in zip(*(each.cpu_us for each in loads),
                                                                   strict=True))  # fmt: skip
        if cell == AT_16:
            met &= judge(f"{cell}: CPU of the gateway, us a request", gateway, MOST_GATEWAY_US,
                         least=False)  # fmt: skip
            met &= judge(f"{cell}: CPU of the worker, us a request", worker, MOST_WORKER_US,
                         least=False)  # fmt: skip
        else:
            print(f"{cell!s}: CPU a request: gateway {gateway:.1f} us, worker {worker:.1f} us")
        if cell.model == "lr" and cell.rows == 1:
            spread = statistics.median(each.p99_ms / each.p50_ms for each in loads)
            met &= judge(f"{cell}: p99 / p50", spread, MOST_SPREAD, least=False)
    for row in rows:
        if row.peer == BY_HAND and row.cell == CELLS[3]:
            ratio = statistics.median(p.ours.p99_ms / p.theirs.p99_ms for p in row.pairs)
            met &= judge(f"{row.cell}: our p99 / that of {BY_HAND}", ratio, 1.0, least=False)
    return met


def compare(folder: Path, options: argparse.Namespace, build: Path | None) -> int:
    """Measure everything asked for; the exit code. `build`: of a compiled inferlake."""
    models = product.save_models(folder)
    endpoints = {name: product.Endpoint(path) for name, path in models.items()}
    endpoints["unrecorded"] = product.Endpoint(models["lr"], recorded=False)
    print(f"wrk shares {os.cpu_count()} cores with the servers: where these are few, its own work"
          " is part of both rates, and holds a ratio down")  # fmt: skip
    print(f"{'cell':12} {'peer':15} {'ours/s':>9} {'p50 ms':>7} {'p99 ms':>8} | {'peer/s':>9}"
          f" {'p50 ms':>7} {'p99 ms':>8} |")  # fmt: skip
    missing: list[str] = []
    with product.running(folder / "data", endpoints, build) as ours:
        bench = Bench(ours, folder, options)
        for peer in options.peer:
            for name, model in models.items():
                cells = [cell for cell in options.cell if cell.model == name]
                if not cells or peer in missing:
                    continue
                try:
                    bench.against(peer, model, cells)
                except (environments.NotInstalled, NoAnswer, TimeoutError) as error:
                    missing.append(peer)
                    print(f"{peer} is left out: {error}.", flush=True)
        captured = bench.pairs(AT_16, ours.url("unrecorded")) if AT_16 in options.cell else []
    if not bench.rows and not captured:
        return 2
    met = all(row.met for row in bench.rows)
    met &= own_figures(bench.rows)
    if captured:
        ratio = statistics.median(pair.ratio for pair in captured)
        met &= judge(f"{AT_16}: capture on / off, req/s", ratio, LEAST_WITH_CAPTURE, least=True)
    return 0 if met else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    by_name = {str(cell): cell for cell in CELLS}
    parser.add_argument("--peer", action="append", choices=list(BARS), help="default: all")
    parser.add_argument("--cell", action="append", choices=list(by_name), help="default: all")
    parser.add_argument("--seconds", type=int, default=4, help="length of one measurement")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each")
    parser.add_argument("--interpreted", action="store_true", help="without compiled modules")
    parser.add_argument("--cache", type=Path, default=environments.default_cache(),
                        help="folder of the peers' environments")  # fmt: skip
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed.", file=sys.stderr)
        return 2
    options.peer = options.peer or list(BARS)
    options.cell = [by_name[name] for name in options.cell or by_name]
    try:
        build = None if options.interpreted else environments.compiled(options.cache)
    except environments.NotInstalled as error:
        print(f"inferlake cannot be compiled, try --interpreted: {error}.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        return compare(Path(name), options, build)


if __name__ == "__main__":
    sys.exit(main())
