"""Memory banks may be most of the memory: training, saving and resuming hold them once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewshot_mcl.config import resolve
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.restore import load_state
from fewshot_mcl.runs import Run
from fewshot_mcl.runs import tensors as tensors_of_runs
from fewshot_mcl.training.loop import Trainer

ROWS, PEERS, DIM = 60_000, 4, 128
BANKS = ROWS * PEERS * DIM * 4  # bytes

# A run whose only large part are the banks. It prints by how many bytes the process has grown at its highest.
TRAIN = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from fewshot_mcl.config import resolve
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.runs import Run
from fewshot_mcl.training.loop import Plan, Trainer

path, rows, peers, dim, options = Path(sys.argv[1]), *map(int, sys.argv[2:5]), json.loads(sys.argv[5])
torch.set_num_threads(1)

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

class Task:
    plan, images_per_step = Plan(1, 1, 10**9, 1), 8

    def __init__(self, rows):
        self.labels = torch.arange(rows) % 100
        self.objective = create_objective(
            "mcl", num_peers=peers, num_classes=100, feature_dim=16, labels=self.labels, seed=0, embedding_dim=dim, **options
        )
        self.peers = nn.ModuleList(nn.Linear(8, 16) for _ in range(peers))
        self.classifier = nn.Linear(16, 100)

    def modules(self):
        return nn.ModuleDict({"peers": self.peers, "classifier": self.classifier, "objective": self.objective})

    def candidate(self):
        return nn.ModuleDict({"peers": self.peers})

    def optimizer(self, parameters):
        return torch.optim.SGD(parameters, 0.1, momentum=0.9)

    def learning_rate(self, step):
        return 0.1

    def step(self, number):
        indices = torch.arange(8) + 8 * number
        images = torch.randn(8, 8, generator=torch.Generator().manual_seed(number))
        features = torch.stack([peer(images) for peer in self.peers])
        out = PeerOutputs(features, self.classifier(features))
        return self.objective(out, self.labels[indices], indices=indices), {}

    def validate(self):
        return {}

class Display:
    def step(self, *_): pass
    def losses(self, *_): pass
    def validation(self, *_): pass

def trainer(path, rows):
    config = resolve(None, {"peers": peers}, task="classify")
    run = Run.open(path) if path.exists() else Run.create(path, config, {})
    return Trainer(Task(rows), config, run, Display())

def total(trainer):
    return sum(float(bank.sum()) for bank in trainer.task.objective.contrast.banks)

def measured(steps):
    Task.plan = Plan(steps, 1, 10**9, 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    large = trainer(path / "run", rows)
    if steps > 1:
        large.resume()
    first = total(large)
    large.train()
    return {"grown": memory("VmHWM") - before, "first": first, "last": total(large)}

trainer(path / "small", 1000).train()  # what libraries take for themselves
before = memory("VmRSS")
print(json.dumps([measured(1), measured(2)]))
"""

PLANNED = """
import json
from pathlib import Path
import torch
from fewshot_mcl.objectives import create_objective

torch.set_num_threads(1)

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

def contrast(rows):
    labels = torch.arange(rows) % 10
    options = {"num_peers": 3, "num_classes": 10, "feature_dim": 8, "labels": labels, "seed": 0, "embedding_dim": 16}
    return create_objective("mcl", negatives="all", **options).contrast

contrast(1000)(torch.randn(3, 64, 8), torch.arange(64)).backward()  # what libraries take for themselves
large = contrast(100_000)
before = memory("VmRSS")
large(torch.randn(3, 64, 8), torch.arange(64)).backward()
print(json.dumps([large.plan(64).bytes, memory("VmHWM") - before]))
"""


def run_script(script: str, *given: object) -> Any:
    """What a Python process prints, as JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_training_saving_and_resuming_hold_the_banks_once(tmp_path: Path) -> None:
    options = json.dumps({"num_negatives": 64, "bank_init": "unit"})
    first, resumed = run_script(TRAIN, tmp_path, ROWS, PEERS, DIM, options)
    assert first["grown"] < 1.3 * BANKS
    assert resumed["grown"] < 1.3 * BANKS
    assert resumed["first"] == first["last"]
    assert resumed["last"] != first["last"]


def test_the_expectation_takes_the_memory_that_its_plan_says() -> None:
    said, grown = run_script(PLANNED)
    assert said > 50e6
    assert 0.75 * said < grown < 1.25 * said


class Mixed(nn.Module):
    """Buffers of every kind that a checkpoint may hold."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for number, dtype in enumerate(
            [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
        ):
            values = torch.randint(100, (3, 5 + number, 7), generator=generator)
            self.register_buffer(f"b{number}", values.to(dtype))
        self.register_buffer("flag", torch.tensor([seed == 0, True]))
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("nothing", torch.zeros(0, 4))
        self.register_buffer(
            "turned", torch.rand(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last)
        )


@pytest.mark.parametrize("large", [32, 64, 1 << 26])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_of_runs, "LARGE", large)
    saved, loaded = Mixed(0), Mixed(1)
    run = Run.create(tmp_path / "run", resolve(None, task="classify"), {})
    run.save_checkpoint("last", dict(saved.state_dict()), {"step": 3, "best": None, "seconds": 1.0})
    tensors, state = run.load_checkpoint("last")
    load_state(loaded, tensors, "here")
    by_library = load_file(tmp_path / "run/checkpoints/last-00000003.safetensors")
    assert state["step"] == 3
    assert set(by_library) == set(saved.state_dict())
    for name, value in saved.state_dict().items():
        for other in (loaded.state_dict()[name], by_library[name]):
            assert other.dtype == value.dtype
            assert torch.equal(other, value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bank_that_is_not_finite_is_not_saved(bad: float, tmp_path: Path) -> None:
    modules = nn.ModuleDict({"m": nn.BatchNorm1d(3)})
    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.done, trainer.run = resolve(None, task="classify"), 4, Run(tmp_path)
    assert set(trainer._tensors(modules)) == set(modules.state_dict())
    modules["m"].running_mean[1] = bad
    with pytest.raises(UserError, match=r"'m.running_mean' holds a value that is not a number after step 4"):
        trainer._tensors(modules)
