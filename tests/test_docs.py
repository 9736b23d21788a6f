"""The reference pages say what the code says."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", REFERENCE / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings.md", "tables.md", "commands.md", "routes.md"])
def test_each_reference_page_is_what_the_code_would_write(page: str) -> None:
    assert (REFERENCE / page).read_text() == maker().PAGES[page](), (
        "run python docs/reference/make.py"
    )


def test_each_link_between_pages_leads_somewhere() -> None:
    import re

    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_gives_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert "requirements.lock" in lines[0] and lines[0].endswith("inferlake demo")
    assert "requirements-dev.lock" in lines[1] and lines[1].endswith("pytest")


def test_locks_hold_no_address() -> None:
    import re

    for lock in ROOT.glob("requirements*.lock"):
        assert not re.search(r"[a-z]+://|--(extra-)?index-url|--find-links", lock.read_text())
