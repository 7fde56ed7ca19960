"""What training in bfloat16 does to accuracy: the default recipe on the embedded glyphs, paired by seed and test episode.

    uv run --group bench python benchmarks/bfloat16.py --out benchmarks/results/bfloat16.md --runs DIR

Every run is `fewshot-mcl train` on one thread, the two precisions of a seed one after the other; a run that is finished is
not trained again. Only the networks compute in bfloat16, and only in training: losses, validation and tests are float32.
"""

from __future__ import annotations

from pathlib import Path

import harness
from glyphs_table import SHOTS, Results, cell, difference, evaluate, train

from fewshot_mcl.runs import Run

PRECISIONS = ("float32", "bfloat16")


def trained(path: Path, seed: int, precision: str, episodes: int) -> tuple[Results, float]:
    """Results of the deployed peer on the test episodes, and the seconds that training took."""
    train(["--set", f"precision={precision}"], seed, episodes, path)
    run = Run.open(path)
    return evaluate(run)["deployed"], run.read_json("checkpoints/last.json", "seconds")["seconds"]


def main() -> None:
    chosen = harness.arguments(__doc__ or "", episodes=600, seeds=3, runs="bfloat16-runs")
    results: dict[str, list[Results]] = {precision: [] for precision in PRECISIONS}
    times = harness.Times({precision: [] for precision in PRECISIONS})
    for seed in range(chosen.seeds):
        for precision in PRECISIONS:
            found, seconds = trained(Path(chosen.runs) / f"{precision}-{seed}", seed, precision, chosen.episodes)
            results[precision].append(found)
            times.seconds[precision].append(seconds)
    columns = ["precision of the networks in training", *(f"{shot}-shot" for shot in SHOTS), "training, s"]
    rows = [[p, *(cell(results[p], s) for s in SHOTS), f"{times.median(p):.0f}"] for p in PRECISIONS]
    paired = [difference(results["bfloat16"], results["float32"], shot) for shot in SHOTS]
    rows.append(["bfloat16 - float32, paired", *paired, f"{times.ratio('float32', 'bfloat16')} times as fast"])
    parts = [
        f"MCL-OKD, four Conv4 peers, embedded glyphs (28x28), default recipe with {chosen.episodes} episodes, {chosen.seeds} "
        "seeds. Test split, deployed peer, best by validation; 5-way, 15 queries, 600 episodes (seed 0), the same for all. "
        "Accuracy in %, mean over seeds ± 95% interval over episodes; of differences, in brackets each seed's own.",
        harness.table(columns, rows),
    ]
    harness.report("Training in bfloat16", parts, chosen.out)


if __name__ == "__main__":
    main()
