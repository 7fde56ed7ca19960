"""One of several processes that take the same steps: every method, both tasks; process 0 writes down what came out.

torchrun --nproc-per-node 2 worker.py OUT [data | peers] [CASE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fewshot_mcl import draws, parallel
from fewshot_mcl.config import resolve
from fewshot_mcl.data import ImageStore
from fewshot_mcl.evaluation.fewshot import Normaliser
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.objectives import METHODS, closed_form
from fewshot_mcl.objectives.rkd import RkdD
from fewshot_mcl.spread import completed, whole_state
from fewshot_mcl.training import data_parallel, peer_parallel
from fewshot_mcl.training.session import task_on

CONTROL = "few-shot, shared stages not added up"
SIZE, CLASSES, EACH = 20, 6, 13
FEW_SHOT = ["way=3", "shot=2", "query=3", "val_way=2", "val_shot=1", "val_query=2", "val_episodes=8", "episodes=8"]
CLASSIFY = ["batch=10", "epochs=1", "val_share=0.2", "augment=crop-flip"]
APART_Z = "few-shot, sharded banks, a normaliser of each process"
CASES = {
    **{f"few-shot {method}": ("few-shot", [f"method={method}", *FEW_SHOT]) for method in METHODS},
    **{f"classify {method}": ("classify", [f"method={method}", *CLASSIFY]) for method in METHODS},
    "few-shot, auxiliary classifier": ("few-shot", ["method=okddip", "kl_source=aux", *FEW_SHOT]),
    "few-shot, support and query apart": ("few-shot", ["joint_forward=false", *FEW_SHOT]),
    "few-shot grouped": ("few-shot", ["form=grouped", *FEW_SHOT]),
    "few-shot stacked": ("few-shot", ["form=stacked", *FEW_SHOT]),
    "few-shot, all negatives": ("few-shot", ["objective.negatives=all", *FEW_SHOT]),
    "few-shot, full normaliser": ("few-shot", ["objective.normaliser=full", *FEW_SHOT]),
    "few-shot, shared negatives": ("few-shot", ["objective.negatives=shared", *FEW_SHOT]),
    "few-shot, live positives": ("few-shot", ["objective.positive=live-grad", *FEW_SHOT]),
    "few-shot, frozen statistics": ("few-shot", ["batch_norm=frozen", *FEW_SHOT]),
    "few-shot, statistics per process": ("few-shot", ["batch_norm=per-process", *FEW_SHOT]),
    "few-shot, sharded banks": ("few-shot", ["objective.banks=sharded", *FEW_SHOT]),
    "few-shot, sharded banks, many negatives": (
        "few-shot",
        ["objective.banks=sharded", "objective.num_negatives=60", *FEW_SHOT],
    ),
    "few-shot, sharded banks, few negatives": (
        "few-shot",
        ["objective.banks=sharded", "objective.num_negatives=3", *FEW_SHOT],
    ),
    **{
        f"classify, sharded banks, {option}": (
            "classify",
            ["objective.banks=sharded", f"objective.{option}", *CLASSIFY],
        )
        for option in (
            "negatives=other-class",
            "negatives=all",
            "negatives=shared",
            "shared_rows=2",
            "normaliser=full",
            "normaliser=fixed",
            "positive=live",
            "positive=live-grad",
        )
    },
    APART_Z: ("few-shot", ["objective.banks=sharded", *FEW_SHOT]),
    "classify resized crops": ("classify", [*CLASSIFY, "augment=resized-crop"]),
}
COMPILED = {
    "few-shot compiled": ("few-shot", ["compile=true", *FEW_SHOT]),
    "classify compiled": ("classify", ["compile=true", *CLASSIFY]),
}

# Further cases for peers that are split; the last one is wrong on purpose.
PEER_CASES = {
    "few-shot, nothing shared": ("few-shot", ["method=one", "share=none", *FEW_SHOT]),
    CONTROL: ("few-shot", FEW_SHOT),
}


def store(split: str) -> ImageStore:
    """Images that differ by class."""
    generator = draws.generator(3, split)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    base = torch.randint(60, 190, (CLASSES, 3, SIZE, SIZE), generator=generator)
    noise = torch.randint(-60, 61, (len(labels), 3, SIZE, SIZE), generator=generator)
    names = [f"{split}{c}" for c in range(CLASSES)]
    return ImageStore((base[labels] + noise).to(torch.uint8), labels, names, split=split, source="patterns")


def outcome(name: str, split: str = "data") -> dict[str, Any]:
    """Losses and gradients of two steps of a case, everything that moved, and a validation."""
    kind, settings = (CASES | COMPILED | PEER_CASES)[name]
    settings = [
        f"parallel={split}",
        "peers=3",
        "backbone=conv4",
        "objective.num_negatives=16",
        "objective.embedding_dim=8",
        *settings,
    ]
    method = next((s for s in settings if s.startswith("method=")), "method=mcl-okd").partition("=")[2]
    if not method.startswith("mcl"):
        settings = [each for each in settings if not each.startswith("objective.")]
    if method == "baseline" and split == "data":
        settings.append("peers=1")
    if "shared_rows=2" in name:
        settings.append("objective.negatives=shared")  # so few that a process may have none of them
    config = resolve(task=kind, settings=settings)
    stores = {"train": store("train")} | ({"val": store("val")} if kind == "few-shot" else {})
    task = task_on(stores, config, torch.device("cpu"))
    if isinstance(task.objective, RkdD):
        teach(task)
    task._normalise = Normaliser(task.mean.double(), task.std.double())
    modules = task.modules().double().train()  # so that nothing but another computation makes a difference
    step, optimizer = data_parallel.step_of(modules, task.step), torch.optim.SGD(modules.parameters(), 0.01)
    found: dict[str, Any] = {"losses": [], "gradients": []}
    for number in range(2):
        terms, _ = step(number)
        optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        if name != CONTROL:
            peer_parallel.add_up(modules)
        found["losses"].append(torch.stack([each.detach() for each in terms.values()]))
        gradients = {n: p.grad.clone() for n, p in modules.named_parameters() if p.grad is not None}
        found["gradients"].append(whole(gradients))
        optimizer.step()
    state, buffers = whole_state(modules), dict(modules.named_buffers())
    found["moved"] = whole({n: v for n, v in state.items() if n in buffers and v.dtype.is_floating_point})
    modules.float()
    found["validation"] = {n: r.accuracies for n, r in task.validate().items()}
    return found


def whole(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """In process 0 all tensors of all processes, as a checkpoint has them."""
    found = {}
    for name, value in completed(tensors).items():
        blocks = [value.clone()] if isinstance(value, torch.Tensor) else list(value.blocks())
        if blocks:
            found[name] = torch.cat([block.flatten() for block in blocks]).view(value.shape)
    return found


@contextmanager
def apart() -> Iterator[None]:
    """What would be wrong: every process normalises by the scores of its own rows."""
    normaliser = closed_form._Bank._normaliser

    def own(self: closed_form._Bank) -> torch.Tensor:
        with mock.patch.object(closed_form.Setting, "total", lambda self, values: values):
            return normaliser(self)

    with mock.patch.object(closed_form._Bank, "_normaliser", own):
        yield


def teach(task: Any) -> None:
    """A teacher that all processes make alike."""
    with draws.seeded(5, "teacher"):
        network = create_backbone("conv4", None, in_channels=3, image_size=task.size).double().eval()
    if task.config.task == "few-shot":
        images = task.train.images.double() / 255
        task.objective.set_teacher(network(images).detach())
        return
    task.objective.set_teacher(
        lambda indices: parallel.gather(network(task._images.double() / 255).detach(), 0, len(indices))
    )


def main() -> None:
    torch.set_num_threads(1)
    to, split, *names = [*sys.argv[1:], *["data"][len(sys.argv) - 2 :]]
    with parallel.processes(), parallel.over(split):
        outcomes = {}
        for name in names or CASES:
            with apart() if name == APART_Z else nullcontext():
                outcomes[name] = outcome(name, split)
        if parallel.rank() == 0:
            torch.save(outcomes, Path(to))


if __name__ == "__main__":
    main()
