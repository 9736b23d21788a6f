"""Navigation, and what no page may do."""

import ast
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import address

DASHBOARD = Path(address.__file__).parent
FILES = sorted(DASHBOARD.rglob("*.py"))
VIEWS = {path.stem for path in DASHBOARD.glob("views/*.py")} - {"__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_text_is_ever_drawn_as_html(path: Path) -> None:
    names = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (getattr(node, "attr", None), getattr(node, "arg", None))
    }
    assert not names & {"unsafe_allow_html", "html", "components", "iframe"}


def test_every_page_has_an_address_and_links_reach_every_page() -> None:
    assert {Path(file).stem for file in address.PAGES.values()} == VIEWS


def test_no_folder_is_called_pages() -> None:
    assert not (DASHBOARD / "pages").exists()


def test_pages_are_reached_through_the_navigation_alone() -> None:
    app = AppTest.from_file(DASHBOARD / "app.py", default_timeout=60)
    app.run()
    for view in VIEWS:
        app.switch_page(f"views/{view}.py")
        app.run()
        assert [button.label for button in app.button] == ["Sign in"], view
