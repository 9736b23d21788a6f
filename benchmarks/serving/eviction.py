"""What a new caller costs when the memory for callers is full, against when it is not.

Failed logins are counted per address and rate limits per caller, each in a table of fixed size; a
full one makes room with every new caller. Bar: at most 3 times the processor time (making room by
walking over a table of 50,000 took hundreds of times as long). Prints the ratios; 1 if one is over.

    python benchmarks/serving/eviction.py
"""

import argparse
import sys
import time
from collections.abc import Callable

from serving import access
from serving.gateway import admission

BAR = 3.0
LIMIT = [{"calls": 5, "renewal_period": "minute", "key": "user"}]


def nanoseconds(call: Callable[[str], None], names: list[str]) -> float:
    """Processor time of one call, the mean."""
    began = time.process_time_ns()
    for name in names:
        call(name)
    return (time.process_time_ns() - began) / len(names)


def ratio(call: Callable[[str], None], most: int, calls: int) -> float:
    """Calls by new callers beyond a full table / those that fill it."""
    filling = nanoseconds(call, [f"a{place}" for place in range(most)])
    return nanoseconds(call, [f"b{place}" for place in range(calls)]) / filling


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=50_000, help="New callers once it is full.")
    calls = parser.parse_args().calls
    failed, limits = access.FailedLogins(20), admission.RateLimits()
    found = {
        "failed logins": ratio(lambda name: failed.count(name, 0.0), access.MOST_ADDRESSES, calls),
        "rate limits": ratio(
            lambda name: limits.admit(admission.counted("e", LIMIT, name), 0.0),
            admission.MOST_BUCKETS,
            calls,
        ),
    }
    for what, value in found.items():
        print(f"{what}: RATIO {value:.2f} (bar {BAR:g})")
    return 1 if max(found.values()) > BAR else 0


if __name__ == "__main__":
    sys.exit(main())
