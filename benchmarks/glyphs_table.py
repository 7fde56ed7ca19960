"""The README's table: methods on the embedded glyphs at equal episodes, several seeds, the same test episodes for all.

    uv run python benchmarks/glyphs_table.py --episodes 2400 --seeds 3 --jobs 2 --out /tmp/glyphs-2400

Each cell is `fewshot-mcl train` with the default recipe and the options of CELLS, on one thread; a cell that is finished is not
trained again. Test: 600 episodes, 5-way, 15 queries, seed 0. Differences are paired by episode.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fewshot_mcl import __version__
from fewshot_mcl.data import EpisodeSampler, ImageOptions, open_source
from fewshot_mcl.evaluation import Result, embed, evaluate_episodes, pooled
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.evaluation.session import Protocol, evaluate_run
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.runs import Run
from fewshot_mcl.training.episodic import channel_statistics

CELLS = {
    "Baseline (one network)": ["--method", "baseline"],
    "four peers, neither (labels alone)": ["--method", "baseline", "--peers", "4"],
    "four peers, contrast, no KL": ["--method", "mcl", "--peers", "4"],
    "four peers, KL, no contrast": ["--method", "mcl-okd", "--set", "objective.beta=0"],
    "MCL-OKD": ["--method", "mcl-okd"],
}
SHOTS = (1, 5)
Results = dict[int, Result]  # by shot


def train(options: list[str], seed: int, episodes: int, out: Path) -> None:
    """One cell, on one thread; a started one is resumed."""
    if (out / "model.json").exists():
        return
    command = [sys.executable, "-m", "fewshot_mcl", "train", *options, "--episodes", str(episodes), "--seed", str(seed)]
    command += ["--out", str(out), *(["--resume"] if (out / "checkpoints/last.json").exists() else [])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def evaluate(run: Run) -> dict[str, Results]:
    """Results on the test split by network ("deployed", "ensemble") and shot."""
    content = evaluate_run(run, Protocol(5, SHOTS, 15, 600, 0))
    found: dict[str, Results] = {}
    for entry in content["results"]:
        name = "deployed" if entry["network"] == content["deployed"] else entry["network"]
        found.setdefault(name, {})[entry["shot"]] = Result(torch.tensor(entry["accuracies"], dtype=torch.float64))
    return found


def untrained() -> dict[str, list[Results]]:
    """Raw pixels, and Conv4 as initialised (three seeds), its batch statistics taken from 20 batches of training images."""
    source = open_source("glyphs")
    train, test = (source.load(split, ImageOptions()) for split in ("train", "test"))
    episodes = {k: EpisodeSampler(test.labels, way=5, shot=k, query=15, seed=0).sample(600) for k in SHOTS}
    mean, std = channel_statistics(train)
    pixels = [{k: evaluate_episodes(test.images.flatten(1) / 255, e) for k, e in episodes.items()}]
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        network = create_backbone("conv4", in_channels=1, image_size=28).train()
        with torch.no_grad():
            for _ in range(20):
                network(normalise(train.images[torch.randint(len(train), (110,))], mean, std))
        features = embed(network, test, mean, std)
        networks.append({k: evaluate_episodes(features, e) for k, e in episodes.items()})
    return {"raw pixels": pixels, "untrained Conv4": networks}


def cell(results: list[Results], shot: int) -> str:
    """Mean over seeds, its interval over episodes, and the deviation over seeds."""
    values = [r[shot] for r in results]
    mean = pooled(values)
    spread = f" (seeds {100 * torch.tensor([r.mean for r in values]).std():.2f})" if len(values) > 1 else ""
    return f"{100 * mean.mean:.2f} ± {100 * mean.ci95:.2f}{spread}"


def difference(ours: list[Results], theirs: list[Results], shot: int) -> str:
    """Paired by seed and episode: mean, interval over episodes, and each seed's own difference."""
    by_seed = [a[shot].minus(b[shot]) for a, b in zip(ours, theirs)]
    mean = pooled(by_seed)
    each = ", ".join(f"{100 * r.mean:+.2f}" for r in by_seed)
    return f"{100 * mean.mean:+.2f} ± {100 * mean.ci95:.2f} ({each})"


def table(rows: dict[str, list[Results]], minutes: dict[str, float], episodes: int, seeds: int, jobs: int) -> str:
    """The Markdown that goes into benchmarks/results/."""
    lines = [
        f"# glyphs, {episodes} training episodes, {seeds} seeds",
        "",
        f"fewshot-mcl {__version__}, torch {torch.__version__}, CPU, one thread a run, {jobs} at a time. Recipe: "
        f"`configs/default.toml` with `--episodes {episodes}`. Test split: 128 classes of scripts not seen in training; 5-way, "
        "15 queries, 600 episodes (seed 0), the same for every row. Accuracy in %, mean over training seeds ± 95% interval over "
        "episodes (1.96 s / sqrt E, of the seeds' mean), and the deviation over seeds. Each run's best checkpoint by validation. "
        "Network: the last peer, which is the one that is deployed, unless the row says ensemble.",
        "",
        "| | 1-shot | 5-shot | training, min |",
        "|---|---|---|---|",
    ]
    for name, results in rows.items():
        time = f"{minutes[name]:.1f}" if name in minutes else ""
        lines.append(f"| {name} | {cell(results, 1)} | {cell(results, 5)} | {time} |")
    lines += [
        "",
        "Paired differences (same seeds, same episodes; in brackets each seed's own):",
        "",
        "| | 1-shot | 5-shot |",
    ]
    lines += ["|---|---|---|"]
    baseline = rows["Baseline (one network)"]
    pairs = {
        "MCL-OKD, deployed peer - Baseline": (rows["MCL-OKD"], baseline),
        "MCL-OKD, ensemble - Baseline": (rows["MCL-OKD, ensemble of four"], baseline),
        "MCL-OKD - without the contrast (deployed peers)": (rows["MCL-OKD"], rows["four peers, KL, no contrast"]),
        "MCL-OKD - without the KL (deployed peers)": (rows["MCL-OKD"], rows["four peers, contrast, no KL"]),
        "MCL-OKD - without either (deployed peers)": (rows["MCL-OKD"], rows["four peers, neither (labels alone)"]),
        "the same, ensembles: - without the contrast": (
            rows["MCL-OKD, ensemble of four"], rows["four peers, KL, no contrast, ensemble of four"]
        ),
    }  # fmt: skip
    for name, (ours, theirs) in pairs.items():
        lines.append(f"| {name} | {difference(ours, theirs, 1)} | {difference(ours, theirs, 5)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, evaluate everything, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=2400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run directories")
    args = parser.parse_args()
    runs = {
        (name, seed): args.out / f"{'-'.join(options[1:]).replace('--', '')}-seed{seed}".replace("=", "")
        for seed in range(args.seeds)
        for name, options in CELLS.items()
    }
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda item: train(CELLS[item[0][0]], item[0][1], args.episodes, item[1]), runs.items()))
    rows, minutes = untrained(), {}
    for name in CELLS:
        of_cell = [Run.open(runs[name, seed]) for seed in range(args.seeds)]
        found = [evaluate(run) for run in of_cell]
        rows[name] = [f["deployed"] for f in found]
        if "ensemble" in found[0]:
            rows[f"{name}, ensemble of four"] = [f["ensemble"] for f in found]
        seconds = [json.loads((run.path / "checkpoints/last.json").read_text())["seconds"] for run in of_cell]
        minutes[name] = sum(seconds) / len(seconds) / 60
    text = table(rows, minutes, args.episodes, args.seeds, args.jobs)
    print(text)
    (Path(__file__).parent / "results" / f"glyphs-{args.episodes}.md").write_text(text)


if __name__ == "__main__":
    main()
