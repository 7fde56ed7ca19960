"""Errors of classifiers on images: every network of a run in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_mcl import parallel
from fewshot_mcl.data.augment import centre_crop
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.networks.folding import batch_for, folded
from fewshot_mcl.networks.peers import PeerNetwork
from fewshot_mcl.progress import tracked

TOP = 5
Ensembles = dict[str, Callable[[PeerOutputs], Tensor]]  # name -> logits (B, C) of the peers' outputs


@dataclass(frozen=True)
class Images:
    """Rows (N,) of a store, seen as the middle `size` x `size` of each image, normalised by `mean` and `std` (C,)."""

    store: ImageStore
    rows: Tensor
    size: int
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, size, size) and labels (B,) of some rows, in order, where `mean` lies."""
        for rows in self.rows[part].split(batch_for(self.mean.device)):
            images = centre_crop(self.store.images[rows], self.size).to(self.mean.device)
            yield normalise(images, self.mean, self.std), self.store.labels[rows].to(self.mean.device)


@dataclass(frozen=True)
class Classified:
    """What one network says of N images.

    Attributes:
        labels, predictions: (N,) classes.
        in_top5: (N,) whether the label is among the five classes of the largest logits.
    """

    labels: Tensor
    predictions: Tensor
    in_top5: Tensor

    @property
    def top1(self) -> Result:
        """Accuracy over images."""
        return Result((self.predictions == self.labels).double())

    @property
    def top5(self) -> Result:
        """Accuracy of the first five."""
        return Result(self.in_top5.double())

    def confusion(self, classes: int) -> Tensor:
        """(classes, classes) counts: row = label, column = prediction."""
        return torch.bincount(self.labels * classes + self.predictions, minlength=classes**2).view(classes, classes)


@torch.inference_mode()
def classify_images(peers: PeerNetwork, ensembles: Ensembles, images: Images) -> dict[str, Classified]:
    """Every peer's answers, and each ensemble's, in evaluation mode whatever mode the peers are in.

    Args:
        peers: M peers with classifiers; they are left as they are.
        ensembles: how their outputs become an ensemble's logits, by name; none of them is asked where M = 1.
        images: N images.

    Returns:
        "peer 0" ... "peer M-1" and, for M > 1, the ensembles.
    """
    network, parts, unit = folded(peers), [], batch_for(images.mean.device)
    split = len(images) >= unit * parallel.world()  # as in `fewshot.embed`
    mine = parallel.part(len(images), unit) if split else slice(0, len(images))
    batches = -(-(mine.stop - mine.start) // unit)
    for batch, labels in tracked(images.batches(mine), "classifying images", batches):
        out = network(batch)
        assert out.logits is not None
        joint = [ensemble(out) for ensemble in ensembles.values()] if len(out.logits) > 1 else []
        logits = torch.cat([out.logits, *(each[None] for each in joint)])
        top = logits.topk(min(TOP, logits.shape[-1])).indices
        parts.append((labels.cpu(), top[..., 0].cpu(), (top == labels[:, None]).any(-1).cpu()))
    labels, predictions, in_top5 = (torch.cat(each, -1) for each in zip(*parts))
    if split:
        labels, predictions, in_top5 = (
            parallel.gather(each, each.dim() - 1, len(images), unit) for each in (labels, predictions, in_top5)
        )
    names = [*(f"peer {m}" for m in range(peers.num_peers)), *ensembles][: len(predictions)]
    return {name: Classified(labels, predictions[i], in_top5[i]) for i, name in enumerate(names)}
