"""Runs that are finished without training: their networks' numbers are drawn, and no batch norm is the identity."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fewshot_mcl.config import resolve
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.runs import Run

CLASSES = ["ant", "bee", "cat"]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
VALIDATION = {
    "few-shot": {"way": 3, "shot": 1, "query": 5, "episodes": 600, "mean": 0.5, "ci95": 0.01, "split": "val"},
    "classify": {"measure": "top-1 accuracy", "images": 90, "mean": 0.5, "ci95": 0.01, "split": "val"},
}


def network_of(backbone: str, num_classes: int | None, side: int) -> nn.Module:
    torch.manual_seed(0)
    network = create_backbone(backbone, num_classes, image_size=side)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return network.eval()


def finished_run(root: Path, backbone: str = "conv4", task: str = "few-shot", side: int = 16) -> Run:
    classes = len(CLASSES) if task == "classify" else None
    run = Run.create(root / f"{backbone}-{task}", resolve(None, {"backbone": backbone}, task=task), {})
    network = network_of(backbone, classes, side)
    card = {
        "task": task, "backbone": backbone, "in_channels": 3, "image_size": side, "feature_dim": network.feature_dim,
        "mean": MEAN, "std": STD, "color": "auto", "resize": "a rule", "method": "mcl-okd", "peer": 3, "seed": 0,
        "checkpoint": "best", "trained_on": "some | pictures", "classes": CLASSES, "validation": VALIDATION[task],
    }  # fmt: skip
    extra = {"num_classes": classes} if classes else {"metric": "euclidean", "scale": 10.0}
    run.save_model(network.state_dict(), card | extra)
    return run


def images_of(count: int, side: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
