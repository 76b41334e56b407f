"""A real browser that complains: Debian's Chromium, with all that a page logs, throws or asks of other hosts written down."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


@contextmanager
def watched_page(*, host: str) -> Iterator[tuple[Page, list[str]]]:
    """A page of 1200 px, and its complaints: errors, and requests to any other host than ``host`` (name and port)."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if urlsplit(request.url).netloc not in (host, "") else None)
        yield page, complaints
        browser.close()
