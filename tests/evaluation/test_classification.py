"""Errors of classifiers on images: equal to one image at a time, independent of batching, always in evaluation mode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation import classification
from fewshot_mcl.evaluation.classification import Classified, Images, classify_images
from fewshot_mcl.evaluation.fewshot import channel_statistics
from fewshot_mcl.networks import PeerNetwork, PeerOutputs

SIDE = 20  # of the stored images


def store_of(classes: int = 7, each: int = 11, channels: int = 3) -> ImageStore:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (classes * each, channels, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return ImageStore(images, torch.arange(classes).repeat_interleave(each), [str(i) for i in range(classes)])


def images_of(store: ImageStore, rows: Tensor | None = None, size: int = 16) -> Images:
    return Images(store, torch.arange(len(store)) if rows is None else rows, size, *channel_statistics(store))


def network(peers: int = 3, classes: int = 7, channels: int = 3, image_size: int = 16) -> PeerNetwork:
    """Peers with statistics of their own, so that evaluation mode is another than training mode."""
    torch.manual_seed(1)
    net = PeerNetwork("conv4", peers, classes, in_channels=channels, image_size=image_size)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, channels, image_size, image_size) * 2 + 0.3)
    return net


def mean(out: PeerOutputs) -> Tensor:
    assert out.logits is not None
    return out.logits.mean(0)


def first_two(out: PeerOutputs) -> Tensor:
    assert out.logits is not None
    return out.logits[:2].sum(0)


class OneByOne:
    """The obvious way: one image, one network, Python."""

    def __init__(self, net: PeerNetwork, images: Images) -> None:
        self.labels = images.store.labels[images.rows].tolist()
        self.logits: dict[str, list[list[float]]] = {}
        cut = (SIDE - images.size) // 2
        window = slice(cut, cut + images.size)
        for row in images.rows.tolist():
            pixels = images.store.images[row].double()[:, window, window] / 255
            pixels = (pixels - images.mean[:, None, None].double()) / images.std[:, None, None].double()
            with torch.no_grad():
                each = torch.stack([net.peer(m).eval()(pixels.float()[None])[0] for m in range(net.num_peers)])
            named = {f"peer {m}": logits for m, logits in enumerate(each)}
            if net.num_peers > 1:
                named |= {"ensemble": each.mean(0), "pair": each[:2].sum(0)}
            for name, logits in named.items():
                self.logits.setdefault(name, []).append(logits.tolist())

    def ranks(self, name: str) -> list[list[int]]:
        """Classes of each image, the best first."""
        return [sorted(range(len(values)), key=lambda c: -values[c]) for values in self.logits[name]]


@pytest.mark.parametrize(("peers", "classes", "channels", "size"), [(3, 7, 3, 16), (1, 6, 1, 17), (2, 3, 3, 20)])
def test_equals_one_image_at_a_time(peers: int, classes: int, channels: int, size: int) -> None:
    store = store_of(classes, 11, channels)
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(2))[:30]  # some, in no order
    net = network(peers, classes, channels, size)
    images = images_of(store, rows, size)
    found = classify_images(net, {"ensemble": mean, "pair": first_two}, images)
    obvious = OneByOne(net, images)
    assert list(found) == list(obvious.logits)
    for name, each in found.items():
        ranks, labels = obvious.ranks(name), obvious.labels
        assert each.labels.tolist() == labels
        assert each.predictions.tolist() == [rank[0] for rank in ranks]
        assert each.in_top5.tolist() == [label in rank[:5] for label, rank in zip(labels, ranks)]
        correct = sum(rank[0] == label for label, rank in zip(labels, ranks))
        assert each.top1.mean == pytest.approx(correct / 30)
        assert each.top5.mean == pytest.approx(sum(label in rank[:5] for label, rank in zip(labels, ranks)) / 30)
        counts = [[0] * classes for _ in range(classes)]
        for label, rank in zip(labels, ranks):
            counts[label][rank[0]] += 1
        assert each.confusion(classes).tolist() == counts


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_of_five_classes_or_fewer_every_label_is_among_the_first_five(classes: int) -> None:
    each = classify_images(network(1, classes), {}, images_of(store_of(classes)))["peer 0"]
    assert each.top5.mean == 1
    assert each.top1.mean < 1


def test_the_confusion_has_a_row_and_a_column_for_classes_that_never_occur() -> None:
    each = Classified(torch.tensor([0, 0, 2]), torch.tensor([0, 2, 0]), torch.ones(3, dtype=torch.bool))
    assert each.confusion(4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_batches_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = network(), images_of(store_of())
    whole = classify_images(net, {"ensemble": mean}, images)
    for batch in (1, 7, 76, 1000):
        monkeypatch.setattr(classification, "batch_for", lambda device, batch=batch: batch)
        other = classify_images(net, {"ensemble": mean}, images)
        assert list(other) == list(whole)
        for name, each in whole.items():
            for field in ("labels", "predictions", "in_top5"):
                assert torch.equal(getattr(each, field), getattr(other[name], field))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_is_used_nothing_moves_and_the_mode_is_kept(training: bool) -> None:
    net, images = network().train(training), images_of(store_of())
    modes: list[bool] = []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    classify_images(net, {"ensemble": mean}, images)
    assert modes
    assert not any(modes)
    assert all(module.training is training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_nothing_is_kept_for_a_backward_pass() -> None:
    seen: list[bool] = []

    def ensemble(out: PeerOutputs) -> Tensor:
        seen.append(mean(out).requires_grad)
        return mean(out)

    classify_images(network(), {"ensemble": ensemble}, images_of(store_of()))
    assert seen
    assert not any(seen)


def test_of_one_network_no_ensemble_is_asked() -> None:
    def never(out: PeerOutputs) -> Tensor:
        raise AssertionError("one network is no ensemble")

    assert list(classify_images(network(1), {"ensemble": never}, images_of(store_of()))) == ["peer 0"]


def test_without_ensembles_there_are_peers_alone() -> None:
    assert list(classify_images(network(2), {}, images_of(store_of()))) == ["peer 0", "peer 1"]


def test_ensembles_see_the_outputs_of_the_peers_and_keep_their_names_and_order() -> None:
    peers, classes = 2, 7
    constant = {name: torch.eye(classes)[number] for number, name in enumerate("zab")}
    ensembles = {name: lambda out, row=row: row.expand(len(out.logits[0]), -1) for name, row in constant.items()}
    found = classify_images(network(peers, classes), ensembles, images_of(store_of(classes)))
    assert list(found) == ["peer 0", "peer 1", "z", "a", "b"]
    for number, name in enumerate("zab"):
        assert found[name].predictions.unique().tolist() == [number]


def test_networks_see_the_middle_of_the_images_alone() -> None:
    store, net = store_of(), network()
    images = images_of(store)
    shapes: list[tuple[int, ...]] = []
    net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    expected = classify_images(net, {}, images)
    assert {shape[1:] for shape in shapes} == {(3, 16, 16)}
    framed = store.images.clone()
    framed[:] = 255
    framed[:, :, 2:18, 2:18] = store.images[:, :, 2:18, 2:18]
    other = Images(ImageStore(framed, store.labels, store.class_names), images.rows, 16, images.mean, images.std)
    for name, each in classify_images(net, {}, other).items():
        assert torch.equal(each.predictions, expected[name].predictions)
    seen = torch.cat([batch for batch, _ in images.batches()]) * images.std[:, None, None] + images.mean[:, None, None]
    torch.testing.assert_close(255 * seen, store.images[:, :, 2:18, 2:18].float(), rtol=0, atol=1e-3)


def test_images_count_their_rows() -> None:
    assert len(images_of(store_of(), torch.tensor([3, 1]))) == 2


def test_intervals_are_over_images() -> None:
    each = classify_images(network(), {}, images_of(store_of()))["peer 1"]
    for result, hits in ((each.top1, each.predictions == each.labels), (each.top5, each.in_top5)):
        values = np.array(hits.tolist(), dtype=float)
        assert 0 < values.mean() < 1
        assert result.episodes == len(values) == 77
        assert result.mean == pytest.approx(values.mean(), rel=1e-12)
        assert result.ci95 == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(77), rel=1e-12)
