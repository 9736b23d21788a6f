"""Are the numbers right? `inferlake drift` and `inferlake quality` against other people's numbers.

    python benchmarks/monitors/values.py [FOLDER ...]

Every data set below the folders (default: tests/data and, where it is set, INFERLAKE_EXTRA_DATA)
that has an expected.json: the distances of all windows and columns as scipy computes them on the
raw values; realised quality, and what NannyML's CBPE expects without labels. Of each measure the
farthest value is printed beside its bar.

Bars: ks and normed Wasserstein within 0.002; PSI, Jensen-Shannon, total variation, L-infinity
within 0.005; chi-squared within 1e-6; a distance never farther off than its own bound; estimated
ROC AUC within 0.005, realised within 0.001, and the same windows outside of their limits. Exit
code 1 if one is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BESIDE = Path(sys.executable).parent
DATA = Path(__file__).parents[2] / "tests" / "data"
DISTANCES = {  # name in expected.json -> ours, bar
    "ks_stat": ("ks", 0.002),
    "wasserstein_over_std": ("wasserstein_normed", 0.002),
    "psi_deciles": ("psi", 0.005),
    "psi": ("psi", 0.005),
    "js_base2": ("js_distance", 0.005),
    "tv": ("tv_distance", 0.005),
    "l_inf": ("l_infinity_distance", 0.005),
    "chi2_stat": ("chi_squared", 1e-6),
}
QUALITY = {"estimated": ("cbpe", 0.005), "realized": ("realized", 0.001)}
ROUNDING = 1e-6  # the numbers in expected.json have ten digits
SCORED = {"label": "clf_target", "prediction": "y_pred", "score": "y_pred_proba"}


class Compared(NamedTuple):
    """One number of ours beside somebody else's. bound: how far off it says that it may be."""

    measure: str
    where: tuple[str, ...]
    ours: float | None
    theirs: float
    bar: float
    bound: float | None = None

    @property
    def apart(self) -> float:
        """How far; a missing number is infinitely far from one that is there."""
        return float("inf") if self.ours is None else abs(self.ours - self.theirs)


def sets(folders: list[Path]) -> list[Path]:
    """Data sets with expected numbers, each name once."""
    found = {path.parent.name: path.parent for f in folders for path in f.glob("*/expected.json")}
    return [found[name] for name in sorted(found)]


def command(*arguments: object) -> dict[str, Any]:
    """The JSON of `inferlake ...`. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        inferlake = [str(BESIDE / "inferlake"), *map(str, arguments), "--json", str(out)]
        subprocess.run(inferlake, check=True)
        return dict(json.loads(out.read_bytes()))


def distances(folder: Path, expected: dict[str, Any]) -> Iterator[Compared]:
    """Every window, column and metric. Raises ValueError where windows or columns differ."""
    by = expected["windowing"]
    cut = ["--window-rows", by["size"]] if by["by"] == "rows" else ["--window-by", by["column"]]
    answer = command(
        *("drift", folder / "reference.parquet", folder / "current.parquet", *cut),
        *("--numeric", ",".join(expected["numeric"])),
        *("--categorical", ",".join(expected["categorical"])),
    )
    windows = {window["window"]: window["columns"] for window in answer["windows"]}
    if list(windows) != list(expected["windows"]):
        raise ValueError(f"{folder.name}: the windows are {list(windows)}.")
    for window, wanted in expected["windows"].items():
        if set(windows[window]) != set(wanted["exact_scipy"]):
            raise ValueError(f"{folder.name}, {window}: the columns are {list(windows[window])}.")
        for column, numbers in wanted["exact_scipy"].items():
            for key, (name, bar) in DISTANCES.items():
                if key not in numbers:
                    continue
                metric = windows[window][column]["metrics"][name]
                where = (folder.name, window, column)
                yield Compared(name, where, metric["value"], numbers[key], bar, metric.get("bound"))


def quality(folder: Path, expected: dict[str, Any]) -> Iterator[Compared]:
    """ROC AUC per window, and as 1 or 0 whether it is outside of its limits."""
    if "cbpe" not in expected:
        return
    answer = command(
        *("quality", folder / "reference.parquet", folder / "current.parquet"),
        *(part for name, column in SCORED.items() for part in (f"--{name}", column)),
        *("--labels", folder / "labels_delayed.parquet", "--id", "id"),
        *("--window-rows", expected["cbpe"]["chunk_size"]),
    )
    for window in answer["windows"]:
        for side, (source, bar) in QUALITY.items():
            wanted = expected[source]["values"][window["window"]]["roc_auc"]
            found, where = window[side]["roc_auc"], (folder.name, str(window["window"]))
            yield Compared(f"{side} roc_auc", where, found["value"], wanted["value"], bar)
            yield Compared(
                f"{side} roc_auc outside of its limits", where, found["alert"], wanted["alert"], 0
            )


def report(found: list[Compared]) -> int:
    """Prints a line per measure; how many bars are missed."""
    missed = 0
    for measure in dict.fromkeys(one.measure for one in found):
        group = [one for one in found if one.measure == measure]
        worst = max(group, key=lambda one: one.apart)
        over = [one for one in group if one.apart > one.bar + 1e-9 * abs(one.theirs)]
        missed += bool(over)
        print(
            f"{measure}: {len(group)} values, farthest {worst.apart:.2g} at "
            f"{', '.join(worst.where)}, bar {worst.bar:g}: {'MISSED' if over else 'met'}"
        )
    bounded = [one for one in found if one.bound is not None]
    broken = [one for one in bounded if one.apart > (one.bound or 0) + ROUNDING]
    for one in broken:
        print(f"  {one.measure} of {', '.join(one.where)}: {one.ours}, not {one.theirs}")
    print(
        f"bounds: {len(bounded)} values, {len(broken)} farther off than their bound, bar 0: "
        f"{'MISSED' if broken else 'met'}"
    )
    return missed + bool(broken)


def main() -> int:
    """0: every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    folders = parser.parse_args().folders or [DATA]
    if not sys.argv[1:] and "INFERLAKE_EXTRA_DATA" in os.environ:
        folders.append(Path(os.environ["INFERLAKE_EXTRA_DATA"]))
    found: list[Compared] = []
    for folder in sets(folders):
        expected = json.loads((folder / "expected.json").read_text())
        found += [*distances(folder, expected), *quality(folder, expected)]
    print(f"data sets: {', '.join(folder.name for folder in sets(folders))}")
    return 1 if not found or report(found) else 0


if __name__ == "__main__":
    sys.exit(main())
