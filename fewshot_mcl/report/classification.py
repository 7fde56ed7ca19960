"""The page of a run of `classify`, from an evaluation of its test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from fewshot_mcl.config import ClassifyConfig
from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.class_session import evaluate_classifier
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.pages import fragment
from fewshot_mcl.report import accuracy, confusion, curves, rates
from fewshot_mcl.report.evaluations import numbers, read_evaluation
from fewshot_mcl.runs import Run
from fewshot_mcl.runs.tensors import read_tensors

PREDICTIONS = "predictions.safetensors"
COVERS = (
    "The interval is Wilson's, over test images of the class. It does not cover other training seeds; and of so many classes "
    "some are worst by chance."
)
RULE = (
    "The share is of the test images of both classes. Pairs are ranked by the lower end of Wilson's interval over those "
    "images."
)
CHECKPOINTS = {
    "last": "the last epoch",
    "best": "the best by validation",
    "best-on-test": "chosen on these very images",
}


@dataclass(frozen=True)
class Classes:
    """A classification run and what was said of its test images.

    Attributes:
        run, config: the run.
        content: the saved evaluation.
        store: N test images.
        answers: "CHECKPOINT/NETWORK" -> (N,) predicted labels.
    """

    run: Run
    config: ClassifyConfig
    content: dict[str, Any]
    store: ImageStore
    answers: dict[str, Tensor]

    @property
    def headline(self) -> str:
        """The network that the page is about, as `answers` names it."""
        return f"{self.content['headline']}/{self.content['deployed']}"

    @property
    def protocol(self) -> str:
        """What was measured, in words."""
        c = self.content
        return (
            f"{c['images']:,} test images, deployed network ({c['deployed']}), checkpoint: {CHECKPOINTS[c['headline']]}"
        )


def gather(run: Run, number: int | None, *, data: str | None, root: Path | None, device: str) -> Classes:
    """The run, its test images and an evaluation of them: that of this number, the newest, or one that is made now.

    Raises:
        UserError: if there is none of that number, it is of other images, or a file is damaged.
    """
    config, kept = run.config, numbers(run)
    assert isinstance(config, ClassifyConfig)
    if number is None and not kept:
        number = int(Path(evaluate_classifier(run, data=data, root=root, device=device)["file"]).stem[-3:])
    number = kept[-1] if number is None else number
    content = read_evaluation(run, number)
    store = open_labelled(*run.place(data, root), run.image_options, config.download).load("test", run.image_options)
    if store.fingerprint != content["fingerprint"]:
        raise UserError(
            f"evaluation {number} is of other images than those of {store.source} now. Name the data that it is of (--data, "
            "--root), or evaluate the run again."
        )
    path = run.path / f"evaluations/evaluation-{number:03d}-{PREDICTIONS}"
    again = "Put it back from a copy, or evaluate the run again."
    sums = content.get("attachments", {})
    if PREDICTIONS not in sums:
        raise UserError(f"evaluation {number} does not keep its answers. Evaluate the run again.")
    answers = {name: each.long() for name, each in read_tensors(path, sums[PREDICTIONS], path.name, again).items()}
    answers.pop("labels")
    return Classes(run, config, content, store, answers)


def parts(found: Classes) -> list[tuple[str, str, Markup]]:
    """Anchor, heading and body of each part of the page."""
    store, answers, content = found.store, found.answers[found.headline], found.content
    right = answers == store.labels
    classes = rates.of_images(right, store.labels, store.num_classes)
    ones = torch.ones(len(store), dtype=torch.int64)
    step = next(e["step"] for e in content["results"] if f"{e['checkpoint']}/{e['network']}" == found.headline)
    shown = accuracy.render(store, classes, ones, right.long(), found.protocol, COVERS, "images")
    pairs = confusion.render(store, taken(store, answers), torch.arange(len(store)), answers, found.protocol, RULE, "")
    return [
        ("headline", "What it is worth", _headline(found)),
        (
            curves.ANCHOR,
            curves.HEADING,
            curves.render(found.run, step, "Top-1 accuracy on images held out of training"),
        ),
        (accuracy.ANCHOR, accuracy.HEADING, shown),
        (confusion.ANCHOR, confusion.HEADING, pairs),
    ]


def taken(store: ImageStore, answers: Tensor) -> confusion.Pairs:
    """Every pair of classes of which an image of one was taken for the other; `answers` are (N,) labels."""
    wrong = answers != store.labels
    there = torch.stack([store.labels[wrong], answers[wrong]], 1)
    found, group = there.sort(1).values.unique(dim=0, return_inverse=True)
    first, second = found.unbind(1)
    forward = torch.bincount(group[there[:, 0] < there[:, 1]], minlength=len(found))
    backward = torch.bincount(group[there[:, 0] > there[:, 1]], minlength=len(found))
    size = store.class_sizes
    count = size[first] + size[second]
    share = (forward + backward) / count
    together = rates.Rates(share, *rates.wilson(share.double(), count), count, count)
    return confusion.Pairs(first, second, together, forward / size[first], backward / size[second])


def _headline(found: Classes) -> Markup:
    content, labels = found.content, found.store.labels
    entries = {f"{e['checkpoint']}/{e['network']}": e for e in content["results"]}
    right = {name: Result((each == labels).double()) for name, each in found.answers.items()}
    first, ensemble = right[found.headline], right.get(f"{content['headline']}/ensemble")
    rows = [
        [
            f"{e['network']}{' (deployed)' if e['network'] == content['deployed'] else ''}", CHECKPOINTS[e["checkpoint"]],
            *(f"{100 * e[f'{top}_error']:.2f} ± {100 * e[f'{top}_ci95']:.2f}" for top in ("top1", "top5")),
        ]
        for e in sorted(content["results"], key=lambda e: e["checkpoint"] != content["headline"])
    ]  # fmt: skip
    return fragment(
        "report/class_headline.html", first=entries[found.headline], content=content, rows=rows, store=found.store,
        config=found.config, protocol=found.protocol, gain=None if ensemble is None else ensemble.minus(first),
    )  # fmt: skip
