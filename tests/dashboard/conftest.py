"""Fixtures: a stand-in for the API, and pages drawn by Streamlit's own test runner."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.dashboard import provider as standin

APP = Path(__file__).parents[2] / "dashboard" / "app.py"


@pytest.fixture(scope="session")
def _provider() -> Iterator[Any]:
    running = standin.Provider()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def provider(_provider: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An API that answers as told; normal at the start of each test."""
    _provider.reset()
    monkeypatch.setenv("INFERLAKE_URL", _provider.url)
    return _provider


Open = Callable[..., AppTest]


@pytest.fixture
def opened(provider: Any) -> Open:
    """Opens a page of the dashboard, signed in: `opened("drift", column="temp")`."""

    def open_page(page: str, token: str | None = standin.TOKEN, **query: str) -> AppTest:
        app = AppTest.from_file(APP, default_timeout=60)
        if page != "overview":
            # Pages are known after a first run; the one of the sign-in form is quick.
            app.run()
            app.switch_page(f"views/{page}.py")
        if token:
            app.session_state["token"] = token
        app.query_params.update({"endpoint": standin.NAME} | query)
        return app.run()

    return open_page
