"""The rows of an experiment as every table of its sums takes them: in cells and runs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows with what all tables share. block: per row. unit: codes from 0 over `units`, -1 where a
    row is alone; cluster: the same over `clusters`, buckets where a block has many units; cell:
    codes from 0 over the triples of stratum, side and cluster that occur, each in `places`."""

    data: arms.Arms
    side: Ints
    block: Ints
    unit: Ints
    units: Hashes
    cluster: Ints
    clusters: Hashes
    cell: Ints
    places: tuple[Ints, Ints, Ints]

    @classmethod
    def of(cls, data: arms.Arms) -> "Seen":
        block = data.strata.block[data.stratum]
        unit, units = _codes(data.unit, data.alone)
        cluster, clusters = unit, units
        crowded = _crowded(block, unit)
        if crowded.any():
            bucket = np.where(crowded, data.unit % sums.MOST_UNITS, data.unit)
            cluster, clusters = _codes(bucket, data.alone)
        side = data.is_challenger.astype(np.int64)
        width = len(clusters) + 1
        distinct, cell = arms.codes((data.stratum * 2 + side) * width + cluster + 1)
        pair, cluster_of = np.divmod(distinct.astype(np.int64), width)
        places = (*np.divmod(pair, 2), cluster_of - 1)
        return cls(data, side, block, unit, units, cluster, clusters, cell, places)

    def where(self, stratum: Ints, side: Ints) -> dict[str, Any]:
        """The columns that say where something was counted."""
        strata = self.data.strata
        return {"block": strata.block[stratum], "share": strata.share[stratum], "side": side}

    def cluster_column(self, code: Ints) -> pl.Series:
        return hashes(code, self.clusters)


def _codes(hashes: Hashes, alone: Flags) -> tuple[Ints, Hashes]:
    """A code per row over the distinct hashes in ascending order; -1 where a row is alone."""
    if alone.all():
        return np.full(len(hashes), -1), np.empty(0, dtype=np.uint64)
    distinct, known = arms.codes(hashes[~alone])
    code = np.full(len(hashes), -1)
    code[~alone] = known
    return code, distinct


def hashes(code: Ints, distinct: Hashes) -> pl.Series:
    """The hash behind each code; null for -1."""
    found = np.append(distinct, np.uint64(0))[code]
    return pl.Series("unit", found, dtype=pl.UInt64).set(pl.Series(code < 0), None)


def _crowded(block: Ints, unit: Ints) -> Flags:
    """True in the blocks with more units than are told apart."""
    known = unit >= 0
    if not known.any() or int(unit.max()) < sums.MOST_UNITS:
        return np.zeros(len(block), dtype=bool)
    pairs = pl.DataFrame({"block": block[known], "unit": unit[known]}).unique()
    counts = pairs.group_by("block").len().filter(pl.col("len") > sums.MOST_UNITS)
    return np.isin(block, counts["block"].to_numpy())


def runs(group: Ints) -> Ints:
    """Where each run of equal values begins."""
    if len(group) == 0:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.r_[True, group[1:] != group[:-1]])


def ends(starts: Ints, count: int) -> Ints:
    """The last entry of each run."""
    return np.append(starts, count)[1:] - 1
