"""A command that will work on some images: way, shot, query and size that they allow, tried by resolving it without training."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fewshot_mcl.config import ClassifyConfig, FewShotConfig, resolve
from fewshot_mcl.data.episodes import EpisodeSampler
from fewshot_mcl.data.inspect import Counts, Inspection
from fewshot_mcl.data.labelled import hold_out
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.resources import program

SIZES = (84, 64, 48, 32, 28)  # of images that are files, in pixels
SMALLEST = 16  # that the default network takes
TEST_WAY, TEST_QUERY, TEST_SHOTS = 5, 15, (1, 5)  # of `evaluate`, unless it is told otherwise


@dataclass
class Suggestion:
    """Commands to copy, or what stands in the way.

    Attributes:
        train: the words after the program's name; empty where nothing would work.
        test: those of the test that follows, but for the run's name.
        reasons: why a value differs from what is usual, or why nothing works.
    """

    train: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        """The training command, to copy."""
        return f"{program()} {shlex.join(self.train)}"

    @property
    def test_command(self) -> str:
        """The command of the test, with RUN for the run's name; empty where training ends with it."""
        return f"{program()} evaluate RUN {shlex.join(self.test)}".rstrip() if self.train[:1] == ["train"] else ""

    def lines(self) -> list[str]:
        """As text."""
        if not self.train:
            return [f"no command to suggest: {' '.join(self.reasons)}"]
        text = ["suggested, with values that these images allow:", f"  {self.command}"]
        text += ["and, on the run that it makes:", f"  {self.test_command}"] if self.test_command else []
        return [*text, *(f"  ({reason})" for reason in self.reasons)]


def suggest(found: Inspection, data: str, root: Path | None, options: dict[str, Any]) -> Suggestion:
    """What to type next.

    Args:
        found: what was seen of the images.
        data, root: as they were named.
        options: of the images, by their `--set` names; None where they were not given.
    """
    asked = {name: value for name, value in options.items() if value is not None}
    reasons = []
    if found.files and "image_size" not in asked and found.pictures:
        size = _size(found)
        if size != SIZES[0]:
            asked["image_size"] = size
            reasons.append(
                f"images of {size} pixels: half of the files have no more than {found.sides[len(found.sides) // 2]}"
            )
    if found.bad and "on_bad_image" not in asked:
        asked["on_bad_image"] = "skip"
        reasons.append(f"{len(found.bad)} bad image(s) are left out")
    if asked.get("on_bad_image") == "refuse" and found.bad:
        return Suggestion(reasons=[f"{len(found.bad)} image(s) cannot be read, and they are to be refused."])
    place: dict[str, Any] = {"data": data} | ({"root": str(root)} if root else {})
    for problem in found.problems.get("files and classes", []):
        return Suggestion(reasons=[f"{problem}."])
    try:
        make = _classify if found.task == "classify" else _few_shot
        return make(found, place | asked, reasons)
    except UserError as error:
        return Suggestion(reasons=[str(error)])


def _size(found: Inspection) -> int:
    middle = found.sides[len(found.sides) // 2]
    return next((size for size in SIZES if size <= middle), SMALLEST)


def _few_shot(found: Inspection, options: dict[str, Any], reasons: list[str]) -> Suggestion:
    config = resolve(None, options, task="few-shot")
    assert isinstance(config, FewShotConfig)
    train, val, test = (_usable(found, split) for split in ("train", "val", "test"))
    own = _fitting(train, config.way, config.shot, config.query)
    seen = _fitting(val, config.val_way, config.val_shot, config.val_query)
    asked, settings = dict(options), []
    for name, value in own.items():
        if value != getattr(config, name):
            asked[name] = value
            reasons.append(f"--{name} {value} for training: {_why(train, name)}")
    for name, value in seen.items():
        if value != getattr(config, f"val_{name}"):
            settings.append(f"val_{name}={value}")
            reasons.append(f"val_{name}={value}: {_why(val, name)}")
    resolved = resolve(None, asked, settings, task="few-shot")
    assert isinstance(resolved, FewShotConfig)
    _try(train, resolved.way, resolved.shot, resolved.query)
    _try(val, resolved.val_way, resolved.val_shot, resolved.val_query)
    reasons += _without_small(train, config)
    words = ["train", *_words(asked), *(word for setting in settings for word in ("--set", setting))]
    return Suggestion(words, _test_words(test), reasons)


def _usable(found: Inspection, split: str) -> Counts:
    """A split whose episodes are possible at all."""
    counts = found.of(split)
    if counts is None or len(counts.by_class) < 2:
        raise UserError(f"there are no two classes for the {split} split. `classify` takes splits of the same classes.")
    if counts.smallest < 2:
        name = printable(min(counts.by_class, key=counts.by_class.__getitem__))
        small = sum(count < 2 for count in counts.by_class.values())
        others = f", and {small - 1} more such" if small > 1 else ""
        raise UserError(
            f"class '{name}' of {split} has {counts.smallest} usable image(s){others}, and an episode takes two: add images or "
            "remove it."
        )
    return counts


def _fitting(counts: Counts, way: int, shot: int, query: int) -> dict[str, int]:
    """The nearest way, shot and query that a split allows."""
    shot = min(shot, counts.smallest - 1)
    return {"way": min(way, len(counts.by_class)), "shot": shot, "query": min(query, counts.smallest - shot)}


def _why(counts: Counts, name: str) -> str:
    if name == "way":
        return f"{counts.split} has {len(counts.by_class)} classes"
    return f"the smallest class of {counts.split} has {counts.smallest} images"


def _without_small(counts: Counts, config: FewShotConfig) -> list[str]:
    """What leaving out a split's small classes would give, where that is worth a word."""
    needed = config.shot + config.query
    enough = sum(count >= needed for count in counts.by_class.values())
    if counts.smallest >= needed or enough < 2:
        return []
    return [
        f"without classes of fewer than {needed} images, {counts.split} would have {enough} and the usual --query {config.query}"
    ]


def _try(counts: Counts, way: int, shot: int, query: int) -> None:
    """Raise `UserError` where such episodes cannot be drawn."""
    EpisodeSampler(_labels(counts), way=way, shot=shot, query=query, class_names=list(counts.by_class)).sample(1)


def _labels(counts: Counts) -> torch.Tensor:
    return torch.arange(len(counts.by_class)).repeat_interleave(torch.tensor(counts.sizes))


def _test_words(counts: Counts) -> list[str]:
    """Options of `evaluate`, where its usual ones do not fit."""
    shots = [shot for shot in TEST_SHOTS if counts.smallest - shot >= min(TEST_QUERY, shot)] or [1]
    way, query = min(TEST_WAY, len(counts.by_class)), min(TEST_QUERY, counts.smallest - max(shots))
    for shot in shots:
        _try(counts, way, shot, query)
    words = [] if way == TEST_WAY else ["--way", str(way)]
    words += [] if tuple(shots) == TEST_SHOTS else [word for shot in shots for word in ("--shot", str(shot))]
    return words + ([] if query == TEST_QUERY else ["--query", str(query)])


def _classify(found: Inspection, options: dict[str, Any], reasons: list[str]) -> Suggestion:
    config = resolve(None, options, task="classify")
    assert isinstance(config, ClassifyConfig)
    train, test = found.of("train"), found.of("test")
    if train is None or test is None or len(train.by_class) < 2:
        raise UserError("training and test images of two classes or more are needed.")
    for counts in (train, test):
        if counts.smallest < 1:
            name = printable(min(counts.by_class, key=counts.by_class.__getitem__))
            raise UserError(
                f"class '{name}' of {counts.split} has no usable image: mend its images or remove the class."
            )
    asked, settings = dict(options), []
    share = 0.0 if found.of("val") else config.val_share
    if share and train.smallest < 2:
        share = 0.0
        settings.append("val_share=0")
        reasons.append("no validation: a class has one training image")
    labels = _labels(train)
    store = ImageStore(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels, list(train.by_class))
    rows = len(hold_out(store, share, config.split_seed, config.images_per_class)[0])
    if rows % config.batch == 1:
        asked["batch"] = next(size for size in range(config.batch + 1, config.batch + rows + 2) if rows % size != 1)
        reasons.append(f"--batch {asked['batch']}: the last batch would hold one image")
    resolve(None, asked, settings, task="classify")
    return Suggestion(["classify", *_words(asked), *(w for s in settings for w in ("--set", s))], [], reasons)


def _words(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
