"""Quality against scikit-learn, scipy and NannyML; counts that add up; answers to odd rows."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from monitors import quality

HOUSES = Path(__file__).parent.parent / "data" / "california_housing"
START = datetime(2026, 3, 2, tzinfo=UTC)


def rows(n: int = 600, seed: int = 1, names: tuple[Any, ...] = (0, 1)) -> pl.DataFrame:
    """Scores that are right most of the time; labels after one to three hours."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, len(names), n)
    score = np.clip(at / (len(names) - 1) * 0.5 + 0.25 + rng.normal(0, 0.25, n), 0.01, 0.99)
    said = np.clip(np.round(score * (len(names) - 1)).astype(int), 0, len(names) - 1)
    time = [START + timedelta(minutes=i) for i in range(n)]
    return pl.DataFrame(
        {
            "prediction": [names[i] for i in said],
            "score": score.round(3),
            "label": [names[i] for i in at],
            "request_time": time,
            "label_time": [
                t + timedelta(hours=h) for t, h in zip(time, rng.uniform(1, 3, n), strict=True)
            ],
        }
    )


def measured(frame: pl.DataFrame, problem: str = "classification") -> dict[str, dict[str, Any]]:
    found = quality.metrics(quality.summarise(frame, problem))
    json.dumps(found, allow_nan=False)
    return found


def test_metrics_of_two_classes_agree_with_scikit_learn() -> None:
    frame = rows()
    found = measured(frame)
    y, said, score = (frame[c].to_numpy() for c in ("label", "prediction", "score"))
    expected = {
        "accuracy": sk.accuracy_score(y, said),
        "precision": sk.precision_score(y, said),
        "recall": sk.recall_score(y, said),
        "f1": sk.f1_score(y, said),
        "log_loss": sk.log_loss(y, score),
        "brier": sk.brier_score_loss(y, score),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value), name
        assert found[name]["low"] <= value <= found[name]["high"], name
    assert found["roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(y, score), abs=0.002)


def test_the_intervals_of_shares_are_wilsons() -> None:
    found = measured(rows())["accuracy"]
    expected = stats.binomtest(round(found["value"] * 600), 600).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_auc_is_delongs() -> None:
    frame = rows()
    found = measured(frame)["roc_auc"]
    y, score = frame["label"].to_numpy() == 1, frame["score"].to_numpy()
    wins = np.sign(score[y][:, None] - score[~y][None, :]) / 2 + 0.5
    v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
    se = np.sqrt(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))
    assert (found["high"] - found["low"]) / 2 / 1.96 == pytest.approx(se, rel=0.02)


def test_several_classes_are_averaged_as_scikit_learn_does() -> None:
    frame = rows(names=("bus", "car", "walk"))
    counts = quality.summarise(frame, "classification")
    found, classes = quality.metrics(counts), quality.by_class(counts)
    y, said = frame["label"].to_list(), frame["prediction"].to_list()
    for name, score in (
        ("precision", sk.precision_score),
        ("recall", sk.recall_score),
        ("f1", sk.f1_score),
    ):
        assert found[name]["value"] == pytest.approx(score(y, said, average="macro"))
        assert classes[name]["macro"] == pytest.approx(score(y, said, average="macro"))
        assert classes[name]["weighted"] == pytest.approx(score(y, said, average="weighted"))
        each = score(y, said, average=None, labels=["bus", "car", "walk"])
        assert list(classes[name]["one_vs_all"].values()) == pytest.approx(each.tolist())
    assert found["roc_auc"]["value"] is None
    assert "several" in found["roc_auc"]["reason"]


def test_metrics_of_regression_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    y = rng.gamma(4, 1000, 500)
    frame = pl.DataFrame({"label": y, "prediction": y + rng.normal(0, 500, 500)})
    found = measured(frame, "regression")
    said = frame["prediction"].to_numpy()
    expected = {
        "mae": sk.mean_absolute_error(y, said),
        "mse": sk.mean_squared_error(y, said),
        "rmse": sk.root_mean_squared_error(y, said),
        "mape": sk.mean_absolute_percentage_error(y, said),
        "r2": sk.r2_score(y, said),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value), name
        assert found[name]["low"] <= value <= found[name]["high"], name


@pytest.mark.parametrize("name", ["accuracy", "f1", "roc_auc", "log_loss", "brier", "r2", "mae"])
def test_the_intervals_hold_the_truth_nineteen_times_of_twenty(name: str) -> None:
    """200 samples of 300 rows against 200,000 rows: between 90 and 99 %."""
    problem = "regression" if name in ("r2", "mae") else "classification"

    def sample(n: int, seed: int) -> pl.DataFrame:
        if problem == "classification":
            return rows(n, seed).select("prediction", "score", "label")
        rng = np.random.default_rng(seed)
        y = rng.gamma(4, 10, n)
        return pl.DataFrame({"label": y, "prediction": y + rng.normal(0, 8, n)})

    truth = quality.metrics(quality.summarise(sample(100_000, 0), problem))[name]["value"]
    held = 0
    for seed in range(1, 201):
        found = quality.metrics(quality.summarise(sample(300, seed), problem))[name]
        held += found["low"] <= truth <= found["high"]
    assert 180 <= held <= 198


def test_real_labels_that_come_late_give_the_quality_nannyml_realises() -> None:
    expected = json.loads((HOUSES / "expected.json").read_text())["realized"]["values"]
    current = pl.read_parquet(HOUSES / "current.parquet").join(
        pl.read_parquet(HOUSES / "labels_delayed.parquet"), on="id"
    )
    for window, wanted in expected.items():
        found = measured(houses(current, window))
        for name in ("accuracy", "precision", "recall", "roc_auc"):
            if wanted[name]["value"] is None:
                continue
            assert found[name]["value"] == pytest.approx(wanted[name]["value"], abs=1e-6)


def test_quality_is_estimated_without_labels_as_nannyml_does() -> None:
    expected = json.loads((HOUSES / "expected.json").read_text())["cbpe"]["values"]
    reference = pl.read_parquet(HOUSES / "reference.parquet")
    known = quality.summarise(houses(reference, None), "classification")
    current = pl.read_parquet(HOUSES / "current.parquet")
    for window, wanted in expected.items():
        counts = quality.summarise(houses(current, window), "classification")
        found = quality.estimated(known, counts)
        for name, measure in found.items():
            if measure["value"] is None:  # nothing was predicted positive: NannyML says 0
                assert (name, wanted[name]["value"]) == ("precision", 0)
                continue
            assert measure["value"] == pytest.approx(wanted[name]["value"], abs=0.005)
            assert measure["low"] <= measure["value"] <= measure["high"]


def houses(frame: pl.DataFrame, window: str | None) -> pl.DataFrame:
    if window is not None:
        first, last = (int(x) for x in window.strip("[]").split(":"))
        frame = frame[first : last + 1]
    names = {"y_pred": "prediction", "y_pred_proba": "score", "clf_target": "label"}
    return frame.select(
        pl.col(old).alias(new) for old, new in names.items() if old in frame.columns
    )


def test_coverage_and_delay_say_how_complete_a_number_is() -> None:
    frame = rows(1_000).with_columns(
        label=pl.when(pl.int_range(pl.len()) % 4 > 0).then(pl.col("label"))
    )
    found = measured(frame)
    labelled = frame.drop_nulls("label")
    delay = (labelled["label_time"] - labelled["request_time"]).dt.total_seconds().to_numpy()
    assert (found["label_coverage"]["value"], found["label_coverage"]["n"]) == (0.75, 1_000)
    for q, name in ((0.5, "label_delay_p50_seconds"), (0.95, "label_delay_p95_seconds")):
        assert found[name]["value"] == pytest.approx(np.quantile(delay, q), rel=0.02)
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]


# Adding up


cells = st.one_of(st.none(), st.sampled_from([0.0, 1.0]))
some_rows = st.lists(
    st.tuples(cells, st.one_of(st.none(), st.floats()), cells), min_size=0, max_size=25
)


def framed(values: list[Any]) -> pl.DataFrame:
    schema = {"prediction": pl.Float64, "score": pl.Float64, "label": pl.Float64}
    return pl.DataFrame(values, schema=schema, orient="row")


@pytest.mark.parametrize("problem", quality.PROBLEMS)
@given(parts=st.lists(some_rows, min_size=1, max_size=3))
def test_merged_counts_are_those_of_all_rows(problem: str, parts: list[list[Any]]) -> None:
    merged = quality.empty(problem)
    for part in parts:
        merged = quality.merge(merged, quality.summarise(framed(part), problem))
    whole = quality.summarise(framed([row for part in parts for row in part]), problem)
    one, other = quality.to_dict(merged), quality.to_dict(whole)
    assert one.pop("moments") == pytest.approx(other.pop("moments"))
    losses = one.pop("losses"), other.pop("losses")
    assert losses[0].keys() == losses[1].keys()
    assert all(losses[0][name] == pytest.approx(losses[1][name]) for name in losses[0])
    assert one == other


@pytest.mark.parametrize("problem", quality.PROBLEMS)
@given(values=some_rows)
def test_any_rows_give_numbers_or_reasons_and_come_back_from_storage(
    problem: str, values: list[Any]
) -> None:
    counts = quality.summarise(framed(values), problem)
    text = json.dumps(quality.to_dict(counts), allow_nan=False)
    again = quality.from_dict(json.loads(text))
    assert quality.to_dict(again) == quality.to_dict(counts)
    for measure in quality.metrics(again).values():
        assert set(measure) >= {"value", "low", "high", "n"}
        assert measure["value"] is not None or measure["reason"]
    json.dumps([quality.metrics(counts), quality.by_class(counts)], allow_nan=False)
    json.dumps(quality.estimated(counts, counts), allow_nan=False)


def test_counts_of_different_problems_do_not_merge() -> None:
    with pytest.raises(ValueError, match="classification and regression"):
        quality.merge(quality.empty("classification"), quality.empty("regression"))
    with pytest.raises(ValueError, match="found 'ranking'"):
        quality.empty("ranking")


# Odd rows


def test_without_labels_there_is_no_number_and_the_reason_says_so() -> None:
    frame = rows().drop("label", "label_time")
    found = measured(frame)
    assert found["accuracy"] == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "reason": "no labels",
    }
    assert found["label_coverage"]["value"] == 0
    assert measured(frame, "regression")["mae"]["reason"] == "no labels"


def test_one_class_alone_has_no_auc_and_no_recall_of_the_other() -> None:
    frame = pl.DataFrame({"prediction": [0, 0], "label": [0, 0], "score": [0.1, 0.2]})
    found = measured(frame)
    assert found["accuracy"]["value"] == 1
    assert found["recall"]["reason"] == "no row has this label"
    assert found["precision"]["reason"] == "no row was predicted so"
    assert found["roc_auc"]["value"] is None


@pytest.mark.parametrize(
    ("prediction", "label"),
    [([True, False], [1.0, 0.0]), (["1", "0"], [1, 0]), ([1.0, 0.0], [1, 0])],
)
def test_classes_are_equal_whatever_their_type(prediction: list[Any], label: list[Any]) -> None:
    found = measured(pl.DataFrame({"prediction": prediction, "label": label}))
    assert (found["accuracy"]["value"], found["recall"]["value"]) == (1, 1)


def test_the_positive_class_is_the_greater_value() -> None:
    assert quality.positive_class(quality.classes(counted(["10", "9"]))) == "10"
    assert quality.positive_class(quality.classes(counted(["late", "early"]))) == "late"
    assert quality.positive_class(quality.classes(counted(["false"]))) == "true"
    assert quality.positive_class(quality.classes(counted(["a", "b", "c"]))) is None


def counted(names: list[str]) -> quality.QualityCounts:
    return quality.summarise(pl.DataFrame({"prediction": names, "label": names}), "classification")


def test_thousands_of_different_answers_stay_few_counts() -> None:
    texts = [f"answer {i}" for i in range(9_000)]
    counts = counted(texts)
    assert len(counts.confusion) == 4_096
    assert (counts.right_rest, counts.wrong_rest) == (9_000 - 4_096, 0)
    assert quality.metrics(counts)["accuracy"]["value"] == 1


def test_scores_that_are_no_probabilities_have_an_auc_but_no_loss() -> None:
    frame = pl.DataFrame({"prediction": [1, 0], "label": [1, 0], "score": [7.0, -3.0]})
    found = measured(frame)
    assert found["roc_auc"]["value"] == 1
    assert found["log_loss"]["reason"] == "no scores with labels"


def test_equal_labels_have_no_r2() -> None:
    found = measured(pl.DataFrame({"prediction": [1.0, 2.0], "label": [3.0, 3.0]}), "regression")
    assert found["r2"]["reason"] == "all labels are equal"
    zeros = measured(pl.DataFrame({"prediction": [1.0], "label": [0.0]}), "regression")
    assert zeros["mape"]["reason"] == "no label other than 0"


def test_confusion_is_listed_by_label_and_prediction() -> None:
    frame = pl.DataFrame({"prediction": [1, 0, 1], "label": [1, 1, 0]})
    assert quality.confusion(quality.summarise(frame, "classification")) == [
        {"prediction": "1", "label": "0", "count": 1},
        {"prediction": "0", "label": "1", "count": 1},
        {"prediction": "1", "label": "1", "count": 1},
    ]
