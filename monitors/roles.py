"""Whom an experiment compares: its champion with each of its challengers. Pure.

Source: experiments.md, "Several challengers".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import polars as pl

from monitors import arms


@dataclass(frozen=True, slots=True)
class Roles:
    """Two versions that are compared."""

    champion: str
    challenger: str


@dataclass(frozen=True, slots=True)
class Assigned:
    """The pairs of an experiment. started: how many challengers ever had traffic; they share the
    error budget."""

    pairs: tuple[Roles, ...]
    started: int


def assign(body: Mapping[str, Any], splits: pl.DataFrame, start: datetime | None) -> Assigned:
    """As named, else by the newest split: the largest share is the champion's, and every other
    version that had traffic since the start and still has a route is a challenger; if there is none
    yet, the version that comes next. No pair where there are no two versions.

    splits: those of all rows, as the function gives them."""
    champion, named = body.get("champion"), body.get("challenger")
    if champion is not None and named is not None:
        return Assigned((Roles(champion, named),), 1)
    ranked = _ranked(splits)
    champion = champion or next((name for name in ranked if name != named), None)
    rest = [name for name in ranked if name != champion]
    if champion is None or not (named or rest):
        return Assigned((), 0)
    if named is not None:
        return Assigned((Roles(champion, named),), 1)
    started = _started(splits, start) - {champion}
    chosen = sorted(started & set(rest), key=arms.natural) or rest[:1]
    return Assigned(tuple(Roles(champion, name) for name in chosen), max(1, len(started)))


def share(split: Mapping[str, float], who: Roles) -> float | None:
    """Probability that the split gives a request to the challenger rather than to the champion."""
    mine, theirs = split.get(who.challenger, 0), split.get(who.champion, 0)
    return mine / (mine + theirs) if mine + theirs else None


def splits(rows: pl.DataFrame) -> pl.DataFrame:
    """Every split (JSON), the one of the newest request last, and the newest time of its rows."""
    if "route_split" not in rows.columns:
        return pl.DataFrame()
    drawn = rows.lazy().filter(pl.col("route_split").is_not_null())
    newest = (pl.col("request_time").max(), pl.col("__time").max().alias("until"))
    return drawn.group_by("route_split").agg(newest).sort("request_time", "route_split").collect()


def later(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The splits of all rows, from those of some and of others."""
    known = [part for part in parts if part.width]
    if not known:
        return pl.DataFrame()
    newest = (pl.col("request_time").max(), pl.col("until").max())
    both = pl.concat(known, how="vertical_relaxed").group_by("route_split").agg(newest)
    return both.sort("request_time", "route_split")


def _ranked(known: pl.DataFrame) -> list[str]:
    """Served entities by their share in the newest split, largest first."""
    if known.is_empty():
        return []
    newest = orjson.loads(known["route_split"][-1])
    return sorted(newest, key=lambda name: (-newest[name], name))


def _started(known: pl.DataFrame, start: datetime | None) -> set[str]:
    """Versions that had a share of a split since the start."""
    since = known if start is None else known.filter(pl.col("until") >= start)
    return {
        name
        for text in since["route_split"].to_list()
        for name, percentage in orjson.loads(text).items()
        if percentage > 0
    }
