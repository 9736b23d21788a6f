"""How many times the requests per second of `mlflow models serve`?

    python benchmarks/serving/mlflow_ratio.py [--seconds 6] [--pairs 3] [--connections 64]

Logistic regression on 30 doubles, one row a request, 64 connections, on this machine in one run.
Peer: `mlflow models serve`. Ours: gateway with token, route, capture and counts, one worker, and
the committer that writes the rows away. The two are measured in turn, so that a busy moment of the
machine hits both. Needs `wrk`. Exit code 1 if the median ratio is under the bar.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import load
import product

BAR = 20.0


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
    model = product.save_models(folder)["lr"]
    body = load.records(product.COLUMNS, 1)
    script = load.script(folder / "query.lua", body)
    port, log = product.free_port(), folder / "mlflow.log"
    peer_url = f"http://127.0.0.1:{port}/invocations"
    with (
        product.process(product.mlflow(model, port), log),
        product.running(folder / "data", {"lr": product.Endpoint(model)}) as ours,
    ):
        try:
            load.wait_for(lambda: load.answers(peer_url, body))
        except TimeoutError:
            print(log.read_text()[-3000:], file=sys.stderr)
            raise
        url, watched = ours.url("lr"), ours.processes("lr")
        load.measure(peer_url, script, options.connections, 1)
        load.measure(url, script, options.connections, 1)
        pairs = []
        for number in range(options.pairs):
            peer = load.measure(peer_url, script, options.connections, options.seconds)
            # What wrk left behind in its line must not run while the other is measured.
            load.wait_for(lambda: load.answers(peer_url, body))
            mine = load.measure(url, script, options.connections, options.seconds, watched)
            pairs.append((mine, mine.per_second / peer.per_second))
            print(
                f"pair {number + 1}: mlflow models serve {peer} | inferlake {mine}"
                f" | ratio {pairs[-1][1]:.1f}",
                flush=True,
            )
    for place, part in enumerate(("gateway", "worker")):
        spent = statistics.median(mine.cpu_us[place] for mine, _ in pairs)
        print(f"CPU of the {part} per request: {spent:.0f} us")
    ratio = statistics.median(ratio for _, ratio in pairs)
    print(f"wrk shares the {os.cpu_count()} cores with both")
    print(f"ratio {ratio:.1f} (median of {len(pairs)}), bar {BAR:g}: "
          f"{'met' if ratio >= BAR else 'MISSED'}")  # fmt: skip
    return 0 if ratio >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
