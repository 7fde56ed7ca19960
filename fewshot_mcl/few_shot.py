"""Few-shot answers in three lines: fit a folder of examples, ask about images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError
from fewshot_mcl.prediction.answers import Answers, Evaluation, Prediction, Rule, Share, decide
from fewshot_mcl.prediction.calibration import effective_shot
from fewshot_mcl.prediction.classifier import Prototypes
from fewshot_mcl.prediction.model import Model, Progress, Seen, silent
from fewshot_mcl.prediction.photos import Item, has_colour, labelled_files, name_of, refuse_bad

Place = str | PathLike[str]


class FewShot:
    """Classifies images by a few examples of each class, with a network that is trained already.

    Args:
        model: the path of a finished run, "glyphs" (ships with the package) or "efficientnet-lite0" (extra `pretrained`);
            None takes the best for photos that is installed.
        device: where to compute: "auto", "cpu", "cuda", ...
        false_accept: share of images of other classes that may be given one of the classes, for the threshold of "none of
            these". It holds for images as unlike the examples as the validation classes of the network are to each other.

    Attributes:
        model: the network, with its card.
        classes: names, sorted; once fitted.
        counts: examples of each class.
        rule: temperature and threshold, and the measurements they rest on.
        leave_one_out: accuracy on the examples themselves, each by all the others; None where a class has one example.
        notes: what the user should know.

    Raises:
        UserError: where there is no such model.

    Example:
        >>> import numpy as np
        >>> from fewshot_mcl import FewShot
        >>> across = np.zeros((28, 28), np.uint8)
        >>> across[::4] = 255
        >>> few = FewShot().fit([across, across.T], ["rows", "columns"])
        >>> few.predict([across])[0].best
        'rows'
    """

    def __init__(self, model: Place | None = None, *, device: str = "auto", false_accept: float = 0.2) -> None:
        self.model = Model.open(model if model is None else str(model), device)
        self.false_accept = false_accept
        self.classes: tuple[str, ...] = ()
        self.counts: tuple[int, ...] = ()
        self.rule: Rule | None = None
        self.leave_one_out: Share | None = None
        self.notes: list[str] = []
        self._items: list[Item] = []

    def fit(
        self,
        support: Place | Sequence[Item],
        labels: Sequence[Any] | None = None,
        *,
        on_bad_image: Literal["refuse", "skip"] = "refuse",
        progress: Progress = silent,
    ) -> FewShot:
        """Learn the classes from examples.

        Args:
            support: a folder that holds a folder of images for each class; or a list of paths or of pixels, (H, W) or
                (H, W, 3) uint8.
            labels: the class of each, where `support` is a list.
            on_bad_image: whether unreadable examples are an error, or left out and noted.
            progress: is told how many images are done.

        Returns:
            self.

        Raises:
            UserError: where there are fewer than two classes, or images cannot be used.

        Example:
            >>> import numpy as np
            >>> from fewshot_mcl import FewShot
            >>> across = np.zeros((28, 28), np.uint8)
            >>> across[::4] = 255
            >>> few = FewShot().fit([across, across.T, across.T], ["rows", "columns", "columns"])
            >>> few.classes, few.counts
            (('columns', 'rows'), (2, 1))
        """
        items, named = _labelled(support, labels, least=2)
        seen = self.model.look(items, progress)
        bad = seen.reasons(items)
        if on_bad_image == "refuse":
            refuse_bad(bad, len(items), "Mend or remove them, or go on without them: --on-bad-image skip.")
        kept = [named[i] for i in seen.kept]
        if lost := sorted(set(named) - set(kept)):
            raise UserError(f"class '{printable(lost[0])}' has no usable image: mend its images or remove the class.")
        self.classes = tuple(sorted(set(named)))
        if len(self.classes) < 2:
            raise UserError("examples of one class leave nothing to choose from: give two classes or more.")
        self._items, self._seen = [items[i] for i in seen.kept], seen
        rows = torch.tensor([self.classes.index(name) for name in kept])
        self._prototypes = Prototypes(seen.features, rows, self.model.metric, self.model.scale)
        self.counts = tuple(self._prototypes.counts.tolist())
        self.rule = Rule.choose(self.model.calibration(), self._prototypes, self.false_accept)
        right = self._prototypes.leave_one_out()
        self.leave_one_out = None if right is None else Share(int(right.sum()), len(right))
        self.notes = [f"{len(bad)} of {len(items)} examples skipped: {'; '.join(bad)}"] if bad else []
        self._warn()
        return self

    @property
    def shot(self) -> float:
        """Examples of a class, as one number for classes of unequal size: see `calibration.effective_shot`."""
        return effective_shot(self.counts)

    @property
    def class_of(self) -> dict[str, str]:
        """The class of each example, by its path."""
        rows = self._prototypes.labels.tolist()
        return {name_of(item, i): self.classes[row] for i, (item, row) in enumerate(zip(self._items, rows))}

    def ask(self, queries: Sequence[Item], progress: Progress = silent) -> Answers:
        """`predict`, but images that cannot be read are named in `Answers.skipped`.

        Example:
            >>> import numpy as np
            >>> from fewshot_mcl import FewShot
            >>> across = np.zeros((28, 28), np.uint8)
            >>> across[::4] = 255
            >>> few = FewShot().fit([across, across.T], ["rows", "columns"])
            >>> few.ask([across, "nowhere.png"]).skipped
            ['nowhere.png (a link to a file that is not there)']
        """
        if self.rule is None:
            raise UserError("nothing was learned yet: call fit first.")
        seen = self.model.look(queries, progress)
        return Answers(self._decide(queries, seen), seen.reasons(queries))

    def predict(self, queries: Sequence[Item], progress: Progress = silent) -> list[Prediction]:
        """Answers about images, in their order.

        Args:
            queries: paths, or pixels as for `fit`.
            progress: is told how many images are done.

        Raises:
            UserError: where an image cannot be read, or nothing was fitted.

        Example:
            >>> import numpy as np
            >>> from fewshot_mcl import FewShot
            >>> across = np.zeros((28, 28), np.uint8)
            >>> across[::4] = 255
            >>> few = FewShot().fit([across, across.T], ["rows", "columns"])
            >>> answer = few.predict([across.T])[0]
            >>> answer.best, answer.second, answer.same_as
            ('columns', 'rows', 'image 1')
            >>> round(answer.probability + answer.second_probability, 6)
            1.0
        """
        answers = self.ask(queries, progress)
        refuse_bad(answers.skipped, len(queries), "Leave them out.")
        return answers.predictions

    def evaluate(
        self, queries: Place | Sequence[Item], labels: Sequence[Any] | None = None, progress: Progress = silent
    ) -> Evaluation:
        """How right the answers about labelled images are; classes that were not fitted should be "none of these".

        Args:
            queries, labels: as for `fit`.
            progress: is told how many images are done.

        Raises:
            UserError: where no image is of a class that was fitted.

        Example:
            >>> import numpy as np
            >>> from fewshot_mcl import FewShot
            >>> across = np.zeros((28, 28), np.uint8)
            >>> across[::4] = 255
            >>> few = FewShot().fit([across, across.T], ["rows", "columns"])
            >>> print(few.evaluate([across, across.T], ["rows", "columns"]).accuracy)
            100.0 % (2 of 2; 95% interval 34.2 to 100.0 %)
        """
        if self.rule is None:
            raise UserError("nothing was learned yet: call fit first.")
        items, named = _labelled(queries, labels, least=1)
        seen = self.model.look(items, progress)
        pairs = list(zip([named[i] for i in seen.kept], self._decide(items, seen)))
        known = [(name, answer) for name, answer in pairs if name in self.classes]
        foreign = [answer for name, answer in pairs if name not in self.classes]
        if not known:
            raise UserError(
                f"none of the images is of a class that was fitted ({', '.join(map(printable, self.classes))})."
            )
        by_class = {name: _right([pair for pair in known if pair[0] == name]) for name in dict(known)}
        ruled = self.rule.threshold is not None
        return Evaluation(
            _right(known),
            Share(sum(answer.label is None for _, answer in known), len(known)) if ruled else None,
            Share(sum(answer.label is not None for answer in foreign), len(foreign)) if ruled and foreign else None,
            by_class,
            seen.reasons(items),
        )

    def _decide(self, items: Sequence[Item], seen: Seen) -> list[Prediction]:
        assert self.rule is not None
        paths = [name_of(items[i], i) for i in seen.kept]
        supports = [name_of(item, i) for i, item in enumerate(self._items)]
        if not paths:
            return []
        found = decide(self._prototypes, self.rule, seen.features, paths, self.classes, supports)
        same = dict(zip(self._seen.digests, supports))
        return [
            replace(answer, same_as=same[digest]) if digest in same else answer
            for answer, digest in zip(found, seen.digests)
        ]

    def _warn(self) -> None:
        """Note what a user of these images should know of the network."""
        characters = self.model.card.get("trained_on") == "glyphs"
        if characters and (not self.model.chosen or has_colour(self._items)):
            self.notes.append(
                "this network was trained on rendered characters: expect little of it on photos. Features of photos come with "
                "the extra pretrained: pip install 'fewshot-mcl[pretrained]', then --model efficientnet-lite0"
            )
        if self.model.uncalibrated:
            self.notes.append(
                f"probabilities are uncalibrated, and nothing is answered with 'none of these': {self.model.uncalibrated}"
            )


def _right(pairs: list[tuple[str, Prediction]]) -> Share:
    return Share(sum(name == answer.best for name, answer in pairs), len(pairs))


def _labelled(items: Place | Sequence[Item], labels: Sequence[Any] | None, least: int) -> tuple[list[Item], list[str]]:
    """Images and the name of each one's class, from a folder of class folders or from two lists."""
    if isinstance(items, str | PathLike):
        classes = labelled_files(Path(items), least)
        return [p for paths in classes.values() for p in paths], [n for n, paths in classes.items() for _ in paths]
    if labels is None or len(labels) != len(items):
        count = "no labels" if labels is None else f"{len(labels)} labels"
        raise UserError(f"{len(items)} images with {count}: give one label for each image.")
    return list(items), [str(label) for label in labels]
