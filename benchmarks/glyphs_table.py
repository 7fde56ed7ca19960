"""MCL-OKD taken apart on the embedded glyphs: equal episodes, several seeds, the same test episodes for all.

    uv run python benchmarks/glyphs_table.py --episodes 2400 --seeds 3 --jobs 2 --out DIR

(`fewshot-mcl reproduce table4` sets it beside its rivals.) Each cell is `fewshot-mcl train` with the default recipe and
the options below, on one thread; a cell that is finished is not trained again. Test: 600 episodes, 5-way, 15 queries,
seed 0. Differences are paired by episode.
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
from fewshot_mcl.evaluation.fewshot import channel_statistics, normalise
from fewshot_mcl.evaluation.session import Protocol, evaluate_run
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.runs import Run

BASELINE, OURS, ENSEMBLE = "Baseline (one network)", "MCL-OKD", ", ensemble of four"
NEITHER, NO_KL, NO_CONTRAST = (
    f"four peers, {what}" for what in ("neither (labels alone)", "contrast, no KL", "KL, no contrast")
)
ABLATION = {
    BASELINE: ["--method", "baseline"],
    NEITHER: ["--method", "baseline", "--peers", "4"],
    NO_KL: ["--method", "mcl", "--peers", "4"],
    NO_CONTRAST: ["--method", "mcl-okd", "--set", "objective.beta=0"],
    OURS: ["--method", "mcl-okd"],
}
SHOTS = (1, 5)
Results = dict[int, Result]  # by shot
Rows = dict[str, list[Results]]  # by name, then by seed
Pairs = dict[str, tuple[str, str]]


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


def ablation_pairs() -> Pairs:
    """What the method gains, and what each part of it does."""
    return {
        "MCL-OKD, deployed peer - Baseline": (OURS, BASELINE),
        "MCL-OKD, ensemble - Baseline": (OURS + ENSEMBLE, BASELINE),
        "MCL-OKD - without the contrast (deployed peers)": (OURS, NO_CONTRAST),
        "MCL-OKD - without the KL (deployed peers)": (OURS, NO_KL),
        "MCL-OKD - without either (deployed peers)": (OURS, NEITHER),
        "the same, ensembles: - without the contrast": (OURS + ENSEMBLE, NO_CONTRAST + ENSEMBLE),
    }


def table(rows: Rows, pairs: Pairs, minutes: dict[str, float], args: argparse.Namespace) -> str:
    """The Markdown that goes into benchmarks/results/."""
    lines = [
        f"# glyphs, {args.episodes} training episodes, {args.seeds} seeds",
        "",
        f"fewshot-mcl {__version__}, torch {torch.__version__}, CPU, one thread a run, {args.jobs} at a time. Recipe: "
        f"`configs/default.toml` with `--episodes {args.episodes}`. Test split: 128 classes of scripts not seen in training; "
        "5-way, 15 queries, 600 episodes (seed 0), the same for every row. Accuracy in %, mean over training seeds ± 95% "
        "interval over episodes (1.96 s / sqrt E, of the seeds' mean), and the deviation over seeds. Each run's best checkpoint "
        "by validation. Network: the last peer, which is the one that is deployed, unless the row says ensemble.",
        "",
        "| | 1-shot | 5-shot | training, min |",
        "|---|---|---|---|",
    ]
    for name, results in rows.items():
        time = f"{minutes[name]:.1f}" if name in minutes else ""
        lines.append(f"| {name} | {cell(results, 1)} | {cell(results, 5)} | {time} |")
    head = "Paired differences (same seeds, same episodes; in brackets each seed's own):"
    lines += ["", head, "", "| | 1-shot | 5-shot |", "|---|---|---|"]
    for name, (ours, theirs) in pairs.items():
        one, five = (difference(rows[ours], rows[theirs], shot) for shot in SHOTS)
        lines.append(f"| {name} | {one} | {five} |")
    return "\n".join(lines) + "\n"


def train_all(args: argparse.Namespace) -> dict[str, list[Run]]:
    """The finished runs by cell and seed."""

    def path(name: str, seed: int) -> Path:
        return args.out / f"{'-'.join(ABLATION[name][1:]).replace('--', '').replace('=', '')}-seed{seed}"

    seeds = range(args.seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        cells = [(name, seed) for seed in seeds for name in ABLATION]
        list(pool.map(lambda cell: train(ABLATION[cell[0]], cell[1], args.episodes, path(*cell)), cells))
    return {name: [Run.open(path(name, seed)) for seed in seeds] for name in ABLATION}


def main() -> None:
    """Train what is missing, evaluate everything, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=2400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run directories")
    args = parser.parse_args()
    rows, minutes = untrained(), {}
    for name, runs in train_all(args).items():
        found = [evaluate(run) for run in runs]
        rows[name] = [f["deployed"] for f in found]
        if "ensemble" in found[0]:
            rows[name + ENSEMBLE] = [f["ensemble"] for f in found]
        seconds = [json.loads((run.path / "checkpoints/last.json").read_text())["seconds"] for run in runs]
        minutes[name] = sum(seconds) / len(seconds) / 60
    text = table(rows, ablation_pairs(), minutes, args)
    print(text)
    (Path(__file__).parent / "results" / f"glyphs-{args.episodes}.md").write_text(text)


if __name__ == "__main__":
    main()
