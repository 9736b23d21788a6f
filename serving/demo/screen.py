"""What the demo shows on the terminal: one line per thing that happened, a bar at the bottom."""

import time
from datetime import datetime
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule

STYLES = {"note": "", "good": "green", "bad": "bold red", "act": "bold cyan", "quiet": "dim"}


def at(moment: datetime) -> str:
    """`15 Jul 14:00Z`, in the time of the story."""
    return f"{moment.day:2d} {moment:%b %H:%M}Z"


def day(moment: datetime) -> str:
    """`15 Jul`, in the time of the story."""
    return f"{moment.day} {moment:%b}"


class Screen:
    """Prints the story. A `kind` of STYLES colours a line; its words say the same."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.begun = time.monotonic()
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("flights sent"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self.bar = self.progress.add_task("", total=None, visible=False)

    def title(self, text: str, under: str) -> None:
        self.console.print(f"[bold]{text}[/]\n[dim]{under}[/]")

    def step(self, text: str) -> None:
        """A line of the set-up, with the seconds since the start."""
        self.console.print(f"[dim]{time.monotonic() - self.begun:5.0f} s[/]  {text}")

    def line(self, moment: datetime, text: str, kind: str = "note") -> None:
        """A line of the story: when, and what happened."""
        style = STYLES[kind]
        shown = f"[{style}]{text}[/]" if style else text
        self.console.print(f"[bold]{at(moment)}[/]  {shown}")

    def replaying(self, total: int) -> None:
        """Show the bar from now on."""
        self.progress.update(self.bar, total=total, visible=True)
        self.progress.start()

    def advance(self, moment: datetime, done: int) -> None:
        self.progress.update(self.bar, advance=done, description=f"{moment.day:2d} {moment:%b %Y}")

    def stage(self, text: str) -> None:
        """What is awaited now, beside the bar."""
        self.progress.update(self.bar, description=text)

    def closing(self, lines: list[str], title: str) -> None:
        self.progress.stop()
        # No box around it: paths and addresses must stay whole, to be copied, on any width.
        self.console.print(Rule(title, align="left"))
        self.console.print("\n".join(lines), end="\n\n")

    def __enter__(self) -> "Screen":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
