"""What tests of the report look at: material that is made up, small runs that are trained, and how a page is read."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from command_line import Answer

from fewshot_mcl import cli
from fewshot_mcl.config import FewShotConfig, resolve
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation.session import Protocol, drawn
from fewshot_mcl.report.material import Material
from fewshot_mcl.training import episodic

HOSTILE = ("<script>alert('x')</script>", "new\nline\x1b[31m", 'quote " & $x$ \u202e', "\U0001f600 plain")
FIVE = ("ant", *HOSTILE)


def material(
    names: tuple[str, ...] = FIVE, *, episodes: int = 40, shots: tuple[int, ...] = (1,), side: int = 12, **options: Any
) -> Material:
    """Random features around class centres, of two peers, of eight images a class; 3-way, 4 queries."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(len(names)).repeat_interleave(8)
    images = torch.randint(0, 256, (len(labels), 3, side, side), generator=draw, dtype=torch.uint8)
    store = ImageStore(images, labels, names, split="test", source="made up")
    centres = torch.randn(2, len(names), 6, generator=draw)
    features = centres[:, labels] + 1.1 * torch.randn(2, len(labels), 6, generator=draw)
    protocol = Protocol(way=3, shots=shots, query=4, episodes=episodes, seed=0)
    config = resolve("default", {"peers": 2}, [f"{name}={value}" for name, value in options.items()])
    assert isinstance(config, FewShotConfig)
    run: Any = SimpleNamespace(path=Path("nowhere"), config=config)
    state = {"episode": 5, "checkpoint": "best"}
    return Material(run, config, protocol, {"test": store}, {"test": features}, drawn(store, protocol, shots[0]), state)


def slow_answers(found: Material) -> list[list[list[int]]]:
    """For each episode, class and query of the deployed network: the position of the nearest class mean, one by one."""
    features = found.measured[-1].double()

    def nearest(row: int, centres: list[torch.Tensor]) -> int:
        return min(range(len(centres)), key=lambda k: float((features[row] - centres[k]).norm()))

    answers = []
    for support, query in zip(found.episodes.support, found.episodes.query.tolist()):
        centres = [features[rows].mean(0) for rows in support]
        answers.append([[nearest(row, centres) for row in rows] for rows in query])
    return answers


def ask(*arguments: object) -> Answer:
    """What a shell would see."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(episodic, "FINAL_EPISODES", 8)
        patch.setattr(sys, "argv", ["fewshot-mcl", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    return Answer(int(exit_.value.code or 0), out.getvalue(), err.getvalue())


class Seen(HTMLParser):
    """A page or a part of one as a browser reads it.

    Attributes:
        tags: (name, attributes), in order.
        text: all text, words apart by one space.
        rows: cells of every table row, as text.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._text: list[str] = []
        self._cell = False
        self.feed(page)
        self.text = " ".join("".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._text.append(" ")
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._text.append(" ")
        if tag in ("th", "td"):
            self._cell = False
            self.rows[-1][-1] = " ".join(self.rows[-1][-1].split())

    def handle_data(self, data: str) -> None:
        self._text.append(data)
        if self._cell:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
