"""How far the building of an environment is, from what uv prints (with --verbose). Pure."""

UNCACHED = "DEBUG Identified uncached distribution: "
NOISE = ("DEBUG ", "TRACE ")


class Progress:
    """Fed with uv's lines in their order; `told` says the stage in a few words."""

    def __init__(self) -> None:
        self.stage = "making it"
        self.packages = 0
        self._uncached = 0

    def enter(self, stage: str) -> None:
        """A stage that uv does not tell of by itself."""
        self.stage = stage

    def feed(self, line: str) -> None:
        """Take one line."""
        word, _, rest = line.partition(" ")
        if line.startswith(UNCACHED):
            self._uncached += 1
            self.stage = "downloading"
        elif word == "Resolved":
            self.packages = _count(rest)
            self.stage = "installing"
        elif word == "Prepared":
            self.stage = "installing"

    def told(self, fetched: int) -> str:
        """The stage. fetched: packages that came into the cache since this build began."""
        if self.stage == "downloading":
            return f"downloading {min(fetched, self._uncached)}/{self._uncached}"
        if self.stage == "installing" and self.packages:
            return f"installing {self.packages} packages"
        return self.stage


def of_interest(line: str) -> bool:
    """Whether a line belongs into the build log."""
    return not line.startswith(NOISE)


def _count(words: str) -> int:
    first = words.split(" ", 1)[0]
    return int(first) if first.isdecimal() else 0
