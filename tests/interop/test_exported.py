"""Against the real onnxruntime, and torch.export's own loader: equal features whatever the batch."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from finished_runs import CLASSES, MEAN, STD, images_of

from fewshot_mcl.data import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import embed, normalise
from fewshot_mcl.evaluation.restore import load_deployed
from fewshot_mcl.interop.exported import export

BACKBONES = [("conv4", 84), ("resnet12", 28), ("resnet32", 32)]
pytestmark = pytest.mark.filterwarnings("ignore")


def ours(run, images) -> list[torch.Tensor]:
    """Features as an evaluation has them, and logits of a network that classifies."""
    network, card = load_deployed(run)
    statistics = torch.tensor(card["mean"]), torch.tensor(card["std"])
    with torch.no_grad():
        logits = [] if network.classifier is None else [network(normalise(images, *statistics))]
    network.classifier = None
    return [embed(network, ImageStore(images, torch.zeros(len(images)), ["a"]), *statistics), *logits]


def equal(found, expected) -> None:
    assert len(found) == len(expected)
    for theirs, mine in zip(found, expected):
        torch.testing.assert_close(torch.as_tensor(theirs), mine, rtol=1e-5, atol=1e-5)
        assert float(mine.std()) > 0.01, "equality would say little"


@pytest.mark.parametrize(
    ("backbone", "side", "task"),
    [
        (*BACKBONES[0], "few-shot"),
        (*BACKBONES[2], "classify"),
        pytest.param(*BACKBONES[0], "classify", marks=pytest.mark.slow),
        pytest.param(*BACKBONES[1], "few-shot", marks=pytest.mark.slow),
        pytest.param(*BACKBONES[1], "classify", marks=pytest.mark.slow),
        pytest.param(*BACKBONES[2], "few-shot", marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_gives_our_features(finished, backbone: str, side: int, task: str) -> None:
    run = finished(backbone, task, side)
    file, beside = export(run, "onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = ["features", "logits"][: 1 + (task == "classify")]
    assert [out.name for out in session.get_outputs()] == outputs
    (taken,) = session.get_inputs()
    assert (taken.name, taken.shape, taken.type) == ("images", ["batch", 3, side, side], "tensor(uint8)")
    for count in (1, 5):
        images = images_of(count, side, seed=count)
        equal(session.run(outputs, {"images": images.numpy()}), ours(run, images))
    card, within = json.loads(beside.read_text()), session.get_modelmeta().custom_metadata_map
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert {name: json.loads(text) for name, text in within.items()} | {"sha256": card["sha256"]} == card
    assert sorted(path.name for path in run.path.glob("model.onnx*")) == ["model.onnx", "model.onnx.json"]


@pytest.mark.parametrize(("backbone", "side", "task"), [(*BACKBONES[0], "few-shot"), (*BACKBONES[0], "classify")])
def test_torch_export_gives_our_features(finished, backbone: str, side: int, task: str) -> None:
    run = finished(backbone, task, side)
    file, beside = export(run, "torch-export", run.path / "elsewhere" / "net.pt2")
    assert (file.name, beside.name) == ("net.pt2", "net.pt2.json")
    within = {"fewshot_mcl.json": ""}
    program = torch.export.load(file, extra_files=within).module()
    for count in (1, 5):
        images = images_of(count, side, seed=count)
        found = program(images)
        equal(found if isinstance(found, tuple) else (found,), ours(run, images))
    card = json.loads(beside.read_text())
    assert card.pop("sha256") == hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads(within["fewshot_mcl.json"]) == card


def test_the_contract_says_all_that_a_user_needs(finished) -> None:
    run = finished("conv4", "classify")
    card = json.loads(export(run, "torch-export")[1].read_text())
    assert card["input"] == {
        "name": "images", "shape": ["batch", 3, 16, 16], "type": "uint8", "range": [0, 255], "color": "rgb",
        "normalisation": "inside: (x / 255 - mean) / std", "resize": "a rule",
    }  # fmt: skip
    assert card["outputs"] == {"features": ["batch", 64], "logits": ["batch", 3]}
    assert (card["mean"], card["std"], card["classes"]) == (MEAN, STD, CLASSES)
    assert card["figures"][0]["mean"] == 0.5


@pytest.mark.parametrize("there", ["model.onnx", "model.onnx.json"])
def test_nothing_is_overwritten(finished, there: str) -> None:
    run = finished()
    (run.path / there).write_text("mine")
    before = sorted(run.path.iterdir())
    with pytest.raises(UserError, match=f"{there} exists, and nothing is overwritten.*--out"):
        export(run, "onnx")
    assert (run.path / there).read_text() == "mine"
    assert sorted(run.path.iterdir()) == before


def test_what_is_trained_is_exported(golden) -> None:
    file, _ = export(golden, "onnx")
    onnx.checker.check_model(onnx.load(file), full_check=True)
    images = images_of(3)
    found = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
    equal(found, ours(golden, images))
    with pytest.raises(Exception, match="expected"):
        onnxruntime.InferenceSession(file).run(None, {"images": images.numpy().astype(np.float32)})


def test_missing_library_says_what_to_install(finished, monkeypatch) -> None:
    run = finished()
    for name in ("onnx", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=r"onnx and onnxscript.*fewshot-mcl\[export\]"):
                export(run, "onnx")
    assert not list(run.path.glob("model.onnx*"))
