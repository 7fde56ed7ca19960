"""Make the small model that ships with the package, and measure it.

    uv run --extra pretrained python tools/make_model.py --run DIR

Trains by the recipe `configs/packaged.toml` into DIR (about four minutes of one core; a finished run is not trained again, a
stopped one is resumed), takes its deployed network with its card, measures it on the test split of glyphs, beside raw pixels on
the same episodes, writes fewshot_mcl/models/glyphs/ and prints the figures. On the same machine with the same versions the
weights come out byte for byte; elsewhere they differ by rounding, and the figures by some tenths of a point.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fewshot_mcl.data import EpisodeSampler, ImageOptions, open_source
from fewshot_mcl.evaluation import embed, evaluate_episodes
from fewshot_mcl.evaluation.restore import load_deployed
from fewshot_mcl.runs import Run, files, tensors

FOLDER = Path(__file__).parents[1] / "fewshot_mcl" / "models" / "glyphs"
PROTOCOL = {"way": 5, "query": 15, "episodes": 600, "seed": 0, "split": "test"}
SHOTS = (1, 5)
OWN = ("schema", "check")  # of the file, not of the model


def train(path: Path) -> Run:
    """The finished run of the recipe at `path`."""
    if not (path / "model.json").exists():
        command = [sys.executable, "-m", "fewshot_mcl", "train", "--out", str(path)]
        command += ["--resume"] if path.exists() else ["--config", "packaged"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Run.open(path)


def measure(run: Run) -> list[dict[str, Any]]:
    """The deployed network and raw pixels on episodes of scripts that no peer has seen, and the paired difference."""
    import torch

    network, card = load_deployed(run)
    store = open_source("glyphs").load("test", ImageOptions())
    features = embed(network, store, torch.tensor(card["mean"]), torch.tensor(card["std"]))
    figures = []
    for shot in SHOTS:
        sampler = EpisodeSampler(store.labels, way=5, shot=shot, query=15, seed=0)
        episodes = sampler.sample(PROTOCOL["episodes"])
        ours = evaluate_episodes(features, episodes, metric=card["metric"], scale=card["scale"])
        pixels = evaluate_episodes(store.images.flatten(1) / 255, episodes)
        gain = ours.minus(pixels)
        figures.append(
            {
                **PROTOCOL,
                "data": "glyphs",
                "classes": store.num_classes,
                "shot": shot,
                "mean": ours.mean,
                "ci95": ours.ci95,
                "raw_pixels": pixels.mean,
                "raw_pixels_ci95": pixels.ci95,
                "gain": gain.mean,
                "gain_ci95": gain.ci95,
                "episode_list": episodes.digest,
            }
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run directory to make, or to go on with")
    run = train(parser.parse_args().run)
    weights, card = run.load_model()
    figures = measure(run)
    FOLDER.mkdir(exist_ok=True)
    card = {name: value for name, value in card.items() if name not in OWN} | {"recipe": "packaged", "test": figures}
    card["sha256"] = tensors.write_tensors(FOLDER / "model.safetensors", weights)
    files.write_json(FOLDER / "model.json", card)
    print(f"{FOLDER.name}: {(FOLDER / 'model.safetensors').stat().st_size:,} bytes, SHA-256 {card['sha256']}")
    for each in figures:
        print(
            f"glyphs, test split ({each['classes']} classes), 5-way {each['shot']}-shot, 15 queries a class, {each['episodes']} "
            f"episodes, seed 0: {100 * each['mean']:.2f} ± {100 * each['ci95']:.2f} %, raw pixels "
            f"{100 * each['raw_pixels']:.2f} ± {100 * each['raw_pixels_ci95']:.2f} %, paired difference "
            f"{100 * each['gain']:+.2f} ± {100 * each['gain_ci95']:.2f}"
        )


if __name__ == "__main__":
    main()
