"""Pages for a browser: one self-contained HTML file each, in light and dark, for keyboard and screen reader."""

from fewshot_mcl.pages.page import PALETTE, fragment, picture, refuse_other, write_page

__all__ = ["PALETTE", "fragment", "picture", "refuse_other", "write_page"]
