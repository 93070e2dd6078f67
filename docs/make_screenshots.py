"""Take the READMEs' pictures of the page, from the outputs of the demo, with Debian's Chromium.

python run.py && python docs/make_screenshots.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from playwright.sync_api import Browser, Page, sync_playwright

from config import PRESETS
from pipeline.run.command_line import quiet_libraries

QUESTION = "By Tractor to the Black Sea"
LANGUAGES = {"en": ("en-US", "Search", "Compare", "Train"), "pt": ("pt-BR", "Buscar", "Comparar", "Treino")}
DESKTOP = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


def opened(browser: Browser, address: str, **options: object) -> Page:
    """Return the page as somebody sees it who opens it."""
    page = browser.new_context(**options).new_page()
    page.goto(address)
    page.locator(".answer.idle").nth(2).wait_for()
    return page


def ask(page: Page) -> None:
    """Ask a title that no model was trained on, and wait for the answers."""
    page.locator("#question textarea").fill(QUESTION)
    page.keyboard.press("Enter")
    page.locator("#rag .done").wait_for(timeout=300_000)


def main() -> None:
    """Write the pictures beside this script."""
    quiet_libraries()
    from pipeline.page import site
    from pipeline.page.assistant import Assistant

    served = site.launch(Assistant(PRESETS["demo"]), "127.0.0.1", None, open_browser=False)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (locale, search, compare, train) in LANGUAGES.items():
            page = opened(browser, served.local_url, locale=locale, **DESKTOP)
            ask(page)
            page.screenshot(path=HERE / f"ask-{name}.png", full_page=True)
            page.get_by_role("tab", name=search).click()
            page.locator("#query input").press_sequentially("ballet tutu for smal girls")
            page.locator("#results mark").nth(2).wait_for()
            page.screenshot(path=HERE / f"search-{name}.png")
            page.get_by_role("tab", name=compare).click()
            page.frame_locator("#report iframe").locator("svg").first.wait_for()
            page.screenshot(path=HERE / f"compare-{name}.png")
            page.get_by_role("tab", name=train).click()
            page.locator("#curve canvas, #curve svg").first.wait_for()
            page.screenshot(path=HERE / f"train-{name}.png")
            page = opened(browser, served.local_url, locale=locale, color_scheme="dark", **PHONE)
            ask(page)
            page.locator("#rag").scroll_into_view_if_needed()
            page.screenshot(path=HERE / f"phone-{name}.png")
    served.close(verbose=False)


if __name__ == "__main__":
    main()
