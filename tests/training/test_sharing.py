"""Every method with every way of sharing; every method with every network is in test_supervised.py."""

from __future__ import annotations

import pytest
import torch

from fewshot_mcl.config import resolve
from fewshot_mcl.data import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.objectives import METHODS
from fewshot_mcl.objectives.rkd import RkdD
from fewshot_mcl.training.supervised import SupervisedTask

PEERS = 3  # the fewest that every method takes
CPU = torch.device("cpu")


def store(classes: int, side: int = 32) -> ImageStore:
    images = torch.randint(
        0, 256, (4 * classes, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
    )
    return ImageStore(images, torch.arange(classes).repeat_interleave(4), [f"class {i}" for i in range(classes)])


@pytest.mark.parametrize("share", ["last-two", "last-one", "none", "paper-code"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_every_way_of_sharing(method: str, share: str) -> None:
    options = {"method": method, "backbone": "resnet32", "peers": PEERS, "share": share, "batch": 4}
    settings = ["objective.num_negatives=3"] if method.startswith("mcl") else []
    task = SupervisedTask(resolve(None, options, [*settings, "val_share=0"], task="classify"), store(3), None, CPU)
    if isinstance(task.objective, RkdD):
        task.objective.set_teacher(torch.randn(12, 5))
    terms, _ = task.step(1)
    terms["total"].backward()
    assert torch.isfinite(terms["total"])
    assert [name for name, parameter in task.modules().named_parameters() if parameter.grad is None] == []


def test_a_pair_that_cannot_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="at least 3 peers"):
        SupervisedTask(resolve(None, {"method": "okddip", "peers": 2}, task="classify"), store(3), None, CPU)
    config = resolve(None, {"backbone": "torchvision/mobilenet_v3_small", "share": "last-two"}, task="classify")
    with pytest.raises(UserError, match="comes as one piece, of which 'last-two' leaves nothing to share"):
        SupervisedTask(config, store(3), None, CPU)
