"""Against the real scikit-learn: its own checks of an estimator, and our own episode logits."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from fewshot_mcl.data import EpisodeSampler, ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import embed, episode_logits
from fewshot_mcl.evaluation.restore import load_deployed
from fewshot_mcl.interop.sklearn import PrototypeClassifier
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.runs import Run

GOLDEN = Path(__file__).parents[1] / "golden" / "run-schema2" / "finished"
METRICS = [{}, {"metric": "cosine", "scale": 7.0, "temperature": 2.0}, {"temperature": 0.5}]


@pytest.mark.parametrize("options", METRICS)
def test_it_is_an_estimator(options) -> None:
    results = check_estimator(PrototypeClassifier(**options), on_skip=None)
    left = {result["check_name"]: str(result["exception"]) for result in results if result["status"] != "passed"}
    # One takes a setting of the environment, the other pandas.
    assert left.keys() <= {"check_array_api_input", "check_classifier_data_not_an_array"}
    assert len(results) > 40


@pytest.fixture
def store() -> ImageStore:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageStore(images, torch.arange(4).repeat_interleave(6), list("wxyz"))


def of_episode(classifier: PrototypeClassifier, rows, episodes, number: int = 0):
    """Fitted on an episode's support; its probabilities for the queries, in the episode's order of classes."""
    way, shot = episodes.support.shape[1:]
    classifier.fit(rows[episodes.support[number].flatten()], np.repeat(np.arange(way), shot))
    return classifier.predict_proba(rows[episodes.query[number].flatten()])


@pytest.mark.parametrize("options", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_those_of_our_episode_logits(store, options, dtype) -> None:
    features = torch.randn(24, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)
    episodes = EpisodeSampler(store.labels, way=3, shot=2, query=3).sample(4)
    logits = episode_logits(features, episodes, options.get("metric", "euclidean"), options.get("scale", 10.0))
    expected = (logits / options.get("temperature", 1.0)).softmax(-1)
    for number in range(4):
        found = of_episode(PrototypeClassifier(**options), features.numpy(), episodes, number)
        np.testing.assert_allclose(found, expected[number].numpy(), rtol=1e-5, atol=1e-7)


def test_prototypes_are_class_means_whatever_their_sizes() -> None:
    rows, labels = np.random.default_rng(0).normal(size=(60, 4)), np.array(list("ba" * 10 + "cccb" * 10))
    ours, theirs = PrototypeClassifier().fit(rows, labels), NearestCentroid().fit(rows, labels)
    assert ours.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(ours.prototypes_, theirs.centroids_)
    np.testing.assert_allclose(ours.prototypes_[0], rows[labels == "a"].mean(0))
    assert ours.predict(rows).tolist() == theirs.predict(rows).tolist()
    assert 0.3 < ours.score(rows, labels) == theirs.score(rows, labels) < 1


def test_it_goes_into_pipelines_and_searches() -> None:
    rows, labels = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    rows[np.arange(60), labels] += 3
    assert cross_val_score(make_pipeline(StandardScaler(), PrototypeClassifier()), rows, labels).mean() > 0.8
    search = GridSearchCV(PrototypeClassifier(), {"metric": ["euclidean", "cosine"], "temperature": [1.0, 4.0]})
    assert search.fit(rows, labels).best_score_ > 0.8
    fitted = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(fitted.predict_proba(rows), search.predict_proba(rows))


def test_images_go_through_the_deployed_network_of_a_run(store, tmp_path) -> None:
    run = shutil.copytree(GOLDEN, tmp_path / "run")
    network, card = load_deployed(Run.open(run))
    mean, std = (torch.tensor(card[name]) for name in ("mean", "std"))
    episodes = EpisodeSampler(store.labels, way=4, shot=2, query=4).sample(1)
    expected = episode_logits(embed(network, store, mean, std), episodes, "cosine", 5.0)[0].softmax(-1)
    options = {"metric": "cosine", "scale": 5.0}
    classifier = PrototypeClassifier(network=run, **options)
    assert clone(classifier).get_params() == classifier.get_params()
    np.testing.assert_allclose(of_episode(classifier, store.images, episodes), expected, rtol=1e-4, atol=1e-6)
    assert classifier.n_features_in_ == 64
    other = PrototypeClassifier(network=network, mean=mean, std=std, **options)
    np.testing.assert_allclose(of_episode(other, store.images.numpy(), episodes), expected, rtol=1e-4, atol=1e-6)


def test_of_a_network_that_classifies_the_features_are_taken(store) -> None:
    torch.manual_seed(0)
    network = create_backbone("conv4", 7, image_size=16)
    images, labels = store.images.numpy(), store.labels.numpy()
    classifier = PrototypeClassifier(network=network, mean=[0.5] * 3, std=[0.25] * 3).fit(images, labels)
    assert classifier.prototypes_.shape == (4, 64)
    with torch.no_grad():
        expected = network.eval().features((store.images.float() / 255 - 0.5) / 0.25)[:6].mean(0)
    np.testing.assert_allclose(classifier.prototypes_[0], expected, rtol=1e-4, atol=1e-5)
    assert network.classifier is not None


def test_what_does_not_fit_is_refused_in_a_sentence(store) -> None:
    rows, labels, images = np.eye(4), [0, 0, 1, 1], store.images.numpy()
    network, scales = create_backbone("conv4", image_size=16), {"mean": [0.5] * 3, "std": [0.25] * 3}
    for options, data, words in (
        ({"metric": "manhattan"}, rows, "unknown metric 'manhattan'"),
        ({"temperature": 0}, rows, "must be positive"),
        ({"network": network}, images[:4], "needs mean= and std="),
        ({"network": network, **scales}, rows, "images as they are, from 0 to 255"),
        ({"network": network, **scales}, images[:4].astype(np.float32), "uint8, not"),
        ({"network": network, **scales}, images[:4, :1], r"\(N, 3, H, W\) uint8"),
        ({"network": network, **scales}, images[:5], "5 images but labels of shape"),
        ({"network": "nowhere"}, images[:4], "nowhere does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            PrototypeClassifier(**options).fit(data, labels)


def test_missing_library_says_what_to_install(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "fewshot_mcl.interop.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(UserError, match=r"needs scikit-learn.*fewshot-mcl\[sklearn\]"):
        import fewshot_mcl.interop.sklearn  # noqa: F401
