"""The classification task: its schedule, its batches, what objectives and teachers are shown, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from fewshot_mcl.config import ClassifyConfig, resolve
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import BACKBONES, Backbone, PeerOutputs, create_backbone, peers
from fewshot_mcl.objectives import METHODS
from fewshot_mcl.training import session, supervised
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.supervised import IMAGENET, SupervisedTask, augmentation, learning_rate

SCHEDULES = json.loads((Path(__file__).parents[1] / "golden" / "open.json").read_text())["cases"]["schedules"]
SMALL = {"peers": 2, "batch": 4, "epochs": 3}
CONTRAST = {"objective.num_negatives": 5, "objective.embedding_dim": 8}
RKD = [method for method in METHODS if method.startswith("rkd")]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(**options: Any) -> ClassifyConfig:
    extra = CONTRAST if str(options.get("method", "mcl-okd")).startswith("mcl") else {}
    values = SMALL | extra | options
    config = resolve(None, {}, [f"{name}={value}" for name, value in values.items()], task="classify")
    assert isinstance(config, ClassifyConfig)
    return config


def store_of(classes: int = 3, each: int = 5, side: int = 16, channels: int = 1, source: str = "birds") -> ImageStore:
    """Image i has i in its middle, so that it can be told after any augmentation but scaling; the rest is random."""
    total, half = classes * each, side // 2
    images = torch.randint(
        256, (total, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images[:, :, half - 4 : half + 4, half - 4 : half + 4] = torch.arange(total, dtype=torch.uint8)[:, None, None, None]
    labels, names = torch.arange(classes).repeat_interleave(each), [f"c{i}" for i in range(classes)]
    return ImageStore(images, labels, names, source=source)


def task_of(store: ImageStore | None = None, val: ImageStore | None = None, **options: Any) -> SupervisedTask:
    return SupervisedTask(config_of(**options), store or store_of(), val, torch.device("cpu"))


@dataclass
class Seen:
    """What the peers and the objective are shown in a step."""

    images: Tensor  # normalised
    out: PeerOutputs
    targets: Tensor
    indices: Tensor
    epoch: float


def watch(task: SupervisedTask) -> list[Seen]:
    """A list that grows with every step."""
    seen: list[Seen] = []
    images: list[Tensor] = []
    task.peers.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0].clone()))

    def record(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(Seen(images[-1], *inputs, named["indices"].clone(), named["epoch"]))

    task.objective.register_forward_pre_hook(record, with_kwargs=True)
    return seen


def pixels(task: SupervisedTask, seen: Seen) -> Tensor:
    """What the peers were shown, as pixels from 0 to 255."""
    return 255 * (seen.images * task.std[:, None, None] + task.mean[:, None, None])


def shown(task: SupervisedTask, seen: Seen) -> list[int]:
    """Which images of the store those are, from the number in their middle."""
    middle = task.size // 2
    return pixels(task, seen)[:, 0, middle, middle].round().int().tolist()


def epoch_of(task: SupervisedTask, seen: list[Seen], epoch: int) -> list[Seen]:
    start = len(seen)
    for batch in range(task.batches):
        task.step(epoch * task.batches + batch)
    return seen[start:]


# The schedule


@pytest.mark.parametrize("case", ["cifar_baseline", "cifar_mcl_okd", "imagenet_baseline", "imagenet_mcl_okd"])
def test_learning_rates_are_those_of_the_published_code(case: str) -> None:
    golden = SCHEDULES[case]
    periods = [100, 200] if case.startswith("imagenet") else []
    assert golden["period"] == (periods or [300])[0]
    config = config_of(lr=golden["peak_lr"], epochs=golden["epochs_default"], periods=periods)
    for epoch, expected in golden["lr_at"].items():
        assert learning_rate(config, int(epoch)) == pytest.approx(expected, rel=1e-9)


def test_the_rate_falls_once_in_every_period_and_is_set_once_an_epoch() -> None:
    task = task_of(lr=0.2, epochs=7, periods=[3, 4], val_share=0)
    assert task.batches == 4
    rates = [task.learning_rate(step) for step in range(7 * 4)]
    expected = [0.1 * (1 + math.cos(math.pi * e / n)) for n in (3, 4) for e in range(n)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(4)])
    assert task.learning_rate(7 * 4) == pytest.approx(0)


def test_the_optimizer_is_the_one_of_the_configuration() -> None:
    for momentum, nesterov in ((0.9, True), (0.9, False), (0, True)):  # of no momentum there is no Nesterov's
        task = task_of(lr=0.3, momentum=momentum, nesterov=str(nesterov).lower(), weight_decay=0.01)
        optimizer = task.optimizer(task.modules().parameters())
        assert isinstance(optimizer, torch.optim.SGD)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, momentum, 0.01)
        assert group["nesterov"] is (nesterov and momentum > 0)


def test_the_plan_counts_epochs_in_steps() -> None:
    plan = task_of(epochs=5, val_every=2, save_every=7, log_every=3, val_share=0).plan
    assert (plan.steps, plan.val_every, plan.save_every, plan.log_every, plan.keep_all) == (20, 8, 7, 3, False)
    assert task_of(report="best-on-test").plan.keep_all
    assert [task_of(report=report).ships for report in ("last", "validation", "best-on-test")] == [
        "last",
        "best",
        "last",
    ]


# Batches


@given(st.integers(2, 4), st.integers(2, 6), st.integers(2, 9), st.sampled_from([0, 0.3]), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_every_epoch_shows_each_training_image_once(
    classes: int, each: int, batch: int, share: float, seed: int
) -> None:
    held_out = max(1, round(share * each)) if share else 0
    total = classes * (each - held_out)
    if total % batch == 1:
        batch = total
    task = task_of(store_of(classes, each), method="baseline", batch=batch, val_share=share, seed=seed, augment="none")
    seen = watch(task)
    assert task.batches == math.ceil(total / batch)
    epochs = [epoch_of(task, seen, epoch) for epoch in (0, 1, 2)]
    for number, steps in enumerate(epochs):
        sizes = [batch] * (total // batch) + [total % batch] * bool(total % batch)
        assert [len(step.indices) for step in steps] == sizes
        assert sorted(i for step in steps for i in shown(task, step)) == task.rows.tolist()
        assert {step.epoch for step in steps} == {number}
    if total >= 8:  # of which two orders hardly ever agree
        orders = [tuple(i for step in steps for i in shown(task, step)) for steps in epochs]
        assert len(set(orders)) == 3


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip"])
def test_the_objective_sees_rows_as_indices_and_the_labels_of_the_images(augment: str) -> None:
    store = store_of(4, 6)
    task = task_of(store, val_share=0.3, images_per_class=5, augment=augment)
    seen = watch(task)
    assert len(task.rows) == 4 * 3
    assert task.rows.tolist() != list(range(12))
    for step in epoch_of(task, seen, 0):
        images = shown(task, step)
        assert step.targets.tolist() == store.labels[images].tolist()
        assert task.rows[step.indices].tolist() == images
        assert step.out.features.shape[:2] == (2, len(images))


def test_the_bank_has_a_row_for_each_training_image_and_a_step_moves_those_of_its_batch() -> None:
    task = task_of(store_of(4, 6), val_share=0.3)
    contrast = task.objective.get_submodule("contrast")
    banks, labels = contrast.get_buffer("banks"), contrast.get_buffer("labels")
    assert banks.shape[:2] == (2, len(task.rows))
    assert torch.equal(labels, task.train.labels[task.rows])
    seen = watch(task)
    for number in range(3):
        before = banks.clone()
        task.step(number)
        moved = (banks != before).any(-1)
        for peer in moved:
            assert sorted(seen[-1].indices.tolist()) == peer.nonzero().flatten().tolist()


def test_images_held_out_are_never_trained_on_and_they_alone_are_validated_on() -> None:
    store = store_of(4, 8)
    task = task_of(store, val_share=0.25, images_per_class=6, method="baseline", augment="crop")
    seen = watch(task)
    trained = {i for epoch in range(3) for step in epoch_of(task, seen, epoch) for i in shown(task, step)}
    assert task.val is not None
    validated = task.val.rows.tolist()
    assert (len(trained), len(validated)) == (4 * 4, 4 * 2)
    assert not trained & set(validated)
    assert task.val.store is store
    assert all(result.episodes == 8 for result in task.validate().values())


def test_a_validation_split_takes_the_place_of_held_out_images() -> None:
    val = store_of(3, 3)
    task = task_of(store_of(), val, val_share=0.5)
    assert task.rows.tolist() == list(range(15))
    assert task.val is not None
    assert task.val.store is val
    assert task.val.rows.tolist() == list(range(9))


def test_statistics_are_of_the_images_that_are_trained_on() -> None:
    store = store_of(3, 8, channels=3)
    task = task_of(store, val_share=0.4)
    trained = store.images[task.rows].double() / 255
    torch.testing.assert_close(task.mean, trained.mean((0, 2, 3)).float())
    torch.testing.assert_close(task.std, trained.transpose(0, 1).flatten(1).std(1, correction=0).float())
    assert not torch.allclose(task.mean, (store.images.double() / 255).mean((0, 2, 3)).float())


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_images_of_imagenet_have_its_statistics(channels: int) -> None:
    task = task_of(store_of(side=24, channels=channels, source="imagenet"), augment="none")
    assert torch.equal(task.mean, torch.tensor(IMAGENET[0])) == (channels == 3)
    assert torch.equal(task.std, torch.tensor(IMAGENET[1])) == (channels == 3)


# Steps


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip", "resized-crop"])
def test_a_step_is_a_function_of_seed_and_number(augment: str) -> None:
    def step(seed: int, number: int, *before: int) -> tuple[Tensor, Tensor]:
        """The total, and the images, after other steps that change no parameter."""
        task = task_of(store_of(side=24), seed=seed, augment=augment, method="dml")
        seen = watch(task)
        for other in before:
            task.step(other)
        return task.step(number)[0]["total"].detach(), seen[-1].images

    total, images = step(0, 4)
    for before in ((), (0, 1, 2, 3), (9, 4, 5)):
        again = step(0, 4, *before)
        assert torch.equal(again[0], total)
        assert torch.equal(again[1], images)
    for other in (step(0, 5), step(0, 0), step(1, 4)):
        assert not torch.equal(other[0], total)


@pytest.mark.parametrize("augment", ["crop", "crop-flip", "resized-crop"])
def test_every_batch_of_every_epoch_is_augmented_anew(augment: str) -> None:
    """All images are equal, so that batches differ by their augmentation alone."""
    store = store_of(each=4, side=32)
    store.images[:] = store.images[0].clone()
    task = task_of(store, augment=augment, method="baseline", batch=4, val_share=0)
    seen = watch(task)
    for epoch in range(3):
        epoch_of(task, seen, epoch)
    batches = [step.images for step in seen]
    assert len(batches) == 9
    assert not any(torch.equal(one, other) for i, one in enumerate(batches) for other in batches[:i])
    assert all(len(batch.flatten(1).unique(dim=0)) > 1 for batch in batches)  # nor is one shift that of all its images


def test_building_and_stepping_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    task_of().step(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_class_loss_is_the_obvious_one() -> None:
    task = task_of(method="baseline", peers=2, augment="none", val_share=0)
    seen = watch(task)
    terms, figures = task.step(2)
    store, rows = task.train, task.rows[seen[0].indices]
    images = (store.images[rows].float() / 255 - task.mean.view(-1, 1, 1)) / task.std.view(-1, 1, 1)
    losses = [nn.functional.cross_entropy(task.peers.peer(m).train()(images), store.labels[rows]) for m in (0, 1)]
    torch.testing.assert_close(terms["total"], sum(losses), rtol=1e-4, atol=1e-5)
    for m, loss in enumerate(losses):
        torch.testing.assert_close(figures[f"peer{m}"], loss.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["mcl-okd", "one", "okddip", "rkd-da"])
def test_bfloat16_is_for_the_networks_alone(method: str) -> None:
    """Losses agree loosely; what the objective, and in it the contrast's heads, work on is float32, outside of autocast."""
    totals = {}
    for precision in ("float32", "bfloat16"):
        task = task_of(store_of(each=8), method=method, precision=precision, peers=3, batch=8, augment="crop")
        if task.objective.needs_teacher:
            table = torch.randn(len(task.rows), 5, generator=torch.Generator().manual_seed(0))
            task.objective.set_teacher(table)  # type: ignore[operator]
        kinds: dict[str, set[Any]] = {"network": set(), "objective": set(), "autocast": set()}
        for module in task.peers.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, __, out, kinds=kinds: kinds["network"].add(out.dtype))
        for module in task.objective.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(
                    lambda _, inputs, out, kinds=kinds: kinds["objective"].update({inputs[0].dtype, out.dtype})
                )
        task.objective.register_forward_pre_hook(
            lambda _, __, kinds=kinds: kinds["autocast"].add(torch.is_autocast_enabled("cpu"))
        )
        seen = watch(task)
        terms, figures = task.step(1)
        out = seen[0].out
        assert out.logits is not None
        assert out.stem is not None
        assert {out.features.dtype, out.logits.dtype, out.stem.dtype} == {torch.float32}
        assert kinds["network"] == {getattr(torch, precision)}
        assert kinds["objective"] <= {torch.float32}
        assert method == "rkd-da" or kinds["objective"]
        assert kinds["autocast"] == {False}
        assert all(value.dtype == torch.float32 and bool(value.isfinite()) for value in (terms | figures).values())
        terms["total"].backward()
        gradients = [p.grad for p in task.modules().parameters() if p.grad is not None]
        assert gradients
        assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)
        totals[precision] = terms["total"].detach()
    assert not torch.equal(totals["float32"], totals["bfloat16"])
    torch.testing.assert_close(totals["float32"], totals["bfloat16"], rtol=0.05, atol=0)


def test_validation_is_in_float32_and_moves_nothing_of_network_or_objective() -> None:
    task = task_of(method="one", peers=3, precision="bfloat16")
    task.modules().train()
    task.step(0)
    kinds = set()
    task.peers.register_forward_hook(lambda _, __, out: kinds.add(out.logits.dtype))
    before = {name: value.clone() for name, value in task.modules().state_dict().items()}
    first, second = task.validate(), task.validate()
    assert list(first) == ["peer 0", "peer 1", "peer 2", "ensemble"]
    assert all(torch.equal(first[name].accuracies, second[name].accuracies) for name in first)
    assert kinds == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in task.modules().state_dict().items())
    assert all(module.training for module in task.modules().modules())
    task.objective.eval()
    task.validate()
    assert not task.objective.training


def test_without_validation_images_there_is_nothing_to_say() -> None:
    task = task_of(val_share=0)
    assert (task.val, task.validate(), task.closing(), task.protocol()) == (None, {}, {}, "")


def test_one_network_has_no_ensemble() -> None:
    assert list(task_of(method="baseline", peers=1).validate()) == ["peer 0"]


def test_peers_learn_to_tell_images_apart() -> None:
    """Thirty steps on twelve images of three classes, one brightness each; chance is a third."""
    labels = torch.arange(3).repeat_interleave(8)
    noise = torch.randint(40, (24, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    store = ImageStore((noise + 90 * labels[:, None, None, None]).byte(), labels, ["a", "b", "c"])
    task = task_of(store, val_share=0.5, epochs=10, lr=0.02)
    task.modules().train()
    optimizer = task.optimizer(task.modules().parameters())
    for number in range(task.plan.steps):
        optimizer.zero_grad()
        task.step(number)[0]["total"].backward()
        optimizer.step()
    assert all(result.mean > 0.8 for result in task.validate().values())


# Augmentation


@pytest.mark.parametrize(
    ("source", "chosen"),
    [
        ("glyphs", "crop"), ("imagenet", "resized-crop"), ("cifar100", "crop-flip"), ("fashion-mnist", "crop-flip"),
        ("mini-imagenet", "crop-flip"), ("my pictures", "crop-flip"), ("", "crop-flip"),
    ],
)  # fmt: skip
def test_what_auto_means_goes_by_the_source(source: str, chosen: str) -> None:
    store = store_of(source=source, side=24)
    assert augmentation(config_of(), store) == task_of(store).augment == chosen
    for asked in ("none", "crop", "crop-flip", "resized-crop"):
        assert augmentation(config_of(augment=asked), store) == asked


@pytest.mark.parametrize(("augment", "size"), [("none", 32), ("crop", 32), ("crop-flip", 32), ("resized-crop", 28)])
def test_crops_that_are_resized_are_smaller_than_the_stored_images(augment: str, size: int) -> None:
    task = task_of(store_of(side=32), augment=augment)
    seen = watch(task)
    task.step(0)
    assert task.size == size
    assert seen[0].images.shape[2:] == (size, size)
    assert task.val is not None
    assert task.val.size == size
    task.validate()


def test_shifts_go_up_to_an_eighth_and_only_crop_flip_mirrors() -> None:
    """Of images whose pixels are the numbers of their columns, the two in the middle tell the shift and the direction."""
    store = store_of(4, 16, side=32)
    store.images[:] = torch.arange(32, dtype=torch.uint8)
    for augment, directions in (("crop", {False}), ("crop-flip", {False, True})):
        task = task_of(store, augment=augment, method="baseline", batch=64, val_share=0)
        seen = watch(task)
        images = torch.cat([pixels(task, epoch_of(task, seen, epoch)[0]) for epoch in range(4)])
        middle = images[:, 0, 16, 15:17].round().int()  # of 32 rows, the one that no shift by four makes zero
        mirrored = middle[:, 0] > middle[:, 1]
        moves = middle[:, 0] - 15 - mirrored.int()
        assert set(moves.tolist()) == set(range(-4, 5))
        assert set(mirrored.tolist()) == directions


# Teachers


class Teacher(nn.Module):
    """Stands in for a trained network, and keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return images.flatten(1)[:, ::7]


@pytest.mark.parametrize("method", RKD)
@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop"])
def test_a_teacher_sees_each_batch_as_it_is_augmented_with_statistics_of_its_own(
    method: str, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, mean, std = Teacher(), torch.tensor([0.3, 0.2, 0.1]), torch.tensor([0.5, 0.6, 0.7])
    monkeypatch.setattr(supervised, "load_teacher", lambda config, store, size: (teacher, mean, std))
    task = task_of(store_of(side=32, channels=3), method=method, augment=augment, peers=1)
    task.use_teacher()
    seen = watch(task)
    stored = {int(i): image.float() for i, image in enumerate(task.train.images)}
    for number in range(5):  # more than an epoch
        terms, _ = task.step(number)
        assert bool(terms["total"].isfinite())
        assert {"distance"} <= set(terms)
        shown_to_teacher = 255 * (teacher.seen[-1] * std[:, None, None] + mean[:, None, None])
        student = pixels(task, seen[-1])
        torch.testing.assert_close(shown_to_teacher, student, rtol=0, atol=1e-2)
        originals = [stored[int(row)] for row in task.rows[seen[-1].indices]]
        assert any(
            image.shape != each.shape or not torch.allclose(image, each) for image, each in zip(student, originals)
        )
    assert len(teacher.seen) == len(seen) == 5


def test_a_teacher_learns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 6))
    monkeypatch.setattr(supervised, "load_teacher", lambda *_: (network, torch.zeros(1), torch.ones(1)))
    task = task_of(method="rkd-da")
    task.use_teacher()
    task.step(0)[0]["total"].backward()
    assert all(p.grad is None for p in network.parameters())


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on colour images of 16 pixels."""
    root = tmp_path_factory.mktemp("teacher")
    for number in range(24):
        path = root / "data" / ("train", "test")[number % 2] / f"c{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
    config = config_of(data=root / "data", method="baseline", peers=1, epochs=1, image_size=16, device="cpu", batch=3)
    session.train(config, root / "run", resume=False, console=Console(quiet=True))
    return root / "run"


def test_a_teacher_of_other_images_is_refused_in_one_sentence(teacher_run: Path) -> None:
    options = {"method": "rkd-d", "teacher": teacher_run, "peers": 1}
    fitting = task_of(store_of(channels=3), **options)
    fitting.use_teacher()
    assert bool(fitting.step(0)[0]["distance"].isfinite())
    for store, shape in (
        (store_of(side=24, channels=3), "24x24x3"), (store_of(channels=1), "16x16x1"),
        (store_of(side=16, channels=3, source="imagenet"), "14x14x3"),
    ):  # fmt: skip
        backbone = "resnet32" if shape.startswith("14") else "conv4"
        task = task_of(store, backbone=backbone, **options)
        with pytest.raises(UserError) as error:
            task.use_teacher()
        assert f"takes images of 16x16x3, not {shape}: use --image-size 16 --color rgb" in str(error.value)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith(".")


def test_a_teacher_that_is_not_named_or_knows_other_classes_is_refused(teacher_run: Path) -> None:
    with pytest.raises(UserError, match="--teacher RUN"):
        task_of(method="rkd-d").use_teacher()
    with pytest.raises(UserError, match="1 classes that are not training classes here"):
        task_of(store_of(2, channels=3), method="rkd-d", teacher=teacher_run).use_teacher()


# What is refused


@pytest.mark.parametrize(("each", "batch"), [(7, 4), (5, 2), (3, 8), (7, 10), (7, 20)])
def test_a_last_batch_of_one_image_is_refused_with_a_batch_that_works(each: int, batch: int) -> None:
    total = 3 * each
    if total % batch != 1:
        task = task_of(store_of(each=each), batch=batch, val_share=0, method="baseline")
        for number in range(task.batches):
            task.step(number)
        return
    with pytest.raises(UserError, match=f"the last batch of an epoch would hold one of the {total} ") as error:
        task_of(store_of(each=each), batch=batch, val_share=0, method="baseline")
    better = int(str(error.value).rstrip(".").rpartition("--batch ")[2])
    assert better > batch
    task_of(store_of(each=each), batch=better, val_share=0, method="baseline")


@pytest.mark.parametrize("each", [4, 5, 7])
def test_batches_of_one_image_are_refused_with_a_batch_that_works(each: int) -> None:
    with pytest.raises(UserError, match=r"^a batch would hold one of the .*batch norm needs two or more") as error:
        task_of(store_of(each=each), batch=1, val_share=0)
    better = int(str(error.value).rstrip(".").rpartition("--batch ")[2])
    task_of(store_of(each=each), batch=better, val_share=0)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_one_image_in_all_is_refused_whatever_the_batch(batch: int) -> None:
    with pytest.raises(UserError, match=r"^there is one training image, .*: add images\.$"):
        task_of(store_of(1, 1), method="baseline", batch=batch, val_share=0)


def test_what_counts_is_how_many_images_are_left_to_train_on() -> None:
    store = store_of(3, 5)  # 15, of which 12 are left
    task_of(store, batch=11, val_share=0)
    with pytest.raises(UserError, match="the last batch of an epoch would hold one of the 12"):
        task_of(store, batch=11, val_share=0.2)


def test_choosing_by_validation_needs_validation_images() -> None:
    with pytest.raises(UserError, match=r"chooses by validation images, and there are none: use --set val_share=0\.1"):
        task_of(report="validation", val_share=0)
    assert task_of(report="validation", val_share=0.2).val
    assert task_of(val=store_of(), report="validation", val_share=0).val


# The product: every method on every backbone, in both tasks


def both_tasks(method: str, backbone: str) -> Iterator[SupervisedTask | EpisodicTask]:
    """Three peers each, on colour images of 32 pixels of three classes."""
    store, device = store_of(3, 2, side=32, channels=3), torch.device("cpu")
    shared = {"method": method, "backbone": backbone, "peers": 3}
    yield task_of(store, batch=4, val_share=0, **shared)
    extra = {name: value for name, value in CONTRAST.items() if method.startswith("mcl")}
    episode = {"way": 3, "shot": 1, "query": 1, "val_way": 2, "val_shot": 1, "val_query": 1, "val_episodes": 2}
    config = resolve(None, {}, [f"{name}={value}" for name, value in (shared | extra | episode).items()])
    yield EpisodicTask(config, store, store, device)  # type: ignore[arg-type]


@lru_cache(maxsize=6)
def initialised(name: str, classes: int | None, options: frozenset[tuple[str, Any]], number: int) -> Backbone:
    """Network `number` of its kind."""
    return create_backbone(name, classes, **dict(options))


@pytest.fixture
def _networks_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task has the same three networks of a kind, without gradients: drawing weights would take most of the time."""
    numbers = count()

    def lent(name: str, num_classes: int | None = None, **options: Any) -> Backbone:
        network = initialised(name, num_classes, frozenset(options.items()), next(numbers) % 3)
        network.zero_grad(set_to_none=True)
        return network

    monkeypatch.setattr(peers, "create_backbone", lent)


@pytest.mark.usefixtures("_networks_in_turn")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", BACKBONES)  # one after the other, so that few networks are kept
def test_every_method_learns_on_every_backbone_in_both_tasks(method: str, backbone: str) -> None:
    for task in both_tasks(method, backbone):
        if method in RKD:
            task.objective.set_teacher(torch.eye(6))  # type: ignore[operator]
        terms, figures = task.step(0)
        assert list(figures) == ["peer0", "peer1", "peer2"]
        assert all(bool(value.isfinite()) for value in (terms | figures).values())
        assert not any(parameter.grad is not None for parameter in task.modules().parameters())
        terms["total"].backward()
        norms = {}
        for name, parameter in task.modules().named_parameters():
            assert parameter.grad is not None, name
            norms[parameter] = float(parameter.grad.norm())
            assert math.isfinite(norms[parameter]), name
        for number in range(3):
            path = task.peers.peer(number)
            for part in (*path.stages, *filter(None, [path.classifier])):
                assert any(norms[parameter] for parameter in part.parameters()), (number, part)


@pytest.mark.parametrize(("backbone", "least"), [("conv4", 16), ("resnet12", 16), ("vgg16", 32)])
def test_images_too_small_for_a_backbone_are_refused_in_a_sentence_in_both_tasks(backbone: str, least: int) -> None:
    store = store_of(3, 10, side=least - 1)
    few_shot = resolve(
        None, {"backbone": backbone, "method": "baseline"}, ["way=2", "query=2", "val_way=2", "val_query=2"]
    )
    for build in (
        lambda: task_of(store, backbone=backbone, method="baseline"),
        lambda: EpisodicTask(few_shot, store, store, torch.device("cpu")),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=rf"at least {least} pixels wide, not {least - 1}\.$"):
            build()


@pytest.mark.parametrize(
    "method", [method for method in METHODS if method not in ("baseline", "metric-learning", *RKD)]
)
def test_too_few_peers_for_a_method_are_refused_in_a_sentence(method: str) -> None:
    least = 3 if method in ("cl-ilr", "okddip") else 2
    task_of(method=method, peers=least)
    with pytest.raises(UserError, match=rf"at least {least} peers, not {least - 1}: use --peers {least} or more"):
        task_of(method=method, peers=least - 1)


@pytest.mark.parametrize("method", ["one", "okddip"])
def test_methods_that_weigh_images_by_their_features_refuse_logits_of_other_images_in_a_sentence(method: str) -> None:
    options = ["way=2", "shot=1", "query=1", "val_way=2", "val_query=1", "val_episodes=2", "kl_source=episode"]
    few_shot = resolve(None, {"method": method, "peers": 3}, options)
    task = EpisodicTask(few_shot, store_of(), store_of(), torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"on episodes use --set kl_source=aux\.$"):
        task.step(0)
