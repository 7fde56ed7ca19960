"""The classification task: a batch of labelled images in, the objective's terms out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_mcl import draws, parallel
from fewshot_mcl.config import ClassifyConfig
from fewshot_mcl.data import augment
from fewshot_mcl.data.labelled import hold_out
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.classification import Images, classify_images
from fewshot_mcl.evaluation.fewshot import Normaliser, channel_statistics, normalise
from fewshot_mcl.evaluation.restore import build_objective, build_peers, load_teacher
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks.peers import forward_in
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective
from fewshot_mcl.objectives.rkd import RkdD
from fewshot_mcl.training.loop import Plan

# What ImageNet's images are normalised by everywhere. Of other data the statistics are computed; those of CIFAR-100 are the
# published figures.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def learning_rate(config: ClassifyConfig, epoch: int) -> float:
    """Of an epoch (from 0): along half a cosine from `lr` to 0 in each of `periods`, one after the other."""
    periods = config.periods or [config.epochs]
    for number, period in enumerate(periods):
        if epoch < period or number == len(periods) - 1:
            break
        epoch -= period
    return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / period))


def augmentation(config: ClassifyConfig, store: ImageStore) -> str:
    """What "auto" means for a store: a mirrored photograph is a photograph, a mirrored character is another one."""
    if config.augment != "auto":
        return config.augment
    return {"glyphs": "crop", "imagenet": "resized-crop"}.get(store.source, "crop-flip")


class SupervisedTask:
    """Peers on batches of a training store, validated on rows of it that are held out, or on a store of their own.

    Epoch e goes through all training images in an order of its own; its last, shorter batch counts too. Step n is batch
    n mod `batches` of epoch n // `batches`.

    Attributes:
        peers, objective: the modules that learn.
        mean, std: (C,) of the training images in [0, 1].
        size: side of the images that the network sees.
        rows: (N,) which images of the store are trained on; row i of a memory bank is of the image rows[i].
        val: the images to validate on; None where there are none.
        ships: which checkpoint the deployed network is taken from.
    """

    def __init__(self, config: ClassifyConfig, train: ImageStore, val: ImageStore | None, device: torch.device) -> None:
        self.config, self.train, self.device = config, train, device
        self.ships = "best" if config.report == "validation" else "last"
        self.augment = augmentation(config, train)
        channels, stored, _ = train.shape
        self.size = stored * 7 // 8 if self.augment == "resized-crop" else stored
        share = 0 if val else config.val_share
        self.rows, held_out = hold_out(train, share, config.split_seed, config.images_per_class)
        _require_batches_of_two(len(self.rows), config.batch)
        self.peers = build_peers(config, channels, self.size, train.num_classes).to(device)
        labels = train.labels[self.rows]
        self.objective: Objective = build_objective(config, self.peers, train.num_classes, labels).to(device)
        self.labels = labels.to(device)
        statistics = IMAGENET if train.source == "imagenet" and channels == 3 else channel_statistics(train, self.rows)
        self.mean, self.std = (torch.as_tensor(statistic).to(device) for statistic in statistics)
        self.val = self._validation_images(val, held_out)
        self.images_per_step = min(config.batch, len(self.rows))
        self.batches = math.ceil(len(self.rows) / config.batch)
        self.plan = Plan(
            config.epochs * self.batches, config.log_every, config.val_every * self.batches, config.save_every,
            keep_all=config.report == "best-on-test",
        )  # fmt: skip
        self._order = (-1, self.rows)  # of an epoch
        self._images = torch.empty(0)  # of the step, augmented, for a teacher to look at
        self._normalise = Normaliser(self.mean, self.std)

    def _validation_images(self, val: ImageStore | None, held_out: Tensor) -> Images | None:
        store, rows = (val, torch.arange(len(val))) if val else (self.train, held_out)
        if not len(rows) and self.config.report == "validation":
            raise UserError(
                "report = validation chooses by validation images, and there are none: use --set val_share=0.1."
            )
        return Images(store, rows, self.size, self.mean, self.std) if len(rows) else None

    def modules(self) -> nn.ModuleDict:
        """All that is saved and trained."""
        return nn.ModuleDict({"peers": self.peers, "objective": self.objective})

    def candidate(self) -> nn.ModuleDict:
        """The peers, and what of the objective their ensemble needs."""
        return nn.ModuleDict({"peers": self.peers, "objective": self.objective.ensemble_modules()})

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        c = self.config
        return torch.optim.SGD(
            parameters,
            lr=c.lr,
            momentum=c.momentum,
            nesterov=c.nesterov and c.momentum > 0,
            weight_decay=c.weight_decay,
        )

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step // self.batches)

    def where(self, step: int) -> str:
        """After so many steps, in words."""
        return f"epoch {step / self.batches:.4g}/{self.config.epochs}"

    def describe_data(self) -> str:
        """The stores, for the heading of a run."""
        held_out = f"{len(self.val):,} for validation" if self.val else "none for validation"
        return f"{self.train.num_classes} classes, {len(self.rows):,} training images, {held_out}"

    def describe_steps(self) -> str:
        """What a step is, for the heading of a run."""
        c = self.config
        return f"{c.epochs} epochs of {self.batches} batches of {c.batch}, learning rate {c.lr:g}, augmentation {self.augment}"

    def card(self) -> dict[str, Any]:
        """What the deployed network's card says of the task."""
        return {"num_classes": self.train.num_classes}

    def card_protocol(self) -> dict[str, Any]:
        """How `closing` measures."""
        return {"measure": "top-1 accuracy"}

    def use_teacher(self) -> None:
        """Let RKD learn from the run that the configuration names. It sees each batch as it is augmented."""
        assert isinstance(self.objective, RkdD)
        network, mean, std = load_teacher(self.config, self.train, self.size)
        network, mean, std = network.to(self.device), mean.to(self.device), std.to(self.device)
        self.objective.set_teacher(
            lambda indices: parallel.gather(network(normalise(self._images, mean, std)), 0, len(indices))
        )

    def step(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Batch `number`: the objective's terms with their "total", and each peer's class loss (for the record)."""
        epoch, batch = divmod(number, self.batches)
        chosen = self._batch(epoch, batch)
        generator = draws.generator(self.config.seed, "augment", number)
        part = parallel.part(len(chosen))
        images = self.train.gather(self.rows[chosen[part]]).to(self.device)
        self._images = self._augmented(images, generator, part, len(chosen))
        images = self._normalise(self._images)
        out = forward_in(self.peers, images, self.config.precision, self.config.layout).gathered(len(chosen))
        chosen = chosen.to(self.device)
        terms = self.objective(out, self.labels[chosen], indices=chosen, epoch=epoch)
        with torch.no_grad():
            assert out.logits is not None
            losses = F.cross_entropy(out.logits, self.labels[chosen])
        return terms, {f"peer{m}": loss for m, loss in enumerate(losses)}

    def _batch(self, epoch: int, batch: int) -> Tensor:
        """(B,) positions in `rows`."""
        if self._order[0] != epoch:
            generator = draws.generator(self.config.seed, "order", epoch)
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator))
        size = self.config.batch
        return self._order[1][batch * size : (batch + 1) * size]

    def _augmented(self, images: Tensor, generator: torch.Generator, part: slice, batch: int) -> Tensor:
        """Images that are `part` of a batch, changed as they are where all of it is changed."""
        if self.augment == "none":
            return images
        of = (part, batch)
        if self.augment == "resized-crop":
            return augment.resized_crop(images, generator, size=self.size, of=of)
        return augment.shift(images, generator, most=self.size // 8, flip=self.augment == "crop-flip", of=of)

    def validate(self) -> dict[str, Result]:
        """Accuracy of every peer and of the method's ensemble over the validation images; empty where there are none."""
        if self.val is None:
            return {}
        training = self.objective.training
        self.objective.eval()
        found = classify_images(self.peers, {"ensemble": self.objective.ensemble}, self.val)
        self.objective.train(training)
        return {name: each.top1 for name, each in found.items()}

    def protocol(self) -> str:
        """What `validate` measures."""
        return f"top-1 accuracy on {len(self.val)} validation images" if self.val else ""

    def closing(self) -> dict[str, Result]:
        """The figure a finished run ends with."""
        return self.validate()


def _require_batches_of_two(images: int, batch: int) -> None:
    """Batch norm has no deviation of one image."""
    if images < 2:
        raise UserError("there is one training image, and batch norm needs two or more: add images.")
    if batch == 1 or images % batch == 1:
        last = "a batch" if batch == 1 else "the last batch of an epoch"
        better = next(size for size in range(batch + 1, images + 1) if images % size != 1)
        raise UserError(
            f"{last} would hold one of the {images} training images, and batch norm needs two or more: use --batch {better}."
        )
