"""The episodic task and the loop over it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_mcl.config import Config, resolve
from fewshot_mcl.data import ImageOptions, ImageStore, open_source
from fewshot_mcl.data.sources import ForbiddenSplitError, training_only
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import channel_statistics
from fewshot_mcl.objectives import METHODS
from fewshot_mcl.training.episodic import EpisodicTask, learning_rate

SMALL = {"way": 3, "shot": 2, "query": 3, "val_way": 3, "val_query": 2, "val_episodes": 5, "peers": 2, "episodes": 10}


def store(split: str, classes: int = 6) -> ImageStore:
    generator = torch.Generator().manual_seed(classes)
    images = torch.randint(256, (classes * 8, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageStore(images, torch.arange(classes).repeat_interleave(8), [f"{split}{i}" for i in range(classes)])


def task(**options: Any) -> EpisodicTask:
    settings = [f"{name}={value}" for name, value in ({**SMALL} | options).items()]
    return EpisodicTask(resolve(None, {}, settings), store("train"), store("val", 4), torch.device("cpu"))


# What each method adds to the class loss: from logits, and from features.
TERMS = {
    "baseline": ((), ()), "dml": (("kl",), ()), "cl-ilr": (("kl",), ()), "one": (("gated_ce", "kl"), ()),
    "okddip": (("kl", "leader_kl"), ()), "mcl": ((), ("contrast",)), "mcl-okd": (("kl",), ("contrast",)),
    "rkd-d": ((), ("distance",)), "rkd-da": ((), ("distance", "angle")), "metric-learning": ((), ("metric",)),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kl_source", ["episode", "aux", "none"])
@pytest.mark.parametrize("joint_forward", ["true", "false"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_one_step_of_everything(method: str, kl_source: str, joint_forward: str, metric: str) -> None:
    extra = {"objective.num_negatives": 5} if method.startswith("mcl") else {}
    t = task(method=method, peers=3, kl_source=kl_source, joint_forward=joint_forward, metric=metric, **extra)
    if t.objective.needs_teacher:
        t.objective.set_teacher(torch.randn(48, 7))
    if method in ("one", "okddip") and kl_source == "episode":
        with pytest.raises(UserError, match="kl_source=aux"):
            t.step(3)
        return
    terms, figures = t.step(3)
    of_logits, of_features = TERMS[method]
    expected = {"ce", "total", *of_features}
    expected |= set(of_logits) if kl_source == "episode" else set()
    expected |= {"aux_ce", *(f"aux_{name}" for name in of_logits)} if kl_source == "aux" else set()
    assert set(terms) == expected
    assert list(figures) == ["peer0", "peer1", "peer2"]
    weight = 0.5 if method == "cl-ilr" and kl_source == "episode" else 1
    torch.testing.assert_close(weight * sum(figures.values()), terms["ce"].detach())
    terms["total"].backward()
    missing = [name for name, p in t.modules().named_parameters() if p.grad is None]
    assert kl_source == "none" or missing == []
    assert not [name for name in missing if name.startswith("peers.")]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("baseline", (1, "episode", "last-two")), ("rkd-da", (1, "episode", "last-two")),
        ("mcl-okd", (4, "episode", "last-two")), ("dml", (4, "aux", "last-two")), ("okddip", (4, "aux", "last-two")),
        ("cl-ilr", (4, "aux", "paper-code")),
    ],
)  # fmt: skip
def test_a_method_brings_its_own_defaults_and_the_user_prevails(method: str, expected: tuple[int, str, str]) -> None:
    config = resolve(None, {"method": method})
    assert (config.peers, config.kl_source, config.share) == expected
    config = resolve(None, {"method": method, "peers": 3}, ["kl_source=none", "share=none"])
    assert (config.peers, config.kl_source, config.share) == (3, "none", "none")


def test_the_class_loss_is_the_obvious_one() -> None:
    t = task(method="baseline", peers=1)
    terms, _ = t.step(0)
    episode = t.sampler.sample(1)
    both = torch.cat([episode.support.flatten(), episode.query.flatten()])
    images = (t.train.images[both].float() / 255 - t.mean.view(1, -1, 1, 1)) / t.std.view(1, -1, 1, 1)
    f = t.peers.peer(0).train()(images)
    centres = torch.stack([f[:6].view(3, 2, -1)[k].mean(0) for k in range(3)])
    logits = torch.stack([-((q - centres) ** 2).sum(1) for q in f[6:]])
    expected = nn.functional.cross_entropy(logits, torch.arange(3).repeat_interleave(3))
    torch.testing.assert_close(terms["total"], expected, rtol=1e-3, atol=1e-4)


def test_the_auxiliary_loss_has_its_weight_and_leaves_the_contrast_alone() -> None:
    one, half = (task(kl_source="aux", aux_weight=weight).step(0)[0] for weight in (1.0, 0.5))
    for name, value in one.items():
        factor = 0.5 if name.startswith("aux_") else 1
        if name != "total":
            torch.testing.assert_close(half[name], factor * value)


def test_a_step_is_a_function_of_seed_and_number() -> None:
    def total(seed: int, number: int) -> Tensor:
        return task(seed=seed).step(number)[0]["total"].detach()

    assert torch.equal(total(0, 4), total(0, 4))
    assert not torch.equal(total(0, 4), total(0, 5))
    assert not torch.equal(total(0, 4), total(1, 4))


def test_building_a_task_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    task().step(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_episodes_are_fixed_and_classes_are_those_of_validation() -> None:
    t = task()
    first, second = t.validate(), t.validate()
    assert all(torch.equal(first[name].accuracies, second[name].accuracies) for name in first)
    assert t.val_episodes.digest == task(lr=0.5).val_episodes.digest
    t.modules().train()
    t.validate()
    assert t.peers.training


def test_bn_init_uniform() -> None:
    gains = [m.weight for m in task(bn_init="uniform").peers.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool(((g >= 0) & (g <= 1)).all()) and float(g.detach().std()) > 0.1 for g in gains)


def test_channel_statistics() -> None:
    images = store("train").images
    mean, std = channel_statistics(store("train"))
    torch.testing.assert_close(mean, (images.double() / 255).mean((0, 2, 3)).float())
    torch.testing.assert_close(std, (images.double() / 255).transpose(0, 1).flatten(1).std(1, correction=0).float())


@pytest.mark.parametrize(
    ("schedule", "step", "lr"),
    [("cosine", 0, 0.002), ("cosine", 5, 0.001), ("constant", 9, 0.002), ("halving", 3, 0.002), ("halving", 8, 0.0005)],
)
def test_learning_rate(schedule: str, step: int, lr: float) -> None:
    config: Config = resolve(None, {}, [f"schedule={schedule}", "episodes=10", "halve_every=4"])
    assert learning_rate(config, step) == pytest.approx(lr)


def test_training_code_cannot_open_the_test_split() -> None:
    source = open_source("glyphs")
    with training_only():
        source.load("val", ImageOptions())
        with pytest.raises(ForbiddenSplitError):
            source.load("test", ImageOptions())
    assert len(source.load("test", ImageOptions())) == 2560


def test_peers_learn_to_tell_new_characters_apart() -> None:
    """Forty episodes on the embedded glyphs: far above chance (20 %) and above an untrained network (26 %)."""
    source, options = open_source("glyphs"), ImageOptions()
    config = resolve(None, {}, ["episodes=40", "peers=2", "val_episodes=200"])
    t = EpisodicTask(config, source.load("train", options), source.load("val", options), torch.device("cpu"))
    before = t.validate()
    optimizer = torch.optim.Adam(t.modules().parameters(), lr=config.lr)
    for number in range(40):
        terms, _ = t.step(number)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    after = t.validate()
    for name, result in after.items():
        gain = result.minus(before[name])
        assert gain.mean > gain.ci95
        assert result.mean > 0.33
