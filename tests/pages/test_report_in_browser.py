"""Reports of small runs in headless Chromium, as a phone and a desktop show them, in light and dark."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from browser import WIDTHS, Browser

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from command_line import PROTOCOL, TINY, TINY_CLASSIFY, class_folders, good, split_folders
from made_up import ask

pytestmark = pytest.mark.browser
LONG = "a class whose name goes on " * 6


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run of each task; some classes have names that no window is wide enough for."""
    folder = tmp_path_factory.mktemp("report-browser")
    data = split_folders(folder / "pictures", 6, test="hen kea loon")
    (data / "test" / "kea").rename(data / "test" / LONG.strip())
    (data / "test" / "loon").rename(data / "test" / ("W" * 200))
    good(ask("train", "--data", data, *TINY, "--out", folder / "few-shot"))
    good(ask("report", folder / "few-shot", *PROTOCOL))
    labelled = class_folders(folder / "labelled", **{"ant": 12, "bee": 12, "c" * 150: 8})
    good(ask("classify", "--data", labelled, *TINY_CLASSIFY, "--out", folder / "classify"))
    good(ask("report", folder / "classify"))
    return {name: folder / name / "report.html" for name in ("few-shot", "classify")}


@pytest.mark.parametrize("task", ["few-shot", "classify"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_report(browser: Browser, pages: dict[str, Path], task: str, width: int, dark: bool) -> None:
    browser.open(pages[task], width, dark)
    assert browser.complaints() == []
    assert browser.overflow() == 0
    assert browser.ask("window.innerWidth") == width  # a phone makes room for what is wider
    assert browser.ask("[...document.images].every(each => each.naturalWidth > 0)")
    links = browser.ask("[...document.querySelectorAll('nav a')].map(each => each.hash)")
    assert len(links) >= 5
    for link in links:
        browser.driver.execute_script(f"document.querySelector('nav a[href=\"{link}\"]').click()")
        assert browser.ask("location.hash") == link
        top = browser.ask(f"document.querySelector('{link}').getBoundingClientRect().top")
        at_the_end = browser.ask("innerHeight + scrollY >= document.documentElement.scrollHeight - 1")
        assert abs(top) < 2 or at_the_end
    assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_in_charts_have_the_colour_of_the_page(browser: Browser, pages: dict[str, Path], dark: bool) -> None:
    browser.open(pages["few-shot"], dark=dark)
    own = browser.ask("getComputedStyle(document.body).color")
    fills = browser.ask("[...document.querySelectorAll('figure svg text')].map(each => getComputedStyle(each).fill)")
    assert len(fills) > 20
    assert set(fills) == {own}


def test_what_scrolls_is_reached_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["few-shot"], 390)
    hidden = browser.ask(
        "[...document.querySelectorAll('main *')].filter(each => each.scrollWidth > each.clientWidth + 1"
        " && ['auto', 'scroll'].includes(getComputedStyle(each).overflowX) && each.tabIndex < 0).map(each => each.outerHTML)"
    )
    assert hidden == []
