"""Tests of the page in a real browser, as wide as a phone and a screen, light and dark, and on paper.

The screenshots are kept in $VLCP_SCREENSHOTS, or else in tests/screenshots.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages.report.small_report import full_report
from vlcp_ray.stages.report.render import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = Path(os.environ.get("VLCP_SCREENSHOTS", Path(__file__).parents[2] / "screenshots"))
#: Options under which the browser makes no requests of its own.
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is missing: apt-get install chromium")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "index.html"
    file.write_text(render(full_report()), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS])
        yield launched
        launched.close()


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_errors_or_requests_and_fits(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_load_state("networkidle")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{width}-{scheme}.png", full_page=True)
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().width > 50)")
    background, text = (
        page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    assert (brightness(background) > brightness(text)) == (scheme == "light")
    page.close()


def test_charts_have_the_colours_of_the_scheme(browser: Any, page_file: Path) -> None:
    fills = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(page_file.as_uri())
        fills.append(page.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
        page.close()
    assert fills[0] != fills[1]


def test_printed_page_is_unfolded(browser: Any, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    hidden = "[...document.querySelectorAll('.panel, details > *')].filter(e => !e.getClientRects().length).length"
    assert page.evaluate(hidden) == 0
    assert len(page.pdf(format="A4")) > 10_000
    page.close()


def brightness(colour: str) -> int:
    """Add up the channels of a colour in the form `rgb(1, 2, 3)`."""
    return sum(int(part) for part in colour[4:-1].split(","))
