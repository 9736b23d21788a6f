"""Which environment a model gets, and how one is built: with real uv and a real wheel."""

import asyncio
import platform
import subprocess
import sys
import zipfile
from concurrent import futures

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.settings import Settings
from serving.controller import building, environments, local, stages

HERE = {"scikit-learn": "1.9.1", "mlflow-skinny": "3.17.2", "numpy": "2.4.0"}


def prove(python):
    """Imports what the wheels below hold."""
    done = futures.Future()
    subprocess.run([python, "-c", "import answer, pandas"], check=True)
    done.set_result(None)
    return done


def unmet(*requirements, python=None, installed=HERE):
    wanted = environments.Needs(python, requirements)
    return environments.unmet(wanted, "3.11.9", installed)


@pytest.mark.parametrize(
    "line",
    [
        "scikit-learn==1.9.1",
        "Scikit_Learn==1.9.1",
        "scikit-learn>=1.6,<2",
        "numpy",
        "mlflow==3.17.2",
        "mlflow-skinny[databricks]==3.17.2",
        "pywin32==1 ; sys_platform == 'win32'",
    ],
)
def test_a_requirement_that_is_there_is_met(line):
    assert unmet(line) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scikit-learn==1.9.0", "scikit-learn==1.9.0 (here 1.9.1)"),
        ("xgboost==3.0", "xgboost==3.0 (not installed)"),
        ("xgboost", "xgboost (not installed)"),
        ("mlflow==3.17.1", "mlflow==3.17.1 (here 3.17.2)"),
        ("--extra-index-url x", "--extra-index-url x"),
        ("./own.whl", "./own.whl"),
        ("own @ file:///own.whl", "own @ file:///own.whl"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(line, said):
    assert unmet(line) == [said]


def test_python_must_have_the_same_minor_version():
    assert unmet(python="3.11.2") == []
    assert unmet(python="3.10.14") == ["python 3.10 (here 3.11)"]


@given(st.text(max_size=60))
def test_no_line_of_a_requirements_file_breaks_the_comparison(line):
    assert isinstance(unmet(line), list)


def test_needs_are_read_from_the_files_that_mlflow_writes(tmp_path):
    (tmp_path / "python_env.yaml").write_text("python: 3.11.4\n")
    (tmp_path / "requirements.txt").write_text("mlflow==3.17.2\n\n# why\nnumpy==2.4.0  # fast\n")
    found = environments.needs(tmp_path)
    assert found == environments.Needs("3.11.4", ("mlflow==3.17.2", "numpy==2.4.0"))


def test_needs_are_read_from_conda_where_there_is_nothing_else(tmp_path):
    text = "dependencies:\n- python=3.10.1\n- pip\n- pip:\n  - numpy==2.4.0\n"
    (tmp_path / "conda.yaml").write_text(text)
    assert environments.needs(tmp_path) == environments.Needs("3.10.1", ("numpy==2.4.0",))


def test_the_key_depends_on_what_is_needed_and_not_on_its_order():
    one = environments.key(environments.Needs("3.11.4", ("a==1", "b==2")))
    assert one == environments.key(environments.Needs("3.11.4", ("b==2", "a==1")))
    assert one != environments.key(environments.Needs("3.12.4", ("a==1", "b==2")))


def test_auto_takes_the_servers_own_environment_where_it_fits(tmp_path):
    (tmp_path / "requirements.txt").write_text("numpy\npandas\n")
    said = []
    found = environments.interpreter(tmp_path, "auto", tmp_path / "env", 60, said.append, prove)
    assert (found, said) == (sys.executable, [])
    assert not (tmp_path / "env").exists()


def wheel(folder, name, version, *modules):
    """A wheel of one module, or of these, whole enough for an installer."""
    info = f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for module in modules or (f"{name}.py",):
            archive.writestr(module, f"VERSION = '{version}'\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Packages that uv may install, and no others: nothing is fetched."""
    folder = tmp_path / "wheels"
    wheel(folder, "mlflow_skinny", "3.17.2", "mlflow/__init__.py")
    for name in (*building.WORKER_NEEDS, "answer"):
        wheel(folder, name, "42.0")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    return folder


def test_an_isolated_environment_is_built_once_and_says_how_far_it_is(tmp_path, index):
    model, place, said = tmp_path / "model", tmp_path / "env", []
    model.mkdir()
    (model / "requirements.txt").write_text("answer==42.0\nmlflow-skinny==3.17.2\n")
    (model / "python_env.yaml").write_text(f"python: {platform.python_version()}\n")
    python = environments.interpreter(model, "auto", place, 120, said.append, prove)
    assert python != sys.executable
    code = "import answer; print(answer.VERSION)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "42.0"
    assert said[0].startswith("The server's environment lacks answer==42.0")
    stages_told = [line.partition(" s: ")[2] for line in said[1:]]
    assert {"resolving", "installing 7 packages", "importing", "ready"} <= set(stages_told)
    built = environments.build_log(place, model)
    assert "answer==42.0" in built
    assert "s] importing" in built
    assert "DEBUG" not in built
    again = []
    assert environments.interpreter(model, "isolated", place, 120, again.append, prove) == python
    assert again == []


def test_a_stage_is_told_from_what_uv_prints():
    progress = stages.Progress()
    assert progress.told(0) == "making it"
    progress.enter("resolving")
    progress.feed("DEBUG Searching for a compatible version of numpy (>=1.22.0)")
    assert progress.told(0) == "resolving"
    for line in (
        "Resolved 6 packages in 520ms",
        f"{stages.UNCACHED}a==1",
        f"{stages.UNCACHED}b==2",
    ):
        progress.feed(line)
    assert [progress.told(fetched) for fetched in (0, 1, 5)] == [
        "downloading 0/2",
        "downloading 1/2",
        "downloading 2/2",
    ]
    progress.feed("Prepared 2 packages in 4.08s")
    assert progress.told(2) == "installing 6 packages"


def test_an_environment_whose_packages_do_not_load_says_why(tmp_path, index):
    wheel(index, "mlflow_skinny", "3.17.3", "mlflow/__init__.py")
    model, settings = tmp_path / "model", Settings(data_dir=tmp_path / "d")
    model.mkdir()
    settings.run_dir.mkdir(parents=True)
    (model / "requirements.txt").write_text("mlflow-skinny==3.17.3\n")

    async def built():
        backend, loop = local.Local(settings), asyncio.get_running_loop()

        def in_a_zygote(python):
            return asyncio.run_coroutine_threadsafe(backend.zygotes.imported(python), loop)

        asked = (model, "isolated", tmp_path / "env", 120, lambda line: None, in_a_zygote)
        try:
            return await asyncio.to_thread(environments.interpreter, *asked)
        finally:
            backend.close()

    with pytest.raises(building.BuildFailed, match=r"cannot be imported.*"):
        asyncio.run(built())
    assert "No module named 'mlflow.pyfunc'" in environments.build_log(tmp_path / "env", model)


def test_an_environment_that_cannot_be_built_says_why(tmp_path, index):
    model = tmp_path / "model"
    model.mkdir()
    (model / "requirements.txt").write_text("answer==43.0\n")
    with pytest.raises(building.BuildFailed, match=r"answer==43\.0"):
        environments.interpreter(model, "isolated", tmp_path / "env", 120, lambda line: None, prove)


def test_half_an_environment_is_built_again(tmp_path, index):
    model, place = tmp_path / "model", tmp_path / "env"
    model.mkdir()
    (model / "requirements.txt").write_text("answer==42.0\nmlflow-skinny==3.17.2\n")
    half = place / environments.key(environments.needs(model))
    half.mkdir(parents=True)
    (half / "leftover").touch()
    python = environments.interpreter(model, "isolated", place, 120, lambda line: None, prove)
    assert subprocess.run([python, "-c", "import answer"], check=False).returncode == 0
    assert not (half / "leftover").exists()
