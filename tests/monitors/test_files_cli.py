"""`inferlake drift` and `inferlake quality` on files, as a person or a script runs them."""

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer
from deltalake import write_deltalake
from typer.testing import CliRunner, Result

from monitors import distances, files_cli

DATA = Path(__file__).parent.parent / "data"
CARS = DATA / "car_price"

app = typer.Typer()
files_cli.register(app)


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def found(*arguments: object) -> dict[str, Any]:
    """The JSON that a command writes to standard output."""
    return json.loads(run(*arguments, "--json", "-").stdout)


def columns(answer: dict[str, Any], window: int = 0) -> dict[str, Any]:
    return answer["windows"][window]["columns"]


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Two Parquet files; in the second, `moved` has moved and `feed` has ended."""
    rng = np.random.default_rng(1)
    n = 2_000
    paths = tmp_path / "reference.parquet", tmp_path / "current.parquet"
    for path, shift in zip(paths, (0.0, 1.0), strict=True):
        pl.DataFrame(
            {
                "moved": rng.normal(shift, 1, n),
                "still": rng.normal(0, 1, n),
                "kind": rng.choice(["a", "b", "c"], n),
                "flag": rng.random(n) < 0.5,
                "feed": [None if shift else float(x) for x in rng.normal(size=n)],
                "day": ["Mon" if i < n // 2 else "Tue" for i in range(n)],
            },
            schema_overrides={"feed": pl.Float64},
        ).write_parquet(path)
    return paths


# Real data; against scipy and NannyML: tests/benchmarks/test_monitor_benchmarks.py


def test_regression_quality_of_real_data_is_that_of_scikit_learn() -> None:
    from sklearn import metrics as sk

    windows = found(
        *("quality", CARS / "reference.parquet", CARS / "current.parquet"),
        *("--label", "y_true", "--prediction", "y_pred", "--window-rows", 2_500),
        *("--labels", CARS / "labels_delayed.parquet", "--id", "id"),
    )["windows"]
    rows = pl.read_parquet(CARS / "current.parquet").join(
        pl.read_parquet(CARS / "labels_delayed.parquet"), on="id", maintain_order="left"
    )
    for number, window in enumerate(windows):
        part = rows.slice(number * 2_500, 2_500)
        y, said = part["y_true"].to_numpy(), part["y_pred"].to_numpy()
        realized = window["realized"]
        assert set(realized) == {"mae", "mse", "rmse", "mape", "r2"}
        assert realized["mae"]["value"] == pytest.approx(sk.mean_absolute_error(y, said))
        assert realized["rmse"]["value"] == pytest.approx(sk.root_mean_squared_error(y, said))
        assert realized["r2"]["value"] == pytest.approx(sk.r2_score(y, said))
        assert window["estimated"] == {}


# Drift


def test_the_json_has_the_documented_form(sides: tuple[Path, Path]) -> None:
    answer = found("drift", *sides)
    assert answer["reference"] == {"rows": 2_000}
    (window,) = answer["windows"]
    assert (window["window"], window["rows"], window["slice"]) == ("[0:1999]", 2_000, None)
    assert set(window["columns"]) == {"moved", "still", "kind", "flag", "feed", "day"}
    moved, feed = window["columns"]["moved"], window["columns"]["feed"]
    assert (moved["kind"], moved["status"], moved["severity"]) == ("numeric", "drifted", "critical")
    assert moved["metrics"]["ks"]["threshold"] == distances.THRESHOLDS["ks"]
    assert set(moved["metrics"]["ks"]) == {"value", "bound", "pvalue", "threshold"}
    assert (feed["status"], feed["metric"]) == ("drifted", "null_share")
    assert feed["metrics"]["ks"]["value"] is None
    assert feed["metrics"]["ks"]["reason"] == "no values"
    assert window["columns"]["still"]["status"] == window["columns"]["flag"]["status"] == "ok"
    ranks = sorted((one["rank"], name) for name, one in window["columns"].items())
    assert [rank for rank, _ in ranks] == [1, 2, 3, 4, 5, 6]
    assert {name for _, name in ranks[:2]} == {"moved", "feed"}


def test_the_table_shows_the_worst_column_first(sides: tuple[Path, Path]) -> None:
    lines = run("drift", *sides).stdout.splitlines()
    assert lines[0] == "2,000 rows in 1 window against 2,000 rows of the reference"
    assert lines[1].split()[:4] == ["COLUMN", "KIND", "STATUS", "SEVERITY"]
    assert {lines[2].split()[0], lines[3].split()[0]} == {"moved", "feed"}
    assert "critical" in lines[2] and len(lines) == 8


def test_windows_of_rows_are_in_order_and_the_last_may_be_short(sides: tuple[Path, Path]) -> None:
    windows = found("drift", *sides, "--window-rows", 900)["windows"]
    assert [w["window"] for w in windows] == ["[0:899]", "[900:1799]", "[1800:1999]"]
    assert [w["rows"] for w in windows] == [900, 900, 200]
    table = run("drift", *sides, "--window-rows", 900).stdout.splitlines()
    assert "3 of 3" in table[2] and "WORST WINDOW" in table[1]


def test_windows_by_a_column_are_its_values(sides: tuple[Path, Path]) -> None:
    windows = found("drift", *sides, "--window-by", "day")["windows"]
    assert [w["window"] for w in windows] == ["Mon", "Tue"]
    assert all("day" not in w["columns"] for w in windows)


def test_windows_of_time_are_half_open_and_the_reference_knows_its_own(tmp_path: Path) -> None:
    """Every day lies elsewhere: no drift where the reference's own days did so too."""
    rng = np.random.default_rng(2)
    paths = tmp_path / "reference.parquet", tmp_path / "current.parquet"
    for path, days, start in zip(paths, (10, 2), ("2026-01-01", "2026-02-01"), strict=True):
        n = 400 * days
        first = datetime.fromisoformat(start)
        pl.DataFrame(
            {
                "at": [first + i * timedelta(seconds=216) for i in range(n)],
                "weather": np.sin(np.arange(n) // 400) + rng.normal(0, 0.3, n),
            }
        ).write_parquet(path)
    answer = found("drift", *paths, "--timestamp", "at", "--granularity", "1 day")
    assert [w["window"] for w in answer["windows"]] == [
        ["2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z"],
        ["2026-02-02T00:00:00Z", "2026-02-03T00:00:00Z"],
    ]
    assert [w["rows"] for w in answer["windows"]] == [400, 400]
    assert all(columns(answer, w)["weather"]["status"] == "ok" for w in (0, 1))
    unaware = found("drift", *paths, "--window-rows", 400, "--numeric", "weather")
    assert columns(unaware, 0)["weather"]["status"] == "drifted"


def test_slices_are_compared_with_the_same_slice_of_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    paths = tmp_path / "reference.csv", tmp_path / "current.csv"
    for path, shift in zip(paths, (0.0, 2.0), strict=True):
        place = rng.choice(["north", "south"], 2_000)
        x = rng.normal(0, 1, 2_000) + np.where(place == "north", shift, 0)
        pl.DataFrame({"place": place, "x": x}).write_csv(path)
    windows = found("drift", *paths, "--slice", "place", "--slice", "place = 'north'")["windows"]
    slices = [w["slice"] and (w["slice"]["key"], w["slice"]["value"]) for w in windows]
    assert slices == [
        None,
        ("place", "north"),
        ("place", "south"),
        ("place = 'north'", "false"),
        ("place = 'north'", "true"),
    ]
    statuses = [w["columns"]["x"]["status"] for w in windows]
    assert statuses == ["drifted", "drifted", "ok", "ok", "drifted"]
    assert sum(w["rows"] for w in windows[1:3]) == 2_000
    assert "place = north" in run("drift", *paths, "--slice", "place").stdout


@pytest.mark.parametrize(
    "text", ["read_csv('/etc/passwd')", "(SELECT 1)", "x; DROP TABLE t", "nowhere", "1 = 1"]
)
def test_a_hostile_slice_is_wrong_use(sides: tuple[Path, Path], text: str) -> None:
    said = run("drift", *sides, "--slice", text, code=2).stderr
    assert said.count("\n") == 1


def test_several_current_files_are_read_as_one(sides: tuple[Path, Path], tmp_path: Path) -> None:
    whole = pl.read_parquet(sides[1])
    halves = tmp_path / "a.parquet", tmp_path / "b.csv"
    whole[:1_000].write_parquet(halves[0])
    whole[1_000:].write_csv(halves[1])
    one, other = found("drift", *sides), found("drift", sides[0], *halves)
    assert other["windows"][0]["rows"] == 2_000
    for name in ("moved", "still", "kind"):
        ours, theirs = columns(one)[name]["metrics"], columns(other)[name]["metrics"]
        for metric, value in ours.items():
            room = (value["bound"] or 0) + (theirs[metric]["bound"] or 0) + 1e-9
            assert abs(theirs[metric]["value"] - value["value"]) <= room, (name, metric)


@pytest.mark.parametrize("form", ["csv", "folder", "delta"])
def test_a_file_in_any_form_gives_the_same_numbers(
    sides: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    rows = pl.read_parquet(sides[1])
    path = tmp_path / ("current.csv" if form == "csv" else form)
    if form == "csv":
        rows.write_csv(path)
    elif form == "folder":
        path.mkdir()
        rows[:700].write_parquet(path / "1.parquet")
        rows[700:].write_parquet(path / "2.parquet")
    else:
        write_deltalake(path, rows[:700].to_arrow(), partition_by=["kind"])
        write_deltalake(path, rows[700:].to_arrow(), mode="append")
    one, other = found("drift", *sides), found("drift", sides[0], path)
    for name in ("moved", "still", "kind", "flag"):
        assert columns(one)[name]["status"] == columns(other)[name]["status"]
        for metric, value in columns(one)[name]["metrics"].items():
            theirs = columns(other)[name]["metrics"][metric]
            room = (value["bound"] or 0) + (theirs["bound"] or 0) + 1e-9
            assert abs(theirs["value"] - value["value"]) <= room, (name, metric)


def test_the_same_files_give_the_same_bytes(sides: tuple[Path, Path], tmp_path: Path) -> None:
    outs = tmp_path / "1.json", tmp_path / "2.json"
    for out in outs:
        assert run("drift", *sides, "--window-rows", 300, "--json", out).stdout == ""
    assert outs[0].read_bytes() == outs[1].read_bytes()
    json.loads(outs[0].read_text())


def test_many_batches_give_the_numbers_of_one(tmp_path: Path) -> None:
    """More rows than a batch holds, in row groups of an odd size, against scipy on raw values."""
    from scipy import stats

    rng = np.random.default_rng(4)
    reference, current = rng.gamma(2, 3, 400_000), rng.gamma(2.1, 3, 300_000)
    for name, values in (("r", reference), ("c", current)):
        frame = pl.DataFrame({"x": values, "y": np.round(values)})
        frame.write_parquet(tmp_path / f"{name}.parquet", row_group_size=70_001)
    metrics = columns(found("drift", tmp_path / "r.parquet", tmp_path / "c.parquet"))
    for name, sides in (
        ("x", (current, reference)),
        ("y", (np.round(current), np.round(reference))),
    ):
        ks, moved = stats.ks_2samp(*sides, method="asymp"), stats.wasserstein_distance(*sides)
        ours = metrics[name]["metrics"]
        assert ours["ks"]["value"] == pytest.approx(ks.statistic, abs=0.002)
        assert abs(ours["ks"]["value"] - ks.statistic) <= ours["ks"]["bound"] + 1e-12
        normed = moved / sides[1].std()
        assert ours["wasserstein_normed"]["value"] == pytest.approx(normed, abs=0.002)
    assert metrics["y"]["metrics"]["ks"]["bound"] == 0  # whole numbers are kept exactly


# Odd files


def odd(tmp_path: Path, reference: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    paths = tmp_path / "r.parquet", tmp_path / "c.parquet"
    for path, values in zip(paths, (reference, current), strict=True):
        pl.DataFrame(values, strict=False).write_parquet(path)
    return columns(found("drift", *paths))


def test_an_empty_current_file_is_one_empty_window(
    sides: tuple[Path, Path], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.parquet"
    pl.read_parquet(sides[1]).clear().write_parquet(empty)
    answer = found("drift", sides[0], empty)
    (window,) = answer["windows"]
    assert (window["window"], window["rows"]) == ("[]", 0)
    assert {one["status"] for one in window["columns"].values()} == {"not_enough_data"}
    assert "not enough data" in run("drift", sides[0], empty).stdout
    assert found("drift", empty, sides[1])["reference"]["rows"] == 0
    assert found("drift", sides[0], empty, "--window-by", "day")["windows"] == []


def test_odd_columns_have_a_status_and_no_nan(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    n = 600
    usual = rng.normal(size=n)
    reference = {
        "absurd": usual,
        "constant": [4.0] * n,
        "gone": usual,
        "nothing": pl.Series([None] * n, dtype=pl.Float64),
        "not a number": usual,
        "infinite": usual,
        "large": [2**53 + 1 + i for i in range(n)],
        "fresh": ["a", "b"] * (n // 2),
        "mixed": usual,
        "date": pl.Series(["2026-01-01"] * n).str.to_date(),
    }
    current = {
        **reference,
        "absurd": [1e12, *rng.normal(size=n - 1)],
        "gone": pl.Series([None] * n, dtype=pl.Float64),
        "not a number": [np.nan] * 60 + list(rng.normal(size=n - 60)),
        "infinite": [np.inf, -np.inf, *rng.normal(size=n - 2)],
        "fresh": ["a", "b", "new"] * (n // 3),
        "mixed": ["oops", *(str(x) for x in usual[1:])],
    }
    found = odd(tmp_path, reference, current)
    statuses = {name: one["status"] for name, one in found.items()}
    assert statuses == {
        **dict.fromkeys(("absurd", "constant", "infinite", "large", "mixed", "date"), "ok"),
        **dict.fromkeys(("gone", "fresh"), "drifted"),
        "not a number": "ok",
        "nothing": "undefined",
    }
    for one in found.values():
        assert all(m["value"] is not None or m["reason"] for m in one["metrics"].values())


def test_two_rows_are_not_enough(tmp_path: Path) -> None:
    found = odd(tmp_path, {"x": [1.0, 2.0], "c": ["a", "b"]}, {"x": [5.0, 6.0], "c": ["z", "z"]})
    assert {one["status"] for one in found.values()} == {"not_enough_data"}


@pytest.mark.parametrize("side", ["reference", "current"])
def test_one_value_of_a_trillion_neither_hides_a_change_of_scale_nor_alarms(
    tmp_path: Path, side: str
) -> None:
    rng = np.random.default_rng(6)
    usual, like, wider = rng.normal(size=3_000), rng.normal(size=1_000), rng.normal(0, 2, 1_000)
    for values in (usual,) if side == "reference" else (like, wider):
        values[0] = 1e12
    found = odd(tmp_path, {"still": usual, "wider": usual}, {"still": like, "wider": wider})
    assert found["still"]["status"] == "ok"
    assert found["wider"]["status"] == "drifted"


def test_a_csv_value_that_does_not_fit_is_null(tmp_path: Path) -> None:
    lines = [str(i % 50) for i in range(12_000)]
    (tmp_path / "r.csv").write_text("x\n" + "\n".join(lines))
    (tmp_path / "c.csv").write_text("x\n" + "\n".join([*lines, "1.5", "many"]))
    metrics = columns(found("drift", tmp_path / "r.csv", tmp_path / "c.csv"))["x"]["metrics"]
    assert metrics["percent_null_delta"]["value"] == pytest.approx(100 / 12_002)
    assert metrics["count_delta"]["value"] == 2


# Quality


def answers(tmp_path: Path, n: int = 800) -> tuple[Path, Path]:
    rng = np.random.default_rng(7)
    paths = tmp_path / "reference.parquet", tmp_path / "current.parquet"
    for path in paths:
        score = rng.random(n)
        truth = rng.random(n) < score
        pl.DataFrame(
            {
                "id": np.arange(n),
                "y": truth.astype(int),
                "said": (score > 0.5).astype(int),
                "p": score,
            }
        ).write_parquet(path)
    return paths


ASKED = ("--label", "y", "--prediction", "said", "--score", "p")


def test_without_labels_quality_is_estimated_and_realized_gives_its_reason(tmp_path: Path) -> None:
    reference, current = answers(tmp_path)
    pl.read_parquet(current).drop("y").write_parquet(current)
    (window,) = found("quality", reference, current, *ASKED)["windows"]
    assert (window["rows"], window["labelled"], window["alert"]) == (800, 0, False)
    assert window["realized"]["accuracy"]["value"] is None
    assert window["realized"]["accuracy"]["reason"]
    assert window["estimated"]["accuracy"]["value"] == pytest.approx(0.75, abs=0.03)


def test_labels_come_from_the_file_itself_or_from_another(tmp_path: Path) -> None:
    reference, current = answers(tmp_path)
    inside = found("quality", reference, current, *ASKED)["windows"][0]
    rows = pl.read_parquet(current)
    rows.select("id", "y").sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "y.csv")
    rows.drop("y").write_parquet(current)
    came = ("--labels", tmp_path / "y.csv", "--id", "id")
    outside = found("quality", reference, current, *ASKED, *came)["windows"][0]
    assert inside == outside and inside["labelled"] == 800


def test_the_table_of_quality_has_a_line_per_window(tmp_path: Path) -> None:
    lines = run("quality", *answers(tmp_path), *ASKED, "--window-rows", 400).stdout.splitlines()
    assert lines[0].startswith("2 windows against 800 rows of the reference")
    assert [line.split()[0] for line in lines[1:]] == ["WINDOW", "[0:399]", "[400:799]"]


def test_the_problem_is_told_by_the_labels_or_by_the_caller(tmp_path: Path) -> None:
    paths = answers(tmp_path)
    asked = ("quality", *paths, "--label", "p", "--prediction", "said")
    assert set(found(*asked)["windows"][0]["realized"]) >= {"mae", "r2"}
    told = found("quality", *paths, *ASKED[:4], "--problem", "regression")
    assert set(told["windows"][0]["realized"]) >= {"mae", "r2"}


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.parquet"], 1, "does not exist"),
        (["empty.csv"], 1, "cannot be read"),
        (["text.md"], 2, "neither Parquet"),
        (["torn.parquet"], 1, "cannot be read"),
        (["--numeric", "absent"], 2, "'absent' is not in both files"),
        (["--window-by", "absent"], 2, "'absent' is not there"),
        (["--window-rows", "10", "--window-by", "kind"], 2, "exclude one another"),
        (["--granularity", "1 day"], 2, "goes with --timestamp"),
        (["--timestamp", "kind", "--granularity", "3 days"], 2, "3 days"),
        (["--timestamp", "kind"], 2, "'kind' holds no times"),
        (["--timestamp", "still"], 2, "'still' holds no times"),
        (["--numeric", "still", "--categorical", "still"], 2, "named numeric and categorical"),
        (["--json", "no/such/folder/out.json"], 1, "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_an_exit_code(
    sides: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").touch()
    Path("text.md").write_text("# no table")
    Path("torn.parquet").write_bytes(sides[0].read_bytes()[:400])
    given = [] if arguments[0].startswith("--") else [sides[0]]
    both = [*given, *arguments] if given else [*sides, *arguments]
    done = run("drift", *both, code=code)
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_quality_says_which_column_is_missing(tmp_path: Path) -> None:
    paths = answers(tmp_path)
    said = run("quality", *paths, "--label", "truth", "--prediction", "said", code=2).stderr
    assert "'truth'" in said
    said = run("quality", *paths, "--label", "y", "--prediction", "absent", code=2).stderr
    assert "'absent'" in said
    run("quality", *paths, *ASKED, "--id", "id", code=2)
    run("quality", *paths, *ASKED, "--problem", "guessing", code=2)


def test_the_commands_of_the_docs_run_and_print_what_the_page_shows() -> None:
    root = DATA.parent.parent
    page = (root / "docs" / "watch-drift-and-quality.md").read_text()
    on_files = page.partition("## With a monitor")[0]
    commands = re.findall(r"(?:^    .+\n)+", on_files, re.M)
    printed = "".join(
        subprocess.run(
            ["bash", "-euc", block.replace("inferlake", f"{sys.executable} -m serving.cli")],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            cwd=root,
        ).stdout
        for block in commands
    )
    (block,) = re.findall(r"^```\n(.*?)^```", on_files, re.M | re.S)
    shown = block.splitlines()
    together = {" ".join(line.split()) for line in printed.splitlines()}
    assert len(commands) == 2
    assert all(" ".join(line.split()) in together for line in shown if line != "...")


def test_the_installed_command_line_has_both(sides: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "drift", *map(str, sides)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "moved" in done.stdout and done.stderr == ""


def test_comparing_parquet_files_loads_nothing_that_it_does_not_need(sides) -> None:
    heavy = "{'pandas', 'sqlglot', 'sqlalchemy', 'deltalake', 'mlflow', 'evidently'}"
    code = (
        "import sys, typer; from monitors import files_cli; app = typer.Typer();"
        f"files_cli.register(app); app({['drift', *map(str, sides)]!r}, standalone_mode=False);"
        f"sys.exit(len({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
