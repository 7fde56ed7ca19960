"""Every method with every network in both tasks: one step, and everything that learns gets a gradient."""

from __future__ import annotations

import pytest
import torch

from fewshot_mcl.config import resolve
from fewshot_mcl.data import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS
from fewshot_mcl.objectives.rkd import RkdD
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.supervised import SupervisedTask

PEERS = 3  # the fewest that every method takes
CPU = torch.device("cpu")


def store(classes: int, side: int = 32) -> ImageStore:
    images = torch.randint(
        0, 256, (4 * classes, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
    )
    return ImageStore(images, torch.arange(classes).repeat_interleave(4), [f"class {i}" for i in range(classes)])


def build(task: str, method: str, backbone: str, share: str | None = None) -> EpisodicTask | SupervisedTask:
    options = {"method": method, "backbone": backbone, "peers": PEERS, "share": share}
    settings = ["objective.num_negatives=3", "objective.negatives=other-class"] if method.startswith("mcl") else []
    if task == "few-shot":
        options |= {"way": 2, "shot": 1, "query": 1}
        config = resolve(None, options, [*settings, "val_way=2", "val_query=1", "val_episodes=2"], task=task)
        built: EpisodicTask | SupervisedTask = EpisodicTask(config, store(3), store(2), CPU)
    else:
        built = SupervisedTask(
            resolve(None, options | {"batch": 4}, [*settings, "val_share=0"], task=task), store(3), None, CPU
        )
    if isinstance(built.objective, RkdD):
        built.objective.set_teacher(torch.randn(12, 5))
    return built


@pytest.mark.parametrize("task", ["few-shot", "classify"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_step(backbone: str, method: str, task: str) -> None:
    built = build(task, method, backbone)
    terms, figures = built.step(0)
    assert torch.isfinite(terms["total"])
    assert list(figures) == [f"peer{m}" for m in range(PEERS)]
    terms["total"].backward()
    missing = [name for name, parameter in built.modules().named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize("share", ["last-two", "last-one", "none", "paper-code"])
@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_sharing(method: str, share: str) -> None:
    built = build("classify", method, "resnet32", share)
    terms, _ = built.step(1)
    assert torch.isfinite(terms["total"])


def test_a_pair_that_cannot_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="at least 3 peers"):
        SupervisedTask(resolve(None, {"method": "okddip", "peers": 2}, task="classify"), store(3), None, CPU)
    with pytest.raises(UserError, match="comes as one piece, of which 'last-two' leaves nothing to share"):
        config = resolve(None, {"backbone": "torchvision/mobilenet_v3_small", "share": "last-two"}, task="classify")
        SupervisedTask(config, store(3), None, CPU)
