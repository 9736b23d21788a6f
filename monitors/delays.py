"""How late labels come, and whether the delay depends on what they say: sums per block.

Source: experiments.md, "Checks on labels and time", labels_immature.
"""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, auc, cells, occurrences, sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


def sampled(seen: occurrences.Seen) -> pl.DataFrame:
    """Labelled rows with their delays, of each stratum and version at most those with the smallest
    id hash: a sample that does not depend on the order of anything."""
    data = seen.data
    labelled = np.flatnonzero(data.labelled)
    cell = data.stratum[labelled] * 2 + seen.side[labelled]
    rank = _rank_in(cell, data.lot[labelled])
    chosen = labelled[rank < sums.MOST_DELAYS]
    label = cells.numbers(data.column("label", chosen))
    return pl.DataFrame(
        {
            **seen.where(data.stratum[chosen], seen.side[chosen]),
            "label": label,
            "right": _right(data, chosen),
            "hours": data.delay_hours[chosen],
        }
    )


def _rank_in(cell: Ints, lot: Hashes) -> Ints:
    """The place of each row among those of its cell, by lot."""
    if np.bincount(cell).max(initial=0) <= sums.MOST_DELAYS:
        return np.zeros(len(cell), dtype=np.int64)
    order = np.lexsort((lot, cell))
    starts = occurrences.runs(cell[order])
    rank = np.empty(len(cell), dtype=np.int64)
    sizes = np.diff(np.append(starts, len(cell)))
    rank[order] = np.arange(len(cell)) - np.repeat(starts, sizes)
    return rank


def _right(data: arms.Arms, chosen: Ints) -> Floats:
    prediction, label = (data.column(name, chosen) for name in ("prediction", "label"))
    return cells.equal(prediction, label).astype(float)


def totals(seen: occurrences.Seen, sample: pl.DataFrame) -> pl.DataFrame:
    """Per block: what all labels sum to, and how the delay goes with them in the sample."""
    data = seen.data
    labelled = np.flatnonzero(data.labelled)
    column = data.column("label", labelled)
    label, right = cells.numbers(column), _right(data, labelled)
    no_number = np.isnan(label) | (not cells.numeric(column.dtype))
    block = seen.block[labelled]
    starts = occurrences.runs(block)
    code = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(block))))

    def total(values: Any) -> Floats:
        return sums.added(code, values, len(starts))

    found = pl.DataFrame(
        {
            "block": block[starts],
            "n": total(np.ones(len(labelled))).astype(np.int64),
            "texts": total(no_number).astype(np.int64),
            "label": total(np.where(no_number, 0.0, label)),
            "right": total(right),
        }
    )
    return found.join(_rank_products(sample), on="block", how="left")


def _rank_products(sampled: pl.DataFrame) -> pl.DataFrame:
    block = sampled["block"].to_numpy()
    share, side = arms.codes(sampled["share"].to_numpy())[1], sampled["side"].to_numpy()
    blocks, code = arms.codes(block)
    cell = arms.codes((code * (share.max(initial=0) + 1) + share) * 2 + side)[1]
    n = np.bincount(cell).astype(float)
    delay = _centred(auc.average_ranks(sampled["hours"].to_numpy(), cell), cell, n)
    found: dict[str, Any] = {"block": pl.Series(blocks, dtype=pl.Int64)}
    for name in ("label", "right"):
        values = np.nan_to_num(sampled[name].to_numpy())
        other = _centred(_label_ranks(values, cell, n), cell, n)
        squares = np.bincount(cell, delay * delay) * np.bincount(cell, other * other)
        variance = squares / np.maximum(n - 1, 1)
        block_of = np.zeros(len(n), dtype=np.int64)
        block_of[cell] = code
        found[f"{name}_with_delay"] = sums.added(code, delay * other, len(blocks))
        found[f"{name}_variance"] = sums.added(block_of, variance, len(blocks))
    return pl.DataFrame(found)


def _label_ranks(label: Floats, cell: Ints, n: Floats) -> Floats:
    """Average ranks inside cells, up to a constant per cell."""
    if len(label) == 0:
        return label
    low = label.min()
    if np.isin(label, (low, label.max())).all():
        # With two values the average ranks lie half the cell's size apart: no sorting needed.
        return (label > low) * n[cell] / 2
    return auc.average_ranks(label, cell)


def _centred(ranks: Floats, cell: Ints, n: Floats) -> Floats:
    return ranks - (np.bincount(cell, ranks, minlength=len(n)) / np.maximum(n, 1))[cell]
