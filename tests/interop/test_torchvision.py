"""Against the real torchvision: its data sets become stores, and stores data sets that its tools take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2

from fewshot_mcl.data import EpisodeSampler
from fewshot_mcl.data.folder import FolderSource
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import UserError
from fewshot_mcl.interop.torchvision import StoreDataset, store_of

COUNTS = {"ant": 3, "bee": 2, "cat": 4, "dog": 3, "elk": 3, "fox": 3}


@pytest.fixture
def folder(tmp_path):
    """Class folders of pictures of unequal size."""
    for c, (name, count) in enumerate(COUNTS.items()):
        (tmp_path / "pictures" / "train" / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.random.default_rng((c, k)).integers(0, 256, (20 + k, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / "train" / name / f"{k}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_an_image_folder_is_what_our_own_reader_makes_of_it(folder, resize) -> None:
    store = store_of(ImageFolder(folder / "train"), image_size=16, resize=resize, split="train")
    source = open_source(str(folder), None, ImageOptions())
    assert isinstance(source, FolderSource)
    own = source.load("train", ImageOptions(image_size=16, resize=resize))
    assert (store.class_names, store.split, store.source) == (tuple(COUNTS), "train", "ImageFolder")
    assert store.class_sizes.tolist() == list(COUNTS.values())
    assert torch.equal(store.images, own.images)
    assert store.resize == own.resize
    assert store.fingerprint == own.fingerprint


@pytest.mark.parametrize(
    "transform", [None, v2.PILToTensor(), v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])]
)
def test_fake_data_pixel_by_pixel(transform) -> None:
    dataset = FakeData(20, (3, 12, 12), 4, transform)
    store, plain = store_of(dataset), FakeData(20, (3, 12, 12), 4)
    labels = [int(label) for _, label in plain]
    order = sorted(range(20), key=labels.__getitem__)
    assert store.class_names == tuple(str(label) for label in sorted(set(labels)))
    for row, number in enumerate(order):
        assert store.class_names[store.labels[row]] == str(labels[number])
        assert np.array_equal(store.images[row].permute(1, 2, 0).numpy(), np.asarray(plain[number][0]))


def test_a_subset_without_class_names_has_its_labels_as_names(folder) -> None:
    dataset = ImageFolder(folder / "train")
    store = store_of(Subset(dataset, [0, 1, 10]), image_size=8)
    assert store.class_names == ("0", "3")
    assert store.labels.tolist() == [0, 0, 1]
    EpisodeSampler(store_of(dataset, image_size=8).labels, way=6, shot=1, query=1).sample(2)


def test_grey_where_every_image_is() -> None:
    grey = [(Image.new("L", (9, 9), 10 * i), i % 2) for i in range(4)]
    assert store_of(grey).images[:, 0, 0, 0].tolist() == [0, 20, 10, 30]
    assert store_of(grey, color="rgb").shape == (3, 9, 9)
    assert store_of([*grey, (Image.new("RGB", (9, 9)), 0)]).shape == (3, 9, 9)
    assert store_of([(torch.full((1, 9, 9), 0.2), torch.tensor(3))]).images.unique().tolist() == [51]


def test_a_store_is_a_data_set(folder) -> None:
    store = store_of(ImageFolder(folder / "train"), image_size=8)
    dataset = StoreDataset(store, v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.RandomHorizontalFlip(1.0)]))
    images, labels = next(iter(DataLoader(dataset, batch_size=len(store))))
    assert torch.equal((images * 255).round().to(torch.uint8), store.images.flip(-1))
    assert torch.equal(labels, store.labels)
    assert (dataset.classes, dataset.class_to_idx["cat"]) == (list(COUNTS), 2)
    again = store_of(StoreDataset(store))
    assert again.fingerprint == store.fingerprint


IMAGE = torch.zeros(3, 8, 8)


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {}, "empty"),
        ([(IMAGE, 0.5)], {}, "item 0 has the label 0.5, and an integer"),
        ([(IMAGE, 0), ("a.png", 1)], {}, "item 1 is neither a PIL image nor a tensor"),
        ([(IMAGE - 1, 0)], {}, "leave Normalize out"),
        ([(IMAGE / 0, 0)], {}, "leave Normalize out"),
        ([(IMAGE, 0), (IMAGE[:, 1:], 0)], {}, "item 1 has 8x7 pixels, not one size.*image_size=84"),
        ([(IMAGE, 0)], {"color": "red"}, "color must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(items, options, message) -> None:
    with pytest.raises(UserError, match=message):
        store_of(items, **options)


def test_a_label_without_a_name_is_refused_in_a_sentence(folder) -> None:
    dataset = ImageFolder(folder / "train", target_transform=lambda label: label + 1)
    with pytest.raises(UserError, match="labels go from 1 to 6, but the data set names 6 classes"):
        store_of(dataset, image_size=8)
