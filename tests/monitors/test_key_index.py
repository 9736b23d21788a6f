from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from monitors import key_index


def entries(*pairs: tuple[int, int]) -> key_index.Pair:
    keys, times = zip(*pairs, strict=True)
    return np.array(keys, dtype=np.uint64), np.array(times, dtype=np.int64)


@given(
    parts=st.lists(
        st.lists(
            st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 9), st.integers(-50, 50)),
            min_size=1, max_size=8,
        ),
        max_size=20,
    ),
    wanted=st.lists(st.integers(0, 9), max_size=5),
    flushed=st.lists(st.booleans(), min_size=20, max_size=20),
)  # fmt: skip
def test_every_moment_of_a_key_is_found_in_whatever_run_it_lies(
    tmp_path_factory, parts, wanted, flushed
):
    index = key_index.KeyIndex(tmp_path_factory.mktemp("keys"))
    for part, flush in zip(parts, flushed, strict=False):
        index.add(entries(*part))
        if flush:
            index.flush()
    expected = sorted({time for part in parts for key, time in part if key in wanted})
    assert index.moments(np.array(wanted, dtype=np.uint64)).tolist() == expected
    again = key_index.KeyIndex(index.folder, index.runs)
    again.fresh = index.fresh
    assert again.moments(np.array(wanted, dtype=np.uint64)).tolist() == expected


def test_runs_become_few_and_files_that_nobody_saved_go(tmp_path: Path) -> None:
    index = key_index.KeyIndex(tmp_path, fresh_entries=100)
    for number in range(100):
        index.add(entries(*((number * 1000 + k, number) for k in range(150))))
    assert len(index.runs) < 2 * key_index.FAN
    assert {path.name for path in tmp_path.iterdir()} == set(index.runs)
    found = index.moments(np.array([k * 1000 for k in range(100)], dtype=np.uint64))
    assert found.tolist() == list(range(100))


def test_saved_files_stay_until_something_newer_is_saved(tmp_path: Path) -> None:
    index = key_index.KeyIndex(tmp_path, fresh_entries=1)
    for number in range(key_index.FAN - 1):
        index.add(entries((number, number)))
    saved = list(index.runs)
    index.saved = set(saved)
    index.add(entries((99, 99)))
    assert len(index.runs) == 1
    there = key_index.KeyIndex(tmp_path, saved)
    assert there.moments(np.arange(100, dtype=np.uint64)).tolist() == list(range(len(saved)))


def test_an_id_of_one_kind_is_not_taken_for_that_of_the_other() -> None:
    one = pl.DataFrame({"databricks_request_id": ["a"], "client_request_id": [None]})
    other = pl.DataFrame({"databricks_request_id": [None], "client_request_id": ["a"]})
    assert set(key_index.keys_of(one)).isdisjoint(key_index.keys_of(other))


def test_a_run_merged_range_by_range_tells_where_it_has_entries(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(key_index, "MERGED_AT_ONCE", 100)
    random = np.random.default_rng(5)
    index = key_index.KeyIndex(tmp_path, fresh_entries=500)
    added = random.integers(0, 2**64, 4_000, dtype=np.uint64)
    for start in range(0, 4_000, 500):
        index.add((added[start : start + 500], np.arange(start, start + 500)))
    (run,) = index.runs
    assert index.moments(added[::7]).tolist() == list(range(0, 4_000, 7))
    others = random.integers(0, 2**64, 4_000, dtype=np.uint64)
    assert not index.moments(others).size
    seen = key_index._maybe_there(tmp_path / run, np.sort(others))
    assert seen.mean() < 1 / key_index.BITS_PER_ENTRY
