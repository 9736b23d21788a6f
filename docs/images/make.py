"""Take the pictures of the docs: `inferlake demo`, and with it running, in another terminal

    python docs/images/make.py --link LINK [--only create] [--chromium /usr/bin/chromium]

LINK is the one that the demo prints. `create` shows a model of docs/start.md: take it with `--only`
from a server whose registry holds it. Fails on a JavaScript error or a request off the machine."""

import argparse
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
PAGES = {  # file -> title of the page
    "overview": "Overview",
    "drift": "Drift",
    "experiment": "Experiment",
    "recommendations": "Recommendations",
    "create": "New endpoint",
}
DEMO = ("overview", "drift", "experiment", "recommendations")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def shoot(page: Page, name: str) -> None:
    """One page, whole, once nothing is being computed any more."""
    link = page.get_by_role("link", name=PAGES[name], exact=True)
    link.first.click()
    page.get_by_role("heading", name=PAGES[name], exact=True).first.wait_for(timeout=60_000)
    page.wait_for_load_state("networkidle")
    page.locator("[data-testid=stStatusWidget]").wait_for(state="detached", timeout=60_000)
    page.wait_for_timeout(1_500)  # plotly draws after the last message
    height = page.evaluate(
        "Math.max(...[...document.querySelectorAll('[data-testid=stMain] > *')]"
        ".map(e => e.scrollHeight))"
    )
    page.set_viewport_size({"width": 1280, "height": min(max(800, int(height)), 2400)})
    page.wait_for_timeout(1_500)
    page.screenshot(path=str(HERE / f"{name}.png"))
    page.set_viewport_size({"width": 1280, "height": 900})
    print(f"{name}: {HERE / f'{name}.png'}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", required=True)
    parser.add_argument("--only", choices=PAGES, action="append")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: faults.append(f"JavaScript: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if urlsplit(request.url).hostname in ("127.0.0.1", None)
                else faults.append(f"request to {request.url}")
            ),
        )
        page.goto(options.link)
        page.get_by_role("heading", name="Overview", exact=True).first.wait_for(timeout=90_000)
        for name in options.only or DEMO:
            shoot(page, name)
        browser.close()
    print("\n".join(faults) or "no JavaScript error, no request off the machine")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
