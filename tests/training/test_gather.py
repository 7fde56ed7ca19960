"""Steps over images that are gathered into a kept buffer: what one step saw is not what the next one reads."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fewshot_mcl.config import resolve
from fewshot_mcl.data import ImageStore
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.supervised import SupervisedTask

CPU = torch.device("cpu")
IMAGES = torch.randint(256, (24, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4).repeat_interleave(6)


class NewEveryTime:
    """Stands in for a tensor, as images do that stay files: every batch is another tensor."""

    dtype, shape = IMAGES.dtype, IMAGES.shape

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return IMAGES[rows].clone()


def store(images: object = IMAGES) -> ImageStore:
    return ImageStore(cast(Tensor, images), LABELS, ["a", "b", "c", "d"], source="birds")


def episodic(images: ImageStore) -> EpisodicTask:
    settings = ["way=3", "shot=2", "query=3", "val_way=3", "val_query=2", "val_episodes=2", "peers=2", "method=dml"]
    return EpisodicTask(resolve(None, {}, settings), images, store(), CPU)  # type: ignore[arg-type]


def supervised(images: ImageStore, augment: str = "none", method: str = "dml") -> SupervisedTask:
    settings = ["peers=2", "batch=9", f"method={method}", f"augment={augment}", "val_share=0"]
    return SupervisedTask(resolve(None, {}, settings, task="classify"), images, None, CPU)  # type: ignore[arg-type]


def gradients(task: Any, steps: int) -> list[Tensor]:
    """Of every step, without changing a parameter."""
    found = []
    for number in range(steps):
        terms, _ = task.step(number)
        found += torch.autograd.grad(terms["total"], list(task.peers.parameters()), allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop", "episodes"])
def test_steps_equal_those_on_images_that_are_new_every_time(augment: str) -> None:
    """The last batch of an epoch is shorter (24 images in batches of 9), the first of the next one long again."""
    build = episodic if augment == "episodes" else lambda images: supervised(images, augment)
    kept, new = (gradients(build(store(images)), 5) for images in (IMAGES.clone(), NewEveryTime()))
    assert len(kept) == len(new) > 0
    assert all(torch.equal(a, b) for a, b in zip(kept, new))


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_a_teacher_sees_the_images_that_the_peers_see(augment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = supervised(store(), augment, "rkd-da"), {"peers": [], "teacher": []}  # type: ignore[var-annotated]

    class Teacher(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen["teacher"].append(images.clone())
            return images.flatten(1)

    monkeypatch.setattr(
        "fewshot_mcl.training.supervised.load_teacher", lambda *_: (Teacher(), task.mean.clone(), task.std.clone())
    )
    task.use_teacher()
    task.peers.register_forward_pre_hook(lambda _, inputs: seen["peers"].append(inputs[0].clone()))
    for number in range(4):
        task.step(number)
    assert len(seen["teacher"]) == len(seen["peers"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(seen["peers"], seen["teacher"]))
    assert not torch.equal(seen["peers"][0], seen["peers"][1])
