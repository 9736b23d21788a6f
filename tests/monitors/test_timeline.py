from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors import intake, timeline

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
START = int(MONDAY.timestamp() * 1_000_000)
MINUTE = 60_000_000


def rows(minutes: list[int], first: int = 0) -> pl.DataFrame:
    times = [MONDAY + timedelta(minutes=m) for m in minutes]
    return pl.DataFrame(
        {
            "t": pl.Series(times, dtype=intake.TIME),
            "k": range(first, first + len(minutes)),
            "word": pl.Series([None] * len(minutes), dtype=pl.String),
        }
    )


def line(folder: Path, pieces: list = (), piece_rows: int = 16) -> timeline.Timeline:  # type: ignore[assignment]
    return timeline.Timeline(folder, "t", {"word": pl.String}, pieces, piece_rows)


@given(
    steps=st.lists(
        st.tuples(st.lists(st.integers(0, 60), max_size=30), st.booleans(), st.booleans()),
        max_size=12,
    ),
    span=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    moments=st.sets(st.integers(0, 60), max_size=5),
)
def test_a_span_or_some_moments_give_their_rows_and_no_others(
    tmp_path_factory, steps, span, moments
):
    """However rows come, become files, are begun with again, and change."""
    kept = line(tmp_path_factory.mktemp("rows"))
    told: dict[int, tuple[int, str | None]] = {}
    for minutes, save, change in steps:
        kept.add(rows(minutes, len(told)))
        told |= {len(told) + at: (m, None) for at, m in enumerate(minutes)}
        if change:
            wanted = np.array(sorted({START + m * MINUTE for m in minutes}), dtype=np.int64)
            for found in kept.at(wanted):
                words = found.rows.with_columns(word=pl.format("w{}-{}", "k", pl.lit(len(told))))
                kept.change(found.piece, found.positions, words)
            for k, (m, _) in list(told.items()):
                if m in minutes:
                    told[k] = (m, f"w{k}-{len(told)}")
        if save:
            pieces = kept.save()
            assert all(piece[0] <= 16 for piece in pieces)
            kept = line(kept.folder, pieces)
    low, high = (START + m * MINUTE for m in span)
    found = sorted(
        (k, word) for part in kept.between(low, high) for k, word in part["k", "word"].iter_rows()
    )
    assert found == [(k, w) for k, (m, w) in told.items() if span[0] <= m < span[1]]
    wanted = np.array(sorted(START + m * MINUTE for m in moments), dtype=np.int64)
    assert sorted(k for f in kept.at(wanted, ["k"]) for k in f.rows["k"]) == [
        k for k, (m, _) in told.items() if m in moments
    ]


def test_a_file_that_is_gone_or_torn_is_said_to_be_so(tmp_path: Path) -> None:
    kept = line(tmp_path)
    kept.add(rows([1, 2, 3]))
    pieces = kept.save()
    path = tmp_path / pieces[0][3]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(intake.ReadAnew):
        list(line(tmp_path, pieces).between(START, START + 9 * MINUTE))
    path.unlink()
    with pytest.raises(intake.ReadAnew):
        list(line(tmp_path, pieces).between(START, START + 9 * MINUTE))


def test_small_pieces_become_larger_ones(tmp_path: Path) -> None:
    kept = line(tmp_path, piece_rows=64)
    for minute in range(300):
        kept.add(rows([minute], minute))
        kept.spill()
    assert len(kept.pieces) < 3 * timeline.FAN
    assert {path.name for path in tmp_path.iterdir()} == kept.files
