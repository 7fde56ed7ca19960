"""Long-run health: one process trains a small network for 20,000 episodes; memory stays flat, no file grows but the metrics.

    uv run --group dev --group bench python tests/campaigns/long_run.py --out benchmarks/results/long_run.md

Beside OUT.md it draws OUT.svg. Memory is the resident size of the process; it is sampled together with every file of the run
directory. What was allocated in the first episodes is not judged: the slope is over those after.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "long run"
from matplotlib import pyplot as plt  # noqa: E402

SETTLED = 2_000  # episodes
MOST_SLOPE = 0.1  # MiB in 1,000 episodes: a week of them would be a gigabyte
MOST_GROWTH = 64  # bytes: numbers in a manifest have more or fewer digits
EVERY = 0.2  # seconds
SETTINGS = (
    "image_size=16", "peers=2", "share=last-one", "way=2", "shot=1", "query=1", "val_every=100", "val_episodes=4",
    "val_way=2", "val_query=1", "log_every=20", "objective.negatives=other-class", "objective.num_negatives=8", "seed=3",
)  # fmt: skip


class Sample(NamedTuple):
    """What was seen at one moment: episodes done, resident MiB, and the bytes of every file."""

    episode: int
    memory: float
    files: dict[str, int]


def pictures(root: Path) -> Path:
    """Six classes of twelve images: four for training, two for validation."""
    generator = np.random.default_rng(0)
    for split, names in {"train": "abcd", "val": "ef"}.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def resident(process: int) -> float:
    """MiB."""
    [line] = [x for x in Path(f"/proc/{process}/status").read_text().splitlines() if x.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def episodes_done(run: Path) -> int:
    with contextlib.suppress(OSError):
        rows = (run / "metrics.csv").read_bytes()[-1000:].split(b"\n")[:-1]
        if len(rows) > 1 and rows[-1].partition(b",")[0].isdigit():
            return int(rows[-1].partition(b",")[0])
    return 0


def sizes(run: Path) -> dict[str, int]:
    """By file; one that is renamed or deleted meanwhile is not there."""
    found = {}
    for path in run.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                found[str(path.relative_to(run))] = path.stat().st_size
    return found


def watch(episodes: int, folder: Path) -> list[Sample]:
    """Train, and look on."""
    run = folder / "run"
    command = [sys.executable, "-m", "fewshot_mcl", "train", "--data", str(pictures(folder / "pictures"))]
    command += ["--out", str(run), "--episodes", str(episodes), *(x for each in SETTINGS for x in ("--set", each))]
    samples: list[Sample] = []
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=one_thread) as process,
    ):
        while process.poll() is None:
            done = episodes_done(run)
            with contextlib.suppress(OSError, ValueError):  # it has just ended
                if done:
                    samples.append(Sample(done, resident(process.pid), sizes(run)))
            time.sleep(EVERY)
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    return samples


def kinds(samples: list[Sample]) -> dict[str, int]:
    """The largest that a file of each kind was; files that differ by a number in their name are of one kind."""
    largest: defaultdict[str, int] = defaultdict(int)
    for sample in samples:
        for name, size in sample.files.items():
            kind = re.sub(r"\d+", "N", name)
            largest[kind] = max(largest[kind], size)
    return dict(largest)


def draw(samples: list[Sample], path: Path) -> None:
    """Memory, and bytes in the run directory, over episodes."""
    x = [sample.episode for sample in samples]
    metrics = [sample.files.get("metrics.csv", 0) / 2**20 for sample in samples]
    others = [sum(sample.files.values()) / 2**20 - m for sample, m in zip(samples, metrics)]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 5.5), layout="constrained")
    above.plot(x, [sample.memory for sample in samples], linewidth=1)
    above.axvline(SETTLED, color="0.7", linewidth=1)
    above.set_ylabel("resident memory, MiB")
    above.set_ylim(bottom=0)
    below.plot(x, others, linewidth=1, label="all other files")
    below.plot(x, metrics, linewidth=1, label="metrics.csv")
    below.set_ylabel("run directory, MiB")
    below.set_xlabel("episodes")
    below.set_ylim(bottom=0)
    below.legend()
    figure.savefig(path, metadata={"Date": None})


def judge(samples: list[Sample], episodes: int) -> tuple[list[tuple[str, str, str, bool]], bool]:
    """Rows (what, found, allowed, whether it holds), and whether all do."""
    after = [sample for sample in samples if sample.episode > SETTLED]
    x, y = np.array([(sample.episode, sample.memory) for sample in after]).T
    slope = float(np.polyfit(x / 1000, y, 1)[0])
    half = (SETTLED + episodes) / 2
    early, late = (kinds([s for s in after if (s.episode <= half) is first]) for first in (True, False))
    partial = {name for name in early | late if name.endswith(".partial")}  # seen by chance, and never whole
    final = {"metrics.csv", "model.safetensors", "model.json"}
    growth = {name: late[name] - early.get(name, 0) for name in set(late) - partial - final}
    most = max(growth, key=lambda name: growth[name])
    count = [max(len(s.files) for s in after if (s.episode <= half) is first) for first in (True, False)]
    again = early["metrics.csv"], late["metrics.csv"]
    rows = [
        ("memory after 2,000 episodes, MiB", f"{y.min():.1f} to {y.max():.1f}", "", True),
        ("its slope, MiB in 1,000 episodes", f"{slope:+.4f}", f"at most {MOST_SLOPE}", slope <= MOST_SLOPE),
        ("largest growth of a file but metrics.csv, bytes", f"{growth[most]} ({most})", f"at most {MOST_GROWTH}",
         growth[most] <= MOST_GROWTH),
        ("most files at a time, first half and second", f"{count[0]} and {count[1]}", "2 more, of the finished run",
         count[1] <= count[0] + 2),
        ("metrics.csv at the middle and at the end, KiB", f"{again[0] / 1024:.0f} and {again[1] / 1024:.0f}",
         "grows", again[1] > again[0]),
        ("last episode seen", f"{samples[-1].episode:,}", "the last 1 %", samples[-1].episode >= 0.99 * episodes),
    ]  # fmt: skip
    return rows, all(holds for *_, holds in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a Markdown file; the plot is written beside it")
    parser.add_argument("--episodes", type=int, default=20_000)
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        samples = watch(arguments.episodes, Path(folder))
    minutes = (time.monotonic() - start) / 60
    rows, well = judge(samples, arguments.episodes)
    picture = arguments.out.with_suffix(".svg")
    draw(samples, picture)
    table = "\n".join(
        f"| {what} | {found} | {allowed} | {'yes' if holds else 'NO'} |" for what, found, allowed, holds in rows
    )
    text = f"""# {arguments.episodes:,} episodes in one process

`python tests/campaigns/long_run.py --episodes {arguments.episodes}`: MCL-OKD, two Conv4 peers on 16x16 pixels, a checkpoint
and a validation every 100 episodes, one thread; {len(samples):,} samples in {minutes:.1f} minutes. Halves are of the episodes
after {SETTLED:,}.

| what | found | allowed | holds |
|---|---:|---:|---|
{table}

![memory and files]({picture.name})
"""
    arguments.out.write_text(text)
    print(text)
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
