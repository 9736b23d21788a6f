"""What a person reads on a page, for tests."""

from streamlit.testing.v1 import AppTest


def said(app: AppTest) -> str:
    """Everything that the page says in words."""
    parts: list[str] = []
    for kind in ("markdown", "caption", "error", "warning", "info", "success", "text", "title"):
        parts += [str(element.value) for element in getattr(app, kind)]
    parts += [str(code.value) for code in app.code]
    return "\n".join(parts).replace("\\", "")
