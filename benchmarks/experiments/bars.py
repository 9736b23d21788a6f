"""One line per figure: what, how much, the bar, kept or missed."""

import sys
from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """Prints figures as they come; `end` leaves with 1 if one of them missed its bar."""

    missed: list[str] = field(default_factory=list)

    def most(self, name: str, value: float, bar: float, shown: str, beside: str = "") -> None:
        """A figure that may be `bar` at most. shown: format of both numbers."""
        self._figure(name, value <= bar, f"{shown % value}, bar <= {shown % bar}", beside)

    def least(self, name: str, value: float, bar: float, shown: str, beside: str = "") -> None:
        """A figure that has to be `bar` at least."""
        self._figure(name, value >= bar, f"{shown % value}, bar >= {shown % bar}", beside)

    def all_of(self, name: str, held: int, count: int, beside: str = "") -> None:
        """So many of so many, and all of them have to be."""
        self._figure(name, held == count, f"{held} of {count}, bar {count} of {count}", beside)

    def _figure(self, name: str, kept: bool, figure: str, beside: str) -> None:
        if not kept:
            self.missed.append(name)
        verdict = "ok" if kept else "MISSED"
        print(f"{name}: {figure}: {verdict}{f'   ({beside})' if beside else ''}", flush=True)

    def end(self) -> None:
        if self.missed:
            sys.exit(f"missed: {'; '.join(self.missed)}")
