"""Names that users gave, where they are printed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fewshot_mcl.data.names import markdown


def test_markup_and_html_lose_their_meaning() -> None:
    assert markdown("<b>a|b</b>\n# [x](y) `z`") == r"\<b\>a\|b\</b\>\\n\# \[x\](y) \`z\`"


@given(st.text())
def test_markup_characters_are_all_escaped_and_the_text_stays_on_its_line(name: str) -> None:
    text = markdown(name)
    assert text.isprintable() or not text
    plain = text.replace("\\\\", "")
    assert all(plain[i - 1] == "\\" for i, c in enumerate(plain) if c in "`*_[]<>|#&~")
