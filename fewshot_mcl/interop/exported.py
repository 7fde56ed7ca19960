"""The deployed network as a file that other programs run: ONNX (the extra `export`), or torch.export (torch alone)."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from fewshot_mcl.errors import UserError
from fewshot_mcl.interop import missing
from fewshot_mcl.interop.deployed import FromPixels, deployed
from fewshot_mcl.runs import Run, files

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


def export(run: Run, form: str, out: Path | None = None) -> tuple[Path, Path]:
    """Write the deployed network of a finished run, and beside it, in FILE.json, what it takes and gives.

    Its input "images" is (B, C, H, W) uint8, from 0 to 255, for any B; normalisation is inside. Its output "features" is
    (B, D); a network that classifies has "logits" (B, classes) too. The JSON is also in the file's own metadata, but for the
    file's SHA-256.

    Args:
        run: a run directory.
        form: "onnx" or "torch-export".
        out: the file; None makes model.onnx or model.pt2 in the run directory.

    Returns:
        The file and the JSON.

    Raises:
        UserError: if the run is not finished, a file is there already, or a library is missing.
    """
    path = out or run.path / f"model{SUFFIXES[form]}"
    beside = path.with_name(path.name + ".json")
    refuse_existing(path, beside)
    module, card = deployed(run)
    card = {**_contract(card, module), **card, "format": form, "torch": torch.__version__}
    content = (_onnx if form == "onnx" else _torch_export)(module, card)
    refuse_existing(path, beside)  # it took a while
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    card |= {"sha256": files.write(path, content)}
    files.write(beside, (json.dumps(card, indent=1) + "\n").encode())
    return path, beside


def refuse_existing(*paths: Path) -> None:
    """Raise `UserError` where something would be overwritten."""
    for path in paths:
        if os.path.lexists(path):
            raise UserError(f"{path} exists, and nothing is overwritten. Choose another place: --out PATH.")


def _contract(card: dict[str, Any], module: FromPixels) -> dict[str, Any]:
    side, outputs = card["image_size"], {"features": ["batch", card["feature_dim"]]}
    if module.network.classifier is not None:
        outputs["logits"] = ["batch", card["num_classes"]]
    return {
        "input": {
            "name": "images", "shape": ["batch", card["in_channels"], side, side], "type": "uint8", "range": [0, 255],
            "normalisation": "inside: (x / 255 - mean) / std", "color": card["color"], "resize": card["resize"],
        },
        "outputs": outputs,
    }  # fmt: skip


def _example(card: dict[str, Any]) -> dict[str, Any]:
    """Two images, and that their number may be another."""
    images = torch.zeros(2, *card["input"]["shape"][1:], dtype=torch.uint8)
    return {"args": (images,), "dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},)}


def _torch_export(module: FromPixels, card: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, **_example(card))
        torch.export.save(program, out, extra_files={"fewshot_mcl.json": json.dumps(card)})
    return out.getvalue()


def _onnx(module: FromPixels, card: dict[str, Any]) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter is built on it)
    except ImportError as error:
        raise missing("onnx and onnxscript", "export", error) from error
    quiet = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in quiet]
    try:
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                module, **_example(card), input_names=["images"], output_names=list(card["outputs"]), verbose=False
            )
    finally:
        for logger, level in zip(quiet, levels):
            logger.setLevel(level)
    assert made is not None
    model = made.model_proto
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in card.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()
