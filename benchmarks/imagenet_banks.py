"""ImageNet's memory banks in 4 GiB: a run of its own process, which trains, saves, resumes and says how much it took.

Part of contrast.py; a process of it is `python benchmarks/imagenet_banks.py RUN STEPS`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import harness
import torch
from torch import Tensor, nn

from fewshot_mcl.config import resolve
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.runs import Run
from fewshot_mcl.training.loop import Plan, Trainer

PEERS, ROWS, CLASSES, BATCH, WIDTH = 4, 1_281_167, 1000, 64, 512
BANKS = PEERS * ROWS * 128 * 4


class Task:
    """Linear peers on features that are given, and the contrast as the paper has it on ImageNet."""

    images_per_step = BATCH

    def __init__(self, steps: int) -> None:
        self.plan = Plan(steps, log_every=1, val_every=10**9, save_every=10**9)
        self.labels = torch.arange(ROWS) % CLASSES
        self.objective = create_objective(
            "mcl", num_peers=PEERS, num_classes=CLASSES, feature_dim=WIDTH, labels=self.labels, seed=0,
            num_negatives=16384, temperature=0.07,
        )  # fmt: skip
        self.peers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(PEERS))
        self.classifiers = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(PEERS))

    def modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"peers": self.peers, "classifiers": self.classifiers, "objective": self.objective})

    def candidate(self) -> nn.ModuleDict:
        return nn.ModuleDict({"peers": self.peers})

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 0.05, momentum=0.9)

    def learning_rate(self, step: int) -> float:
        return 0.05

    def step(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(number)
        indices = torch.randint(ROWS, (BATCH,), generator=generator)
        images = torch.randn(BATCH, WIDTH, generator=generator)
        features = torch.stack([peer(images) for peer in self.peers])
        logits = torch.stack([classifier(feature) for classifier, feature in zip(self.classifiers, features)])
        return self.objective(PeerOutputs(features, logits), self.labels[indices], indices=indices), {}

    def validate(self) -> dict[str, object]:
        return {}


class Silent:
    """No display."""

    def step(self, *_: object) -> None: ...
    def losses(self, *_: object) -> None: ...
    def validation(self, *_: object) -> None: ...


def run_process(path: Path, steps: int) -> None:
    """Build, resume where there is something to resume, train up to `steps`, save; print the peak and the times."""
    task = Task(steps)
    built = time.perf_counter()
    run = Run.open(path) if path.exists() else Run.create(path, resolve(None, {"peers": PEERS}, task="classify"), {})
    trainer = Trainer(task, resolve(None, {"peers": PEERS}, task="classify"), run, Silent())
    if (path / "checkpoints" / "last.json").exists():
        trainer.resume()
    resumed = time.perf_counter()
    trainer.train()
    trained = time.perf_counter()
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({
        "peak": peak, "resume": resumed - built, "train": trained - resumed,
        "plan": str(task.objective.plan(BATCH)),
    }))  # fmt: skip


def imagenet_part() -> Iterator[str]:
    """A process that trains and saves, and one that resumes, trains and saves."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, steps in (("build, 2 steps, save", 2), ("build, resume, 2 steps, save", 4)):
            command = [sys.executable, __file__, str(Path(folder) / "run"), str(steps)]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append(
                [
                    what,
                    f"{said['peak'] / 2**30:.2f}",
                    f"{said['resume']:.0f}" if len(rows) else "",
                    f"{said['train']:.0f}",
                ]
            )
    yield f"## ImageNet's banks: {PEERS} x {ROWS:,} x 128 numbers ({BANKS / 2**30:.2f} GiB), K = 16,384, batch {BATCH}"
    yield harness.table(["a process", "peak GiB", "s to resume", "s to train and save"], rows)
    yield f"The peak is of the whole process (VmHWM), with what torch takes for itself. {said['plan']}"


if __name__ == "__main__":
    run_process(Path(sys.argv[1]), int(sys.argv[2]))
