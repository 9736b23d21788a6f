"""What `inferlake drift` and `inferlake quality` print for a person. Pure: JSON form in, lines out.

One line per column, the worst first; of several windows it shows the worst and in how many the
column drifted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SHOWN = {
    "classification": ("accuracy", "f1", "roc_auc", "log_loss"),
    "regression": ("mae", "rmse", "r2"),
}
ESTIMATED = ("accuracy", "roc_auc")
_ORDER = ("drifted", "ok", "not_enough_data", "undefined")


@dataclass(slots=True)
class _Line:
    """One column in one slice, over all windows."""

    kind: str
    windows: int = 0
    drifted: int = 0
    worst: dict[str, Any] = field(default_factory=dict)
    worst_window: Any = None
    worst_rows: int = 0


@dataclass(slots=True)
class Drift:
    """The table of `inferlake drift`, gathered a window at a time."""

    reference_rows: int
    rows: int = 0
    windows: int = 0
    found: dict[tuple[str, str], _Line] = field(default_factory=dict)

    def add(self, window: dict[str, Any]) -> None:
        """Takes in one entry of the JSON form's `windows`."""
        slice_ = window["slice"]
        if slice_ is None:
            self.rows += window["rows"]
            self.windows += 1
        named = "" if slice_ is None else f"{slice_['key']} = {slice_['value']}"
        for column, one in window["columns"].items():
            line = self.found.setdefault((named, column), _Line(one["kind"]))
            line.windows += 1
            line.drifted += one["status"] == "drifted"
            if not line.worst or place(one) < place(line.worst):
                line.worst, line.worst_window = one, window["window"]
                line.worst_rows = window["rows"]

    def lines(self) -> Iterator[str]:
        """The table, line by line."""
        several = self.windows > 1
        sliced = any(named for named, _ in self.found)
        header = [*(["SLICE"] if sliced else []), "COLUMN", "KIND", "STATUS", "SEVERITY"]
        header += ["METRIC", "VALUE", "BOUND", "THRESHOLD", "ROWS"]
        header += ["DRIFTED", "WORST WINDOW"] if several else []
        ordered = sorted(self.found.items(), key=lambda item: (place(item[1].worst), item[0]))
        rows = [
            [
                *([named or "-"] if sliced else []),
                column,
                *_cells(line),
                *([f"{line.drifted} of {line.windows}", shown(line.worst_window)] * several),
            ]
            for (named, column), line in ordered
        ]
        yield (
            f"{self.rows:,} rows in {_counted(self.windows, 'window')} against "
            f"{self.reference_rows:,} rows of the reference"
        )
        yield from aligned([header, *rows])


def place(one: Mapping[str, Any]) -> tuple[int, float]:
    """Ascending from the worst: drifted first, then by how far over the limit."""
    return _ORDER.index(one["status"]), -(one["effect"] or 0.0)


def _cells(line: _Line) -> list[str]:
    one = line.worst
    decisive = one["metrics"].get(one["metric"]) or {}
    status = one["status"].replace("_", " ")
    numbers = [_number(decisive.get(name)) for name in ("value", "bound", "threshold")]
    metric = one["metric"] or "; ".join(one["reasons"])
    return [
        *(one["kind"], status, one["severity"] or "-"),
        *(metric or "-", *numbers, f"{line.worst_rows:,}"),
    ]


def quality(problem: str, reference_rows: int, windows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The table of `inferlake quality`: a line per window, ! where a metric alerts."""
    wanted = SHOWN[problem]
    estimates = ESTIMATED if problem == "classification" else ()
    header = ["WINDOW", "ROWS", "LABELLED", *(name.upper() for name in wanted)]
    header += [f"EXPECTED {name.upper()}" for name in estimates]
    rows = []
    for window in windows:
        measures = [window["realized"][name] for name in wanted]
        measures += [window["estimated"][name] for name in estimates]
        numbers = [f"{window['rows']:,}", f"{window['labelled']:,}"]
        rows.append([shown(window["window"]), *numbers, *(_measure(one) for one in measures)])
    yield (
        f"{_counted(len(rows), 'window')} against {reference_rows:,} rows of the reference; "
        "! is outside mean -+ 3 standard deviations of its own windows"
    )
    yield from aligned([header, *rows])


def _measure(one: dict[str, Any]) -> str:
    return _number(one["value"]) + ("!" if one["alert"] else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def shown(window: Any) -> str:
    """A window's name; of a stretch of time its start."""
    return str(window[0]) if isinstance(window, list) else str(window)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns under their names. Values come from files: no control character goes through."""
    clean = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in clean) for i in range(len(clean[0]))]
    for row in clean:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
