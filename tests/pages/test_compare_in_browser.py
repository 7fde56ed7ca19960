"""The pages of `compare` and `data inspect` in Chromium: silent console, nothing too wide, at two widths, light and dark."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import WIDTHS, Browser
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "comparison"))

from test_sentences import comparison

from fewshot_mcl.comparison import page
from fewshot_mcl.data.inspect import inspect
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.pages import inspection
from fewshot_mcl.suggestion import suggest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = comparison(baseline=[0.60, 0.61], dml=[0.62], mcl_okd=[0.63, 0.65])
    found = dataclasses.replace(
        found, differing={"objective.contrast_feature": ["-", "-", "flat" * 9]}, notes=["x" * 200]
    )
    for split, names in {"train": "ant bee", "val": "elk fox", "test": "hen <b>x"}.items():
        for name in names.split():
            (folder / "data" / split / name).mkdir(parents=True)
            for k in range(3):
                pixels = np.random.default_rng(k).integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "data" / split / name / f"{'long_name_' * 9}{k}.png")
    seen = inspect(str(folder / "data"), None, ImageOptions())
    return {
        "compare": page.write(found, folder / "compare.html", ["fewshot-mcl compare a b"]),
        "inspect": inspection.write(
            seen, suggest(seen, str(folder / "data"), None, {}), folder / "inspect.html", ["fewshot-mcl data inspect data"]
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["compare", "inspect"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_quietly_and_fits(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    browser.open(pages[name], width, dark)
    assert browser.complaints() == []
    assert browser.overflow() == 0
    anchors = "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))"
    assert browser.ask(anchors)
    broken = "[...document.querySelectorAll('img')].filter(i => !i.naturalWidth || !i.alt).length"
    assert browser.ask(broken) == 0
    narrow = "[...document.querySelectorAll('th[scope=row]')].filter(c => c.clientWidth < 60).length"
    assert browser.ask(narrow) == 0
