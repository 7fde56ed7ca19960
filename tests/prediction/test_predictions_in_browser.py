"""The page of answers in headless Chromium, on names that try to be more than names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from browser import WIDTHS, Browser
from stand_in import KINDS, save

pytestmark = pytest.mark.browser


@pytest.fixture
def page(cli, support: Path, queries: Path, tmp_path: Path) -> Path:
    (queries / "bad.png").write_text("no image")
    save(queries / ("<img src=x onerror=alert(1)>" + "long" * 40 + ".png"), "rows", 5)
    shutil.copytree(support / "rows", support / "<b>\n'\"&")
    answer = cli(
        "predict", "--support", support, "--query", queries, "--out", tmp_path / "out", "--false-accept", "0.5"
    )
    assert answer.code == 0, answer.err
    return tmp_path / "out" / "predictions.html"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_and_the_console_is_silent(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark)
    assert browser.complaints() == []
    assert browser.overflow() == 0
    assert browser.ask("document.querySelectorAll('article').length") == 2 * len(KINDS) + 1
    assert browser.ask("[...document.images].every(i => i.naturalWidth > 0 && i.alt)")
    assert browser.ask("[...document.querySelectorAll('input')].every(i => i.labels.length == 1)")


def test_it_is_filtered_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    seen = "[...document.querySelectorAll('.group')].filter(g => g.offsetParent !== null).length"
    groups = browser.ask("document.querySelectorAll('.group').length")
    assert groups > 1
    assert browser.ask(seen) == groups
    browser.driver.find_element("id", "only-0").send_keys("\ue015")  # arrow down
    assert browser.ask("document.getElementById('only-1').checked")
    assert browser.ask(seen) == 1


def test_it_is_filtered_without_a_script(browser: Browser, page: Path) -> None:
    assert "<script" not in page.read_text()
    browser.open(page, script=False)
    browser.driver.find_element("id", "only-1").click()
    shown = [group.is_displayed() for group in browser.driver.find_elements("class name", "group")]
    assert shown == [True] + [False] * (len(shown) - 1)
