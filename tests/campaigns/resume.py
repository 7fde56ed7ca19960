"""Resuming: every method in both tasks, and what else a run can be, stopped and killed, against a run that never stopped.

    uv run --group dev python tests/campaigns/resume.py --out benchmarks/results/resume.md

Every run is a process. One goes to the end. Another gets SIGTERM when its metrics have reached a drawn row, is resumed and
killed by SIGKILL at another, and is resumed to the end. SHA-256 of every tensor of the last and the best checkpoint and of the
model, and of every row of metrics must be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

METHODS = {
    "baseline": 1, "mcl": 2, "mcl-okd": 2, "dml": 3, "cl-ilr": 3, "one": 3, "okddip": 3, "rkd-d": 1, "rkd-da": 1,
}  # fmt: skip
COMMANDS = {  # how often a row, a checkpoint and a validation come are numbers without a common factor
    "few-shot": shlex.split(
        "train episodes=40 way=3 query=2 val_every=7 val_episodes=4 val_way=2 val_query=2 log_every=3"
    ),
    "classify": shlex.split("classify backbone=conv4 epochs=13 batch=16 lr=0.02 save_every=5 val_every=2 log_every=3"),
}
COMMON = shlex.split("image_size=16 share=last-one seed=5 device=cpu")
DRAWN = shlex.split("objective.negatives=other-class objective.num_negatives=8")
VARIANTS = (
    "form=stacked", "form=grouped", "layout=contiguous", "precision=bfloat16", "deterministic=true",
    "objective.negatives=shared", "objective.normaliser=fixed", "objective.negatives=all",
)  # fmt: skip


def pictures(root: Path) -> Path:
    """Classes of twelve pictures: four for training, two for validation, two for test."""
    generator = np.random.default_rng(0)
    for split, names in {"train": "abcd", "val": "ef", "test": "gh"}.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def start(task: str, arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fewshot_mcl", COMMANDS[task][0], *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def run(task: str, arguments: list[str]) -> None:
    _, said = (process := start(task, arguments)).communicate()
    if process.returncode:
        raise SystemExit(f"{arguments}: {said}")


def rows(out: Path) -> int:
    with contextlib.suppress(OSError):
        return (out / "metrics.csv").read_bytes().count(b"\n") - 1
    return 0


def stopped(task: str, arguments: list[str], out: Path, after: int, by: signal.Signals) -> str:
    """Send `by` when there are so many rows and a checkpoint; what became of the run."""
    process = start(task, arguments)
    while process.poll() is None and not (rows(out) >= after and (out / "checkpoints/last.json").exists()):
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(by)
    process.communicate()
    saved = json.loads((out / "checkpoints/last.json").read_text())
    step = saved.get("episode", saved.get("step"))
    return f"{by.name} after {rows(out)} rows, checkpoint of {step}" if process.returncode else "ended before"


def hashes(out: Path) -> dict[str, str]:
    """Of every tensor, by its place in a safetensors file, and of every row."""
    found = {}
    for name in ("last", "best"):
        manifest = json.loads((out / f"checkpoints/{name}.json").read_text())
        found |= tensors(name, out / "checkpoints" / manifest["file"])
    found |= tensors("model", out / "model.safetensors")
    for number, row in enumerate((out / "metrics.csv").read_bytes().splitlines()):
        found[f"metrics {number}"] = hashlib.sha256(row).hexdigest()
    return found


def tensors(prefix: str, path: Path) -> dict[str, str]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        first, last = entry["data_offsets"]
        what = f"{entry['dtype']} {entry['shape']}".encode()
        found[f"{prefix} {name}"] = hashlib.sha256(what + data[start + first : start + last]).hexdigest()
    return found


def compare(task: str, settings: list[str], folder: Path, draw: random.Random) -> tuple[str, int, int]:
    """What was done, how many hashes were compared, and how many of them differ."""
    _, *own = COMMANDS[task]
    new = [x for each in (*COMMON, *own, *settings) for x in ("--set", each)]
    whole, parts = folder / "whole", folder / "parts"
    run(task, [*new, "--out", str(whole)])
    last = rows(whole)
    first, second = sorted(draw.sample(range(3, last - 2), 2))
    again = ["--out", str(parts), "--resume"]
    done = stopped(task, [*new, "--out", str(parts)], parts, first, signal.SIGTERM)
    done += "; " + stopped(task, again, parts, second, signal.SIGKILL)
    run(task, again)
    a, b = hashes(whole), hashes(parts)
    return done, len(a), sum(a.get(name) != b.get(name) for name in a.keys() | b.keys())


def cases(data: dict[str, Path], teachers: dict[str, Path]) -> list[tuple[str, str, list[str]]]:
    """Task, name, settings."""
    found = []
    for task in COMMANDS:
        for method, peers in METHODS.items():
            settings = [f"data={data[task]}", f"method={method}", f"peers={peers}"]
            settings += DRAWN if method.startswith("mcl") else []
            settings += [f"teacher={teachers[task]}"] if method.startswith("rkd") else []
            found.append((task, method, settings))
        okd = [f"data={data[task]}", "method=mcl-okd", "peers=2"]
        found += [(task, f"mcl-okd, {variant}", [*okd, *DRAWN, variant]) for variant in VARIANTS]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a Markdown file")
    parser.add_argument("--seed", type=int, default=0, help="of the rows at which runs are stopped")
    parser.add_argument("--only", default="", help="cases whose name has this")
    arguments = parser.parse_args()
    draw, lines, wrong, compared = random.Random(arguments.seed), [], 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = pictures(folder / "pictures")
        data = {"few-shot": root, "classify": root / "train"}  # which holds images out of every class
        teachers = {task: folder / f"teacher {task}" for task in COMMANDS}
        chosen = [case for case in cases(data, teachers) if arguments.only in f"{case[0]} {case[1]}"]
        for task in {task for task, method, _ in chosen if method.startswith("rkd")}:
            settings = [*COMMON, *COMMANDS[task][1:], f"data={data[task]}", "method=baseline", "peers=1"]
            run(task, [*(x for each in settings for x in ("--set", each)), "--out", str(teachers[task])])
        for number, (task, method, settings) in enumerate(chosen):
            done, count, differ = compare(task, settings, folder / str(number), draw)
            compared, wrong = compared + count, wrong + differ
            lines.append(f"| {task} | {method} | {done} | {count} | {differ} |")
            print(lines[-1], flush=True)
    table = "\n".join(lines)
    text = f"""# Resumed runs against runs that never stopped

`python tests/campaigns/resume.py --seed {arguments.seed}`: {len(lines)} runs, each stopped by SIGTERM, killed
by SIGKILL and resumed; {compared:,} hashes compared, {wrong} differ.

| task | run | stopped | hashes compared | differ |
|---|---|---|---:|---:|
{table}
"""
    arguments.out.write_text(text)
    print(text)
    raise SystemExit(1 if wrong or not lines else 0)


if __name__ == "__main__":
    main()
