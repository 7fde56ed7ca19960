"""What a dry run foretells, and what the run then takes: time of training, memory at the peak, disk.

    uv run --group bench python benchmarks/estimate.py --out benchmarks/results/estimate.md

One run after another, so another program's load between the two measurements shows in a ratio: look at the machine's load
before believing a bad one. `--only WORD` takes the runs whose name has that word.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness  # first: it pins the threads

from fewshot_mcl.config import resolve
from fewshot_mcl.data.store import in_bytes
from fewshot_mcl.training.estimate import estimate

RUNS = {  # name -> command line; each takes some 10 to 30 seconds
    "few-shot conv4, 4 peers": "train --episodes 40 --set val_every=20",
    "few-shot resnet12, 2 peers": "train --backbone resnet12 --peers 2 --way 5 --query 5 --episodes 10 --set val_every=5",
    "few-shot baseline": "train --method baseline --episodes 120 --set val_every=40",
    "few-shot okddip, with an auxiliary classifier": "train --method okddip --episodes 40 --set val_every=20",
    "few-shot stacked": "train --set form=stacked --episodes 40 --set val_every=20",
    "classify resnet32, 2 peers": "classify --backbone resnet32 --peers 2 --epochs 2 --set images_per_class=4",
    "classify baseline": "classify --method baseline --epochs 2",
    "classify mcl-okd, K = 16,384": "classify --epochs 1 --set objective.num_negatives=16384 --set images_per_class=10",
}


def foretold(words: list[str]) -> tuple[float, int, int]:
    """Seconds, bytes of memory and of disk, in a process of its own (as `--dry-run` has it)."""
    task = {"train": "few-shot", "classify": "classify"}[words[0]]
    pairs = list(zip(words[1::2], words[2::2]))
    settings = [value for name, value in pairs if name == "--set"]
    settings += [f"{name.removeprefix('--')}={value}" for name, value in pairs if name != "--set"]
    said = estimate(resolve(None, {}, settings, task=task))
    return said.seconds, said.memory, said.disk


def real(words: list[str], folder: Path) -> tuple[float, int, int]:
    """The same of the run itself; the disk is looked at twenty times a second."""
    run, largest = folder / "run", 0
    with (folder / "answer").open("w") as answer:
        process = subprocess.Popen(
            [sys.executable, "-m", "fewshot_mcl", *words, "--out", str(run)], stdout=answer, stderr=answer
        )
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            largest = max(largest, sum(size(path) for path in run.rglob("*")))
            time.sleep(0.05)
    if status:
        raise SystemExit((folder / "answer").read_text())
    seconds = json.loads((run / "checkpoints" / "last.json").read_text())["seconds"]
    return seconds, usage.ru_maxrss * 1024, largest


def size(path: Path) -> int:
    """Bytes of a file; a checkpoint may be gone by now."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def main() -> None:
    asked = harness.arguments(__doc__ or "", only="", repeats=1)
    os.environ |= harness.OURS
    rows = []
    for name, line in RUNS.items():
        if asked.only not in name:
            continue
        for _ in range(asked.repeats):
            before = os.getloadavg()[0]
            said = foretold(line.split())
            with tempfile.TemporaryDirectory() as folder:
                found = real(line.split(), Path(folder))
            (seconds, *sizes), (took, *used) = said, found
            pairs = [f"{seconds:.1f} / {took:.1f} s", *(f"{in_bytes(a)} / {in_bytes(b)}" for a, b in zip(sizes, used))]
            ratios = [f"{a / b:.2f}" for a, b in zip(said, found)]
            rows.append([name, *(cell for pair in zip(pairs, ratios) for cell in pair), f"{before:.1f}"])
            print(" | ".join(rows[-1]), flush=True)
    columns = ["", "time", "ratio", "memory", "ratio", "disk", "ratio", "load before"]
    commands = "\n".join(f"* {name}: `fewshot-mcl {line}`" for name, line in RUNS.items() if asked.only in name)
    harness.report(
        "The dry run's estimates",
        [
            "Foretold / real, and their ratio: training with its validations and checkpoints; the process at its peak, a run of "
            "`classify` with its test; the run directory at its largest.",
            harness.table(columns, rows),
            commands,
        ],
        asked.out,
    )


if __name__ == "__main__":
    main()
