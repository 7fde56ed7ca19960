"""Pages in headless Chromium: no word in the console, nothing wider than the window, light and dark, by keyboard."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import WIDTHS, Browser

from fewshot_mcl.pages import write_page

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_plain_page(browser: Browser, width: int, dark: bool, tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", "page.html", title="A title " * 20, command=["fewshot-mcl", "x" * 300])
    browser.open(page, width, dark)
    assert browser.complaints() == []
    assert browser.overflow() == 0
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
