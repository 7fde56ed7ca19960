"""Nearest prototypes as a scikit-learn classifier. Importing this module takes scikit-learn (the extra `sklearn`)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.evaluation.fewshot import embed
from fewshot_mcl.evaluation.restore import load_deployed
from fewshot_mcl.interop import missing
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.runs import Run

try:  # here, because a class's bases are needed where it is defined
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise missing("scikit-learn", "sklearn", error) from error

REALS = [np.float64, np.float32]


class PrototypeClassifier(ClassifierMixin, BaseEstimator):
    """A class is the mean of its support vectors; a query belongs to the nearest (Snell et al. 2017).

    Without `network`, X is a matrix (N, D) of real numbers and this is an estimator like any other, which passes
    scikit-learn's `check_estimator`. With `network`, X is images (N, C, H, W), uint8, of the size the network was trained
    on; `check_estimator` does not apply then, its data being matrices.

    Args:
        metric: "euclidean" (squared) or "cosine".
        scale: of the cosine.
        temperature: what logits are divided by before they become probabilities.
        network: a finished run's directory, whose deployed network embeds images, or a `Backbone`.
        mean, std: (C,) of the training images in [0, 1], for a `Backbone`; a run has its own.

    Attributes:
        classes_: (K,) the classes, sorted.
        prototypes_: (K, D).
        n_features_in_: D.
    """

    def __init__(
        self,
        *,
        metric: str = "euclidean",
        scale: float = 10.0,
        temperature: float = 1.0,
        network: str | Path | Backbone | None = None,
        mean: ArrayLike | None = None,
        std: ArrayLike | None = None,
    ) -> None:
        self.metric, self.scale, self.temperature = metric, scale, temperature
        self.network, self.mean, self.std = network, mean, std

    def fit(self, X: Any, y: ArrayLike) -> PrototypeClassifier:  # noqa: N803 (scikit-learn's name for it)
        """Take the prototypes of labelled vectors (N, D) or images (N, C, H, W); y is (N,) of any labels.

        Raises:
            ValueError, UserError: where X, y or a setting is not as said above.
        """
        if self.metric not in ("euclidean", "cosine"):
            raise unknown("metric", str(self.metric), ("euclidean", "cosine"))
        if self.scale <= 0 or self.temperature <= 0:
            raise UserError(f"scale and temperature must be positive, not {self.scale} and {self.temperature}.")
        if self.network is None:
            X, y = validate_data(self, X, y, dtype=REALS)  # noqa: N806
        else:
            self.embedder_ = _embedder(self.network, self.mean, self.std)
            X, y = self._embedded(X), np.asarray(y)  # noqa: N806
            if y.shape != X.shape[:1]:
                raise UserError(f"{len(X)} images but labels of shape {y.shape}.")
            self.n_features_in_ = X.shape[1]
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        vectors = torch.tensor(X)  # a copy: scikit-learn's arrays may be read-only, which torch has no notion of
        self.prototypes_ = torch.stack([F.prototypes(vectors[labels == k]) for k in range(len(self.classes_))]).numpy()
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """(N,) the nearest class of each."""
        nearest = self._logits(X).argmax(-1).numpy()
        return self.classes_[nearest]

    def predict_proba(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """(N, K) probabilities, columns as in `classes_`: the softmax of the episode logits over the temperature."""
        return self._logits(X).div(self.temperature).softmax(-1).numpy()

    def _logits(self, X: Any) -> Tensor:  # noqa: N803
        check_is_fitted(self)
        own = self.network is None
        X = validate_data(self, X, dtype=REALS, reset=False) if own else self._embedded(X)  # noqa: N806
        query = torch.tensor(X)
        return F.prototypical_logits(query, torch.tensor(self.prototypes_, dtype=query.dtype), self.metric, self.scale)

    def _embedded(self, images: Any) -> NDArray[Any]:
        network, mean, std = self.embedder_
        pixels = torch.as_tensor(images)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != len(mean):
            raise UserError(
                f"images must be (N, {len(mean)}, H, W) uint8, not {tuple(pixels.shape)} {pixels.dtype}: with a network, X is "
                "images as they are, from 0 to 255."
            )
        store = ImageStore(pixels, torch.zeros(len(pixels)), ["image"])
        return embed(network, store, mean, std).cpu().numpy()


def _embedder(network: Any, mean: Any, std: Any) -> tuple[Backbone, Tensor, Tensor]:
    """A network that ends at its features, and the statistics that its images are normalised by."""
    if isinstance(network, Backbone):
        if mean is None or std is None:
            raise UserError("a Backbone needs mean= and std=, (C,) of the images it was trained on, within [0, 1].")
        backbone = copy.deepcopy(network)
    else:
        backbone, card = load_deployed(Run.open(Path(network)))
        mean, std = card["mean"], card["std"]
    backbone.classifier = None
    options: Any = {"dtype": torch.float32, "device": next(backbone.parameters()).device}
    return backbone, torch.as_tensor(np.asarray(mean), **options), torch.as_tensor(np.asarray(std), **options)
