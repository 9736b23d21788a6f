"""Two versions asked the same requests: what may be concluded, and what may not."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics as sk

from monitors import pairs

START = datetime(2026, 3, 2, tzinfo=UTC)
LATE = START + timedelta(days=30)


def policy(**changes: Any) -> dict[str, Any]:
    return {
        "primary": {"name": "accuracy", "kind": "binary", "mde": 0.02},
        "champion": "v2",
        "challenger": "v3",
        **changes,
    }


def mirrored(
    n: int = 4000,
    right: tuple[float, float] = (0.85, 0.85),
    errors: tuple[float, float] = (0.0, 0.0),
    hours: int = 48,
    units: int | None = None,
    seed: int = 1,
) -> pl.DataFrame:
    """right, errors: champion, challenger; most requests are easy or hard for both."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    unit = np.arange(n) if units is None else rng.integers(0, units, n)
    luck = rng.random(int(unit.max()) + 1)[unit]
    luck = np.clip(luck + rng.normal(0, 0.01, n), 0, 1)
    time = pl.Series(np.sort(rng.integers(0, hours * 3600, n))).cast(pl.Duration("ms")) * 1000
    frame = pl.DataFrame(
        {
            "request_time": time + START,
            "request_id": np.arange(n),
            "unit_id": pl.Series([None] * n, dtype=pl.Int64) if units is None else unit,
            "label": label,
            "label_time": time + START + timedelta(hours=1),
        }
    )
    columns: dict[str, Any] = {}
    for side, p, failing in zip(("champion", "challenger"), right, errors, strict=True):
        hit = luck < p
        columns[f"{side}_prediction"] = pl.Series(np.where(hit, label, 1 - label))
        columns[f"{side}_score"] = pl.Series(rng.random(n))
        columns[f"{side}_status_code"] = pl.Series(np.where(rng.random(n) < failing, 503, 200))
        columns[f"{side}_latency_ms"] = pl.Series(rng.lognormal(3, 0.5, n))
    return frame.with_columns(**columns)


def outcome(rows: pl.DataFrame, now: datetime = LATE, **changes: Any) -> dict[str, Any]:
    found = pairs.evaluate(rows, policy(**changes), now).to_dict()
    json.dumps(found, allow_nan=False)
    return found


def test_a_better_challenger_is_ready_and_never_promoted() -> None:
    found = outcome(mirrored(right=(0.8, 0.86)))
    assert (found["action"], found["reasons"]) == ("ready", ["better"])
    assert found["metric"]["gain"] == pytest.approx(0.06, abs=0.01)
    assert found["summary"].startswith("Ready for a first share: v3 against v2")


def test_pairs_see_a_difference_that_separate_requests_would_not() -> None:
    found = outcome(mirrored(n=1500, right=(0.85, 0.88)))
    assert found["action"] == "ready"
    apart = math.sqrt(2 * 0.85 * 0.15 / 750)  # of a split of the same requests
    assert found["metric"]["se"] < apart / 3


def test_the_numbers_are_means_over_requests_with_both_answers() -> None:
    rows = mirrored(n=500, right=(0.8, 0.9))
    found = outcome(rows, primary={"name": "brier", "mde": 0.02})
    losses = [
        sk.brier_score_loss(rows["label"], rows[f"{side}_score"])
        for side in ("champion", "challenger")
    ]
    assert found["metric"]["value"] == pytest.approx({"v2": losses[0], "v3": losses[1]})
    assert found["metric"]["gain"] == pytest.approx(losses[0] - losses[1])
    d = [
        (rows["label"] - rows[f"{side}_score"]).to_numpy() ** 2
        for side in ("champion", "challenger")
    ]
    assert found["metric"]["se"] == pytest.approx(np.std(d[0] - d[1], ddof=1) / math.sqrt(500))


def test_requests_of_one_unit_are_not_new_evidence() -> None:
    rows = mirrored(n=3600, right=(0.84, 0.86), units=100)
    found = outcome(rows)
    alone = outcome(rows.drop("unit_id"))
    assert found["metric"]["units"] == 100 and alone["metric"]["units"] == 3600
    assert found["metric"]["design_effect"] > 3
    assert found["metric"]["se"] > alone["metric"]["se"]


def test_dropped_copies_and_agreement_are_shown() -> None:
    rows = mirrored(right=(0.8, 0.9))
    status = pl.when(pl.col("request_id") % 4 == 0).then(None).otherwise("challenger_status_code")
    found = outcome(rows.with_columns(challenger_status_code=status))
    assert (found["dropped"], found["requests"]) == (1000, 3000)
    assert found["agreement"] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("rows", "now", "action", "reason"),
    [
        (mirrored().clear(), LATE, "keep_collecting", "no_data"),
        (mirrored(errors=(0.0, 0.05)), LATE, "hold", "error_rate"),
        (mirrored(), START + timedelta(minutes=30), "keep_collecting", "no_labels"),
        (mirrored(n=80), LATE, "keep_collecting", "min_labels"),
        (mirrored(right=(0.9, 0.8)), LATE, "hold", "worse"),
        (mirrored(right=(0.8, 0.9), hours=5), LATE, "keep_collecting", "min_hours"),
        (mirrored(), LATE, "hold", "below_mde"),
        (mirrored(n=150), LATE, "keep_collecting", "undecided"),
    ],
)
def test_the_first_rule_that_applies_decides(
    rows: pl.DataFrame, now: datetime, action: str, reason: str
) -> None:
    found = outcome(rows, now)
    assert (found["action"], found["reasons"]) == (action, [reason])


def test_what_is_no_mean_over_requests_is_refused() -> None:
    for name in ("auc", "precision"):
        with pytest.raises(ValueError, match="no mean over requests"):
            outcome(mirrored(n=10), primary={"name": name, "mde": 0.02})
    with pytest.raises(ValueError, match="name both versions"):
        pairs.evaluate(mirrored(n=10), {"primary": {"name": "accuracy", "mde": 0.02}}, LATE)


def test_equal_versions_are_hardly_ever_ready_however_often_one_looks() -> None:
    rng = np.random.default_rng(5)
    ever = 0
    for _ in range(60):
        n = 1200
        flips = rng.random((2, n)) < 0.15
        rows = mirrored(n=n).with_columns(
            pl.Series(f"{side}_prediction", np.where(flip, 0, 1))
            for side, flip in zip(("champion", "challenger"), flips, strict=True)
        )
        looks = [START + timedelta(hours=hour) for hour in range(26, 50, 4)]
        rows = rows.with_columns(label=pl.lit(1))
        ever += any(pairs.evaluate(rows, policy(), now).action == "ready" for now in looks)
    assert ever <= 4
