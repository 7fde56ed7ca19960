"""A page from its template, and the pictures in it. Whatever users named is escaped by the template engine."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from fewshot_mcl import __version__
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError
from fewshot_mcl.runs import files

# Okabe and Ito's colours, which colour-blind people tell apart, as far as they stand out from a light and a dark page.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b3588f", "#a67c00", "#3a9bd1", "#7a7a7a")
EXACT = 4096  # bytes of a picture that is kept pixel by pixel; hundreds of larger ones would fill a page
OURS = "<!-- written by fewshot-mcl: it may be replaced -->"

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("fewshot_mcl.pages", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def picture(image: Tensor, alt: str, size: int = 84, mark: str = "") -> Markup:
    """An image as an `img` element that holds its pixels.

    Args:
        image: (C, H, W) uint8, of one or three channels.
        alt: what it shows, for those who do not see it.
        size: side in CSS pixels; the picture itself is never made larger.
        mark: "right", "wrong" or another class of the style sheet that frames it.
    """
    pixels = image[0] if len(image) == 1 else image.movedim(0, -1)
    small = Image.fromarray(pixels.to(torch.uint8).numpy())
    small.thumbnail((2 * size, 2 * size))
    kind, data = "png", _encoded(small, "PNG", optimize=True)
    if len(data) > EXACT:
        kind, data = "jpeg", _encoded(small, "JPEG", quality=85)
    text = base64.b64encode(data).decode()
    return Markup('<img class="picture {}" src="data:image/{};base64,{}" alt="{}" width="{}" height="{}">').format(
        mark, kind, text, printable(alt), size, size
    )


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def refuse_other(path: Path) -> None:
    """Raise `UserError` where something else than a page of ours is at `path`: before the work of making one."""
    if path.exists() and not (path.is_file() and OURS.encode() in path.read_bytes()[:200]):
        raise UserError(f"{path} exists, and is no page of fewshot-mcl. Choose another file: --out FILE.")


def write_page(path: Path, template: str, *, title: str, command: Sequence[str], **values: Any) -> Path:
    """Write a page; one of ours that is there is replaced, nothing else is.

    Args:
        path: of the HTML file.
        template: its name in `templates/`, which extends "page.html".
        title: of the page.
        command: the words that make this page again.
        **values: for the template. Text is escaped there unless it is `Markup`.

    Raises:
        UserError: if `path` holds something else, or cannot be written.
    """
    refuse_other(path)
    page = _TEMPLATES.get_template(template).render(
        title=title, command=" ".join(command), version=__version__, ours=Markup(OURS), **values
    )
    files.write(path, page.encode("utf-8", "backslashreplace"))
    return path


def fragment(template: str, **values: Any) -> Markup:
    """Part of a page from its template, to be put into another one; text is escaped unless it is `Markup`."""
    return Markup(_TEMPLATES.get_template(template).render(**values))


_TEMPLATES.globals["picture"] = picture
_TEMPLATES.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f} %"
_TEMPLATES.filters["printable"] = printable
