"""Pages for a browser: one self-contained HTML file each, in light and dark, for keyboard and screen reader."""

from fewshot_mcl.pages.page import PALETTE, picture, write_page

__all__ = ["PALETTE", "picture", "write_page"]
