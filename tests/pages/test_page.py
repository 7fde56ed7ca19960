"""Pages: what users named is text in them, nothing else is loaded, and only pages of ours are replaced."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewshot_mcl.errors import UserError
from fewshot_mcl.pages import picture, write_page
from fewshot_mcl.pages.charts import chart, new_figure

HOSTILE = "<script>alert('x')</script>\n\x1b[31m\"&"


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_users_named_is_text(tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", "page.html", title=HOSTILE, command=["fewshot-mcl", HOSTILE])
    found = Tags(page.read_text())
    assert "script" not in found.tags
    assert found.text.count("alert('x')") == 3


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    text = write_page(tmp_path / "page.html", "page.html", title="t", command=["c"]).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "default-src 'none'" in text


def test_only_a_page_of_ours_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for title in ("one", "two"):
        write_page(path, "page.html", title=title, command=["c"])
        assert title in path.read_text()
    path.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="no page of fewshot-mcl"):
        write_page(path, "page.html", title="three", command=["c"])
    assert path.read_text() == "<html>mine</html>"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_holds_its_pixels(channels: int) -> None:
    image = torch.randint(0, 256, (channels, 20, 20), dtype=torch.uint8)
    text = picture(image, 'a "name"', size=20)
    data = re.search(r"base64,([^\"]*)", text)
    assert data is not None
    shown = torch.tensor(list(Image.open(io.BytesIO(base64.b64decode(data[1]))).tobytes()), dtype=torch.uint8)
    assert torch.equal(shown.view(20, 20, channels).movedim(-1, 0), image)
    assert "a &#34;name&#34;" in text


def test_a_chart_says_what_it_shows_and_takes_the_colours_of_the_page() -> None:
    figure, axes = new_figure()
    axes.plot([1, 2], [3, 4], label="a <b>")
    axes.legend()
    text = str(chart(figure, "Loss <i>", "It falls"))
    root = ET.fromstring(text)
    svg = root[0]
    assert svg.attrib["aria-label"] == "Loss <i>. It falls"
    assert "currentColor" in text
    assert "#123456" not in text
    assert any(node.text == "a <b>" for node in svg.iter() if node.text)
