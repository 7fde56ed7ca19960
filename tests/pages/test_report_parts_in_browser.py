"""The parts of a report on what peers make of images, in headless Chromium: no word in the console, nothing too wide."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
import torch
from browser import WIDTHS, Browser

from fewshot_mcl.config import FewShotConfig, resolve
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation.session import Protocol, drawn
from fewshot_mcl.pages import page, write_page
from fewshot_mcl.report import agreement, calibration, embedding, shots_ways, suspects
from fewshot_mcl.report.material import Material
from fewshot_mcl.runs import Run

pytestmark = pytest.mark.browser

PARTS = (embedding, agreement, calibration, shots_ways, suspects)
PAGE = """{% extends "page.html" %}{% from "parts.html" import section %}{% block main %}
{% for part, body in parts %}{% call section(part.ANCHOR, part.HEADING) %}{{ body }}{% endcall %}{% endfor %}
{% endblock %}"""
LONG = "a_class_with_a_very_long_name_" * 4 + "<script>alert('x')</script>"


def made() -> Material:
    """Four peers on twelve classes, one image with a wrong name and one in two splits."""
    generator, config = torch.Generator().manual_seed(0), resolve()
    assert isinstance(config, FewShotConfig)
    stores, features = {}, {}
    for split in ("train", "val", "test"):
        labels = torch.arange(12).repeat_interleave(18)
        images = torch.randint(0, 256, (len(labels), 3, 24, 24), generator=generator, dtype=torch.uint8)
        names = [f"{split} {i} {LONG if i == 3 else ''}" for i in range(12)]
        stores[split] = ImageStore(
            images, labels, names, split=split, ids=[f"{split}/{LONG}/{i}.png" for i in range(len(labels))]
        )
        centres = 3 * torch.randn(12, 8, generator=generator)
        features[split] = centres[labels] + torch.randn(4, len(labels), 8, generator=generator)
    stores["test"].images[5] = stores["train"].images[9]
    features["test"][:, 60] = features["test"][:, 1]
    protocol = Protocol(5, (1,), 10, 60, 0)
    episodes = drawn(stores["test"], protocol, 1)
    return Material(Run(Path("run")), config, protocol, stores, features, episodes, {})


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    material = made()
    with pytest.MonkeyPatch.context() as patch:
        loaders = [page._TEMPLATES.loader, jinja2.DictLoader({"five.html": PAGE})]
        patch.setattr(page._TEMPLATES, "loader", jinja2.ChoiceLoader([each for each in loaders if each]))
        bodies = [(part, part.section(material)) for part in PARTS]
        return write_page(
            tmp_path_factory.mktemp("parts") / "page.html", "five.html", title="Parts", command=["c"], parts=bodies
        )


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_all_parts_on_one_page(browser: Browser, parts: Path, width: int, dark: bool, script: bool) -> None:
    browser.open(parts, width, dark, script)
    assert browser.complaints() == []
    assert browser.overflow() == 0
    for part in PARTS:
        assert browser.ask(f"document.getElementById('{part.ANCHOR}').getBoundingClientRect().height") > 300


def test_no_word_of_a_table_is_broken_on_a_phone(browser: Browser, parts: Path) -> None:
    browser.open(parts, WIDTHS["phone"])
    narrowest = browser.ask(
        "Math.min(...[...document.querySelectorAll('tbody th')].map(th => th.getBoundingClientRect().width))"
    )
    assert narrowest > 45


def test_pictures_and_ink_are_there_in_the_dark(browser: Browser, parts: Path) -> None:
    browser.open(parts, dark=True)
    assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    texts = "[...document.querySelectorAll('#calibration svg text')].map(text => getComputedStyle(text).fill)"
    assert set(browser.ask(texts)) == {"rgb(232, 234, 237)"}
    assert browser.ask("document.querySelector('#suspects .wrong-text strong').textContent").startswith(
        "Leak: 1 picture"
    )
    assert browser.ask("document.querySelectorAll('main script').length") == 0
