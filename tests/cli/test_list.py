"""`list`: every name there is, each with a line, and torch is not needed for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from command_line import bad, good

from fewshot_mcl.config import NAMED_DATA
from fewshot_mcl.layers import recipes
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS

NAMES = {"methods": METHODS, "backbones": BACKBONES, "data": NAMED_DATA, "recipes": recipes()}


@pytest.mark.parametrize("kind", NAMES)
def test_every_name_has_a_line(kind: str, cli) -> None:
    found = json.loads(cli("list", kind, "--json").out)
    assert list(found) == [kind]
    assert set(NAMES[kind]) <= set(found[kind])
    assert all(len(line) > 10 and "\n" not in line for line in found[kind].values()), found
    assert len(set(found[kind].values())) == len(found[kind])
    good(cli("list", kind), *(line for line in found[kind].values()), *found[kind])


def test_all_kinds_at_once(cli) -> None:
    found = json.loads(cli("list", "--json").out)
    assert list(found) == ["methods", "backbones", "data", "recipes", "models"]
    assert found["methods"]["dml"].startswith(
        "DML: every peer learns from every other peer's predictions (Zhang et al."
    )
    assert found["backbones"]["resnet110"] == "Three stages of twelve bottleneck blocks; features (B, 256)."
    assert found["recipes"]["paper-code"] == "Tables 1 to 3 of the paper as its published code trains them."
    assert found["data"]["cifar100"].startswith("CIFAR-100 as published")
    good(cli("list"), "methods (", "--backbone NAME", "recipes (", "models")


def test_a_mistyped_kind(cli) -> None:
    bad(cli("list", "method"), "Did you mean 'methods'")


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['fewshot-mcl', 'list', 'methods']\n"
        "from fewshot_mcl.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'scipy') if name in sys.modules])"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.splitlines()[-1] == "[]"
