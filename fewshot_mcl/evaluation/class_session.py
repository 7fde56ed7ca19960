"""`fewshot-mcl evaluate` of a run that learned to classify: errors of its networks on test images of the same classes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from fewshot_mcl.config import ClassifyConfig
from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.classification import Classified, Ensembles, Images, classify_images
from fewshot_mcl.evaluation.restore import (
    build_objective,
    build_peers,
    deterministic,
    load_state,
    pick_device,
    weights_notes,
)
from fewshot_mcl.networks.peers import PeerNetwork
from fewshot_mcl.runs import Run

BEST_ON_TEST = "best-on-test"
INTERVAL = "95%: 1.96 s / sqrt(N) over test images"


def evaluate_classifier(
    run: Run, *, data: str | None = None, root: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Errors of every network of a classification run on the test split, kept in its directory.

    Args:
        run: a run directory.
        data, root: other data than the run's own, of the same classes.
        device: where to compute.

    Returns:
        What is saved: `results`, one entry for each checkpoint ("last", "best" by validation and, where the run was asked
            to report it, "best-on-test") and network, and what they have in common; `headline` names one of them.

    Raises:
        UserError: if the test images have other classes, or a file is damaged.
    """
    config, trained = run.config, run.data("train")
    assert isinstance(config, ClassifyConfig)
    place = pick_device(device)
    store, notes = _load(run, config, data, root)
    if list(store.class_names) != trained["classes"]:
        raise UserError(
            f"{store.source} has other classes than {run.path} was trained on: its answers would mean nothing."
        )
    mean, std = (torch.tensor(trained[name], device=place) for name in ("mean", "std"))
    images = Images(store, torch.arange(len(store)), trained["network_size"], mean, std)
    with deterministic(config):
        found = _by_checkpoint(_Networks(run, config, trained, place), images, run)
    headline = {"last": "last", "validation": "best", BEST_ON_TEST: BEST_ON_TEST}[config.report]
    first = found[headline][f"peer {config.peers - 1}"]
    content = {
        "run": str(run.path), "task": config.task, "method": config.method, "backbone": config.backbone,
        "peers": config.peers, "seed": config.seed, "epochs": config.epochs, "data": store.source, "split": "test",
        "fingerprint": store.fingerprint, "image_size": trained["network_size"], "resize": store.resize,
        "classes": store.num_classes, "images": len(store), "interval": INTERVAL, "unit": "fraction",
        "deployed": f"peer {config.peers - 1}", "headline": headline, "notes": [*notes, *weights_notes(config), *run.notes],
        "results": [_entry(name, net, each) for name, nets in found.items() for net, each in nets.items()],
        "class_accuracy": _class_accuracy(first[0], store),
    }  # fmt: skip
    return content | {"file": str(run.save_evaluation(content, _attachments(found, first[0], store)))}


Found = dict[str, tuple[Classified, int]]  # network -> what it says, and after how many steps


class _Networks:
    """The peers of a run as its checkpoints left them, and the method's ensembles."""

    def __init__(self, run: Run, config: ClassifyConfig, trained: dict[str, Any], device: torch.device) -> None:
        self.run, self.unit, classes = run, config.unit, len(trained["classes"])
        shape = (trained["channels"], trained["network_size"])
        self.peers: PeerNetwork = build_peers(config, *shape, classes, pretrained=False).to(device)
        self.objective = build_objective(config, self.peers, classes, None).to(device).eval()
        self.ensembles: Ensembles = {"ensemble": self.objective.ensemble}
        if "ensemble" in config.objective:  # CL-ILR's published one leaves a peer out
            for name, members in (("ensemble", "all"), ("ensemble as published", "as-published")):
                options = config.objective | {"ensemble": members}
                other = build_objective(config.model_copy(update={"objective": options}), self.peers, classes, None)
                self.ensembles[name] = other.ensemble

    def classify(self, checkpoint: str, images: Images) -> Found:
        tensors, state = self.run.load_checkpoint(checkpoint)
        for prefix, module in (("peers.", self.peers), ("objective.", self.objective.ensemble_modules())):
            own = module.state_dict()
            parts = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            load_state(module, {name: value for name, value in parts.items() if name in own}, str(self.run.path))
        return {
            name: (each, state[self.unit]) for name, each in classify_images(self.peers, self.ensembles, images).items()
        }


def _by_checkpoint(networks: _Networks, images: Images, run: Run) -> dict[str, Found]:
    """What every checkpoint's networks say that the run reports."""
    unit, found = run.config.unit, {"last": networks.classify("last", images)}
    if run.has_checkpoint("best"):
        steps = [run.read_json(f"checkpoints/{name}.json", unit)[unit] for name in ("last", "best")]
        found["best"] = found["last"] if steps[0] == steps[1] else networks.classify("best", images)
    if isinstance(run.config, ClassifyConfig) and run.config.report == BEST_ON_TEST:
        found[BEST_ON_TEST] = _best_on_test(networks, images, run)
    return found


def _best_on_test(networks: _Networks, images: Images, run: Run) -> Found:
    """For each network the answers of the epoch that has the lowest error on these very images."""
    best: Found = {}
    for path in sorted((run.path / "checkpoints").glob("after-*.json")):
        for name, found in networks.classify(path.stem, images).items():
            if name not in best or found[0].top1.mean > best[name][0].top1.mean:
                best[name] = found
    return best


def _load(run: Run, config: ClassifyConfig, data: str | None, root: Path | None) -> tuple[ImageStore, tuple[str, ...]]:
    """The test split, decoded as the training images were."""
    options = run.image_options
    source = open_labelled(*run.place(data, root), options, config.download)
    return source.load("test", options), source.notes


def _entry(checkpoint: str, network: str, found: tuple[Classified, int]) -> dict[str, Any]:
    classified, step = found
    top1, top5 = classified.top1, classified.top5
    return {
        "checkpoint": checkpoint, "network": network, "step": step, "top1_error": 1 - top1.mean, "top1_ci95": top1.ci95,
        "top5_error": 1 - top5.mean, "top5_ci95": top5.ci95,
    }  # fmt: skip


def _class_accuracy(found: Classified, store: ImageStore) -> dict[str, float | None]:
    """By class; None where it has no test image."""
    counts = found.confusion(store.num_classes)
    right, all_ = counts.diagonal().tolist(), counts.sum(1).tolist()
    return {name: r / n if n else None for name, r, n in zip(store.class_names, right, all_)}


def _attachments(found: dict[str, Found], first: Classified, store: ImageStore) -> dict[str, bytes]:
    """The headline network's confusion matrix (row: class, column: answer), and every network's answers image by image."""
    counts = first.confusion(store.num_classes)
    text = io.StringIO()
    np.savetxt(text, counts.numpy(), "%d", ",")
    answers: dict[str, Tensor] = {
        f"{checkpoint}/{network}": each.predictions.to(torch.int32)
        for checkpoint, networks in found.items()
        for network, (each, _) in networks.items()
    }
    return {
        "confusion.csv": text.getvalue().encode(),
        "predictions.safetensors": save_tensors({"labels": first.labels.to(torch.int32), **answers}),
    }
