"""Take the pictures of the docs: `inferlake demo`, and with it running, in another terminal

    python docs/images/make.py --link LINK [--chromium /usr/bin/chromium]

LINK is the one that the demo prints. Fails on a JavaScript error or a request off the machine."""

import argparse
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
PAGES = ("overview", "drift", "experiment", "recommendations")
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


def shoot(page: Page, base: str, name: str) -> None:
    """One page, whole, once nothing is being computed any more."""
    link = page.get_by_role("link", name=name.capitalize(), exact=True)
    link.first.click()
    page.get_by_role("heading", name=name.capitalize(), exact=True).first.wait_for(timeout=60_000)
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
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    base = "{0.scheme}://{0.netloc}".format(urlsplit(options.link))
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
        for name in PAGES:
            shoot(page, base, name)
        browser.close()
    print("\n".join(faults) or "no JavaScript error, no request off the machine")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
