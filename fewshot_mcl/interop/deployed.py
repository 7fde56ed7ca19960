"""The deployed network of a run as one module that takes pixels, what it is, and how well it does."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_mcl import __version__
from fewshot_mcl.data.names import markdown
from fewshot_mcl.errors import DamagedError
from fewshot_mcl.evaluation.restore import load_deployed
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.runs import Run, files

CARRIED = (
    "task", "backbone", "in_channels", "image_size", "feature_dim", "num_classes", "resize", "classes", "mean", "std", "method",
    "seed", "metric", "scale", "trained_on",
)  # fmt: skip


class FromPixels(nn.Module):
    """A network behind its normalisation: images (B, C, H, W) from 0 to 255, of any type, in; features (B, D) out.

    Of a network with a classifier, features (B, D) and logits (B, classes).

    Args:
        network: the network.
        mean, std: (C,) of its training images in [0, 1].
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, network: Backbone, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("factor", (1 / (255 * deviations)).view(-1, 1, 1), persistent=False)
        self.register_buffer("offset", (means / deviations).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.network.features(images.to(self.factor.dtype) * self.factor - self.offset)
        return features if self.network.classifier is None else (features, self.network.classifier(features))


def deployed(run: Run) -> tuple[FromPixels, dict[str, Any]]:
    """The deployed network of a finished run, in evaluation mode, and what there is to say of it.

    Raises:
        UserError: if the run is not finished, or a file is damaged.
    """
    network, card = load_deployed(run)
    described = {name: card[name] for name in CARRIED if name in card}
    described |= {
        "peers": run.config.peers,
        "color": "grey" if card["in_channels"] == 1 else "rgb",
        "figures": figures(run, card),
    }
    return FromPixels(network, card["mean"], card["std"]).eval(), described | {"fewshot_mcl": __version__}


def figures(run: Run, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Every figure that the run has of its deployed network, each with its protocol: of validation, then of evaluations."""
    peer, checkpoint = f"peer {card['peer']}", card["checkpoint"]
    found = [{"data": card["trained_on"], **card["validation"]}] if "validation" in card else []
    for path in sorted((run.path / "evaluations").glob("evaluation-*[0-9].json")):
        with contextlib.suppress(DamagedError):
            content = files.read_json(path, "results", "data")
            for r in content["results"]:
                if (r["network"], r.get("checkpoint", content.get("checkpoint"))) == (peer, checkpoint):
                    left = ("accuracies", "network", "checkpoint", "change")
                    about = {"data": content["data"], "split": content.get("split"), "images": content["images"]}
                    found.append(about | {key: value for key, value in r.items() if key not in left})
    return found


def figure_line(figure: dict[str, Any]) -> str:
    """A figure and its protocol in a line of Markdown."""
    split = f"{figure['split']} split of {markdown(figure['data'])}"
    if "top1_error" in figure:
        error, interval = 100 * figure["top1_error"], 100 * figure["top1_ci95"]
        what = f"top-1 error {error:.2f} ± {interval:.2f} %"
        return f"{what}, {split}, {figure['images']} images (95% interval over images)"
    what = f"{100 * figure['mean']:.2f} ± {100 * figure['ci95']:.2f} %"
    if "way" not in figure:
        return f"top-1 accuracy {what}, {split}, {figure['images']} images (95% interval over images)"
    seed = f", seed {figure['seed']}" if "seed" in figure else ""
    return (
        f"accuracy {what}, {split}, {figure['way']}-way {figure['shot']}-shot, "
        f"{figure['query']} queries a class, {figure['episodes']} episodes{seed} (95% interval over episodes)"
    )
