"""The GPU benchmark at small sizes on a processor: one process, and what of it a table cannot show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fewshot_mcl.objectives import create_objective

ROOT = Path(__file__).resolve().parents[2]
# Of a machine that lends a GPU nothing can be expected but torch and numpy.
WITHOUT = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "typer", "rich", "learn2learn", "easyfsl", "torchvision", "safetensors"}:
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
sys.path.insert(0, "benchmarks")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("gpu") / "gpu.md"
    options = ["--device", "cpu", "--small", "--rounds", "1", "--compile-seconds", "0", "--out", str(out)]
    command = [sys.executable, "-c", WITHOUT, "benchmarks/gpu.py", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out.read_text(encoding="utf-8")


def section(report: str, number: int) -> str:
    return re.split(r"^## ", report, flags=re.M)[number]


def cells(text: str) -> list[list[str]]:
    """Rows of the table in a text, without its two lines of heading."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_every_section_is_there_and_nothing_failed_but_by_name(report: str) -> None:
    titles = re.findall(r"^## (\d)\. ", report, flags=re.M)
    assert titles == ["1", "2", "3", "4"]
    assert "not judged at small sizes" in section(report, 3)
    assert "not judged at small sizes" in section(report, 4)
    for number in (2, 3, 4):
        assert "failed" not in section(report, number)
    forms = {
        (row[0], row[1])
        for row in cells(section(report, 1))
        if row[2] == "float32" and not row[3].startswith("not run")
    }
    assert forms == {(n, f) for n in ("resnet32", "conv4") for f in ("straightforward", "loop", "stacked", "grouped")}


def test_what_cannot_run_says_why(report: str) -> None:
    reasons = {row[1]: row[3] for row in cells(section(report, 1)) if row[3].startswith("not run")}
    assert reasons["loop, CUDA graph"] == "not run: a CPU has no CUDA graphs"
    assert reasons["loop, compiled"] == "not run: no time for compiling was given (--compile-seconds)"


def test_losses_of_all_forms_agree(report: str) -> None:
    rows = [row for row in cells(section(report, 1)) if row[2] == "float32" and len(row) == 8 and row[7]]
    assert len(rows) == 8
    assert all(float(row[7].split(", ")[0]) < 1e-5 for row in rows)  # of the same weights
    in_float64 = re.findall(r"(loop|stacked|grouped) ([\d.e+-]+), ([\d.e+-]+)[;.]", section(report, 1))
    assert len(in_float64) == 6
    assert all(float(value) < 1e-9 for _, *values in in_float64 for value in values)  # after an update too


def test_contrast_agrees_with_the_plain_formulation(report: str) -> None:
    rows = cells(section(report, 2))
    assert {(row[0], row[1].removesuffix(" (chosen)")) for row in rows} >= {
        ("8", "gather"), ("8", "dense"), ("64", "gather"), ("all", "straightforward"), ("all", "dense"),
    }  # fmt: skip
    assert all(float(row[5]) < 1e-5 for row in rows)


def test_evaluation_finds_the_straightforward_accuracies(report: str) -> None:
    assert re.search(r"the accuracy of 0 of these 2 differs", section(report, 3))


@pytest.mark.parametrize("count", [4, 60])  # gathered and dense
def test_a_contrast_with_given_negatives_asks_the_device_for_no_value(count: int) -> None:
    """What a CUDA graph cannot capture: on tensors without values, reading one is an error."""
    labels = torch.arange(100) % 10
    objective = create_objective("mcl", num_peers=3, num_classes=10, feature_dim=6, labels=labels, num_negatives=count)
    contrast, mode = objective.contrast, FakeTensorMode()
    features, indices = torch.randn(3, 8, 6), torch.arange(8)
    negatives = contrast.draw(indices)
    with mode:
        for module in contrast.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = mode.from_tensor(parameter)
            for name, buffer in module._buffers.items():
                module._buffers[name] = mode.from_tensor(buffer)
        contrast(*(mode.from_tensor(value) for value in (features, indices, negatives))).backward()
        assert contrast.heads[0].weight.grad is not None
