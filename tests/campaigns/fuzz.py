# ruff: noqa: E501 (tables of bytes)
"""Hostile input for every reader of files: each input ends in a value or in the reader's own error, within memory and time.

    uv run --group dev python tests/campaigns/fuzz.py --out benchmarks/results/fuzz.md

The first inputs of every reader are made by hand (bombs, gadgets, lies), the others are damage drawn by the seed.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)  # before numpy and torch

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

import hostile_files
import hostile_images
import hostile_pickles
import hostile_trees
import torch
from command_line import TINY, split_folders
from guarded import MEMORY, SECONDS, Case, Tally, tried

import fewshot_mcl
from fewshot_mcl import cli
from fewshot_mcl.data.images import BadImage
from fewshot_mcl.errors import UserError

READERS: dict[str, tuple[int, Callable[[Path], Case], str]] = {
    "image files": (40_000, hostile_images.case, "PNG, JPEG, GIF, BMP, WebP, TIFF, PPM"),
    "pickles": (20_000, hostile_pickles.case, "every protocol, gadgets, mazes"),
    "miniImageNet pickles": (4_000, hostile_pickles.mini, "cache and category pickles"),
    "CIFAR-100": (6_000, hostile_pickles.cifar, "python batches, binary files, tar and tar.gz"),
    "Fashion-MNIST": (6_000, hostile_pickles.clothes, "IDX files, gzipped or not"),
    "class lists": (6_000, hostile_files.class_lists, "SPLIT.csv over class folders"),
    "folders": (3_000, hostile_trees.case, "names, links, pipes, devices, lists"),
    "packed stores": (6_000, hostile_files.packed, "store.json, .npy, an unfinished packing"),
    "JSON of runs": (8_000, hostile_files.json_files, "read with its own check"),
    "safetensors": (8_000, hostile_files.safetensors, "with the SHA-256 of its manifest"),
    "cards of runs": (
        3_000,
        lambda folder: hostile_files.cards(folder, folder.parent / "run"),
        "valid files that say odd things",
    ),
    "configurations": (6_000, hostile_files.toml, "TOML, resolved"),
    "weights": (3_000, hostile_files.weights, "safetensors and torch's own"),
}


def _train(work: Path) -> None:
    """A small finished run at work/run."""
    sys.argv = [
        "fewshot-mcl",
        "train",
        "--data",
        str(split_folders(work / "pictures", 6)),
        *TINY,
        "--out",
        str(work / "run"),
    ]
    importlib.import_module("fewshot_mcl.training.episodic").FINAL_EPISODES = 8
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError("the small run that the campaign needs could not be trained") from ended


def campaign(names: list[str], share: float, seed: int) -> dict[str, tuple[Tally, float]]:
    """Every reader's inputs, one reader after another."""
    found = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as temporary:
        work = Path(temporary)
        os.chdir(work)
        if "cards of runs" in names:
            _train(work)
        for name in names:
            count, make, _ = READERS[name]
            folder = work / name.replace(" ", "-")
            folder.mkdir()
            begun, case = time.monotonic(), make(folder)
            tally = tried(name, case, max(1, round(share * count)), seed, (UserError, BadImage), work / "log")
            if list(work.rglob(hostile_pickles.MARK)):
                tally.violations.append("code of a pickle was run")
                tally.counts["violation"] += 1
            found[name] = tally, time.monotonic() - begun
            print(
                f"{name}: {dict(tally.counts)}, slowest {tally.slowest:.1f} s, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
            for each in tally.violations[:10]:
                print("   ", ascii(each)[:400], flush=True)
    return found


def page(found: dict[str, tuple[Tally, float]], seed: int) -> str:
    """The table."""
    head = [
        "# Hostile input", "",
        f"fewshot-mcl {fewshot_mcl.__version__}, torch {torch.__version__}, seed {seed}. Of every input: a value, the reader's own error in one "
        f"line, or a violation (another exception, more than {SECONDS} s, more than {MEMORY >> 30} GiB, a dead process, code that ran, text "
        "unfit for a terminal, warnings, tracebacks or escapes on standard error).", "",
        "| reader | what it reads | inputs | values | errors | violations | slowest input | time |", "|---|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    rows = [
        f"| {name} | {READERS[name][2]} | {tally.counts['value'] + tally.counts['error'] + tally.counts['violation']:,} | {tally.counts['value']:,} | "
        f"{tally.counts['error']:,} | {tally.counts['violation']:,} | {tally.slowest:.1f} s | {seconds:.0f} s |"
        for name, (tally, seconds) in found.items()
    ]
    sums = [sum(tally.counts[kind] for tally, _ in found.values()) for kind in ("value", "error", "violation")]
    total = f"| all | | {sum(sums):,} | {sums[0]:,} | {sums[1]:,} | {sums[2]:,} | | {sum(s for _, s in found.values()):.0f} s |"
    bad = [f"* `{each!a}`" for tally, _ in found.values() for each in tally.violations[:20]]
    return "\n".join([*head, *rows, total, "", *(["Violations:", "", *bad] if bad else ["No violation."])]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of inputs")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="only these")
    options = parser.parse_args()
    out = options.out and options.out.absolute()
    found = campaign(options.reader or list(READERS), options.share, options.seed)
    text = page(found, options.seed)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return 1 if any(tally.violations for tally, _ in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
