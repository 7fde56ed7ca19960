"""Charts as inline SVG whose ink follows the page's colours."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from fewshot_mcl.errors import UserError
from fewshot_mcl.pages.page import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#123456"  # stands for the page's text colour until the SVG is written


def new_figure(width: float = 7.5, height: float = 3.6, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes (as of `matplotlib.pyplot.subplots`, without its global state); sizes in inches.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        from cycler import cycler
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures of curves need matplotlib: install fewshot-mcl[report].") from error
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style: Any = {
        **ink, "axes.prop_cycle": cycler(color=PALETTE), "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.3, "grid.color": "#888888", "font.size": 10, "legend.frameon": False,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(**options)


def chart(figure: Figure, title: str, description: str) -> Markup:
    """A matplotlib figure as a `figure` element: an inline SVG and a caption, which readers of screens are told too.

    Args:
        figure: of `new_figure`.
        title: what it shows.
        description: what is to be seen in it, in words: the figures themselves, or what they say.
    """
    from matplotlib import rc_context
    from matplotlib.legend import Legend
    from matplotlib.text import Text

    for words in figure.findobj(Text):  # what was written after `new_figure` would be black on a dark page
        if isinstance(words, Text) and str(words.get_color()) == "black":
            words.set_color(INK)
    for legend in figure.findobj(Legend):
        if isinstance(legend, Legend):
            legend.set_frame_on(False)
    out = io.StringIO()
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "fewshot-mcl"}
    ):  # text stays text; the same bytes every time
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()[out.getvalue().index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = _own_names(svg, title + description)
    label = escape(f"{title}. {description}")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    caption = Markup("<figcaption><strong>{}.</strong> {}</figcaption>").format(title, description)
    return Markup(f"<figure>{svg}{caption}</figure>")  # our own SVG: matplotlib escapes what users named


def _own_names(svg: str, seed: str) -> str:
    """The SVG with names that no other chart of a page has; those that nothing refers to are left out."""
    used = set(re.findall(r"#([\w-]+)", svg))
    own = hashlib.sha256(seed.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{own}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(url\(|href=")#', rf"\1#{own}-", svg)
