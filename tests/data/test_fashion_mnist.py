from __future__ import annotations

import gzip
import struct
import sys
import tracemalloc
import types

import numpy as np
import pytest
from labelled_builders import CLOTHES, IDX, clothes_pixels, fashion, idx, put

from fewshot_mcl.data import fashion_mnist, published, sources
from fewshot_mcl.data.fashion_mnist import find_fashion_mnist
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import UserError

OWN = ImageOptions()
IMAGES, LABELS = IDX["train"]


def holds_the_images(source):
    for split, labels in CLOTHES.items():
        store, order = source.load(split, OWN), np.argsort(labels, kind="stable")
        assert np.array_equal(store.images.numpy(), clothes_pixels(split)[order][:, None])
        assert store.labels.tolist() == sorted(labels)
        assert list(store.ids) == [f"{split}[{row}]" for row in order]
        assert store.class_names == source.class_names(split)
        assert (store.split, store.source, store.resize) == (split, "fashion-mnist", "as stored")


@pytest.mark.parametrize("folder", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_place_and_both_forms_give_the_published_images(tmp_path, folder, zipped):
    fashion(tmp_path / folder, zipped)
    source = find_fashion_mnist(tmp_path)
    assert (source.name, source.splits, source.notes) == ("fashion-mnist", ("train", "test"), ())
    holds_the_images(source)


def test_the_classes_stand_in_the_order_of_their_labels(tmp_path):
    names = find_fashion_mnist(fashion(tmp_path)).class_names("test")
    assert len(names) == 10
    assert (names[0], names[5], names[9]) == ("T-shirt/top", "Sandal", "Ankle boot")


def test_some_files_may_be_gzipped_and_others_not(tmp_path):
    fashion(tmp_path)
    path = tmp_path / f"{IMAGES}.gz"
    (tmp_path / IMAGES).write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    holds_the_images(find_fashion_mnist(tmp_path))


def test_torchvision_reads_the_same_from_the_same_files(tmp_path):
    from torchvision.datasets import FashionMNIST

    fashion(tmp_path / "FashionMNIST" / "raw", zipped=False)
    source = find_fashion_mnist(tmp_path)
    assert list(source.class_names("train")) == FashionMNIST.classes
    for split in ("train", "test"):
        theirs, ours = FashionMNIST(str(tmp_path), train=split == "train"), source.load(split, OWN)
        rows = [int(name[len(split) + 1 : -1]) for name in ours.ids]
        assert sorted(rows) == list(range(len(theirs)))
        assert (theirs.data[rows] == ours.images[:, 0]).all()
        assert (theirs.targets[rows] == ours.labels).all()


@pytest.mark.parametrize("memory_share", [0.5, 0.0])
def test_other_sizes_and_colours_in_memory_or_on_disk(tmp_path, memory_share, monkeypatch):
    shares = []
    kept = published.allocate_images
    monkeypatch.setattr(published, "allocate_images", lambda shape, share: shares.append(share) or kept(shape, share))
    store = find_fashion_mnist(fashion(tmp_path)).load(
        "train", ImageOptions(image_size=14, color="rgb", memory_share=memory_share)
    )
    assert store.shape == (3, 14, 14)
    assert (store.images[:, 0] == store.images[:, 2]).all()
    assert "to 14x14" in store.resize
    assert shares == [memory_share]


def test_opening_reads_no_file_and_training_never_those_of_the_test_split(tmp_path, monkeypatch):
    read, inner = [], fashion_mnist.read_idx
    monkeypatch.setattr(fashion_mnist, "read_idx", lambda path, sides: read.append(path.name) or inner(path, sides))
    with sources.training_only():
        source = find_fashion_mnist(fashion(tmp_path))
        assert read == []
        source.load("train", OWN)
        assert read == [f"{IMAGES}.gz", f"{LABELS}.gz"]
        with pytest.raises(sources.ForbiddenSplitError):
            source.load("test", OWN)
    with pytest.raises(UserError, match="fashion-mnist has no val split"):
        source.load("val", OWN)


@pytest.mark.parametrize("name", [name for split in IDX.values() for name in split])
@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
def test_a_missing_file_is_named(tmp_path, name, folder):
    (fashion(tmp_path / folder) / f"{name}.gz").unlink()
    for download in (False, True):  # nothing is fetched over what is there
        with pytest.raises(UserError, match=rf"lacks {name} \(with or without \.gz\): put it beside the others"):
            find_fashion_mnist(tmp_path, download)


def test_a_complete_folder_goes_before_an_incomplete_one(tmp_path):
    put(tmp_path / IMAGES, b"", zipped=False)
    fashion(tmp_path / "raw")
    holds_the_images(find_fashion_mnist(tmp_path))


def test_nothing_found_says_what_is_expected(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path, tmp_path / "gone", tmp_path / "file"):
        with pytest.raises(UserError, match=rf"no Fashion-MNIST files at .*{IMAGES}.*--set download=true"):
            find_fashion_mnist(root)


def header(*sides, magic=None):
    return (magic or bytes((0, 0, 8, len(sides)))) + struct.pack(f">{len(sides)}I", *sides)


SIX = bytes(6 * 28 * 28)
DAMAGED_IMAGES = {
    "does not begin as an IDX3 file of bytes": header(6, 28, 28, magic=b"\0\0\x0d\x03") + SIX,
    "begin as an IDX3 file": header(6, 784) + SIX,
    "does not begin": b"",
    "does not begin as": header(6, 28, 28)[:-1],
    "its images are 28x27, not 28x28": header(6, 28, 27) + SIX,
    "announces 4704 bytes of values and holds 4703": header(6, 28, 28) + SIX[:-1],
    "announces 4704 bytes of values and holds more": header(6, 28, 28) + SIX + b"\0",
    "announces 4704000000 bytes of values, more than the 1 GiB": header(6_000_000, 28, 28) + SIX,
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("reason", DAMAGED_IMAGES)
def test_images_that_are_not_as_published(tmp_path, reason, zipped):
    put(fashion(tmp_path, zipped) / IMAGES, DAMAGED_IMAGES[reason], zipped)
    with pytest.raises(UserError, match=rf"{IMAGES}\S* is no usable file of Fashion-MNIST: .*{reason}.*Fetch it again"):
        find_fashion_mnist(tmp_path).load("train", OWN)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (idx(np.zeros(5, np.uint8)), rf"{IMAGES} holds 6 images but {LABELS} 5 labels"),
        (idx(np.array([0, 1, 2, 3, 10, 4], np.uint8)), rf"{LABELS} holds a label 10, which is none of 0 to 9"),
        (idx(np.zeros((6, 1), np.uint8)), r"does not begin as an IDX1 file"),
        (idx(np.zeros(6, np.uint8))[:-1], r"announces 6 bytes of values and holds 5"),
    ],
)
def test_labels_that_are_not_as_published(tmp_path, content, reason):
    put(fashion(tmp_path, zipped=False) / LABELS, content, zipped=False)
    with pytest.raises(UserError, match=reason):
        find_fashion_mnist(tmp_path).load("train", OWN)


def test_a_set_without_images(tmp_path):
    fashion(tmp_path)
    put(tmp_path / IMAGES, header(0, 28, 28), zipped=True)
    put(tmp_path / LABELS, header(0), zipped=True)
    with pytest.raises(UserError, match="holds no labels"):
        find_fashion_mnist(tmp_path).load("train", OWN)


def test_damaged_gzip(tmp_path):
    path = fashion(tmp_path) / f"{IMAGES}.gz"
    whole = path.read_bytes()
    garbled = bytearray(whole)
    garbled[2000] ^= 255
    checksum = bytearray(whole)
    checksum[-8] ^= 255
    for content in (whole[:2000], whole[:-4], b"", b"no gzip", garbled, checksum):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{IMAGES}\.gz is no usable file of Fashion-MNIST: \S.*\. Fetch it again"):
            find_fashion_mnist(tmp_path).load("train", OWN)


@pytest.mark.parametrize(
    "content", [header(1, 28, 28) + bytes(64 << 20), header(1_300_000, 28, 28)], ids=["bomb", "made-up"]
)
def test_memory_is_taken_for_neither_a_bomb_nor_an_announcement(tmp_path, content):
    put(fashion(tmp_path) / IMAGES, content, zipped=True)
    source = find_fashion_mnist(tmp_path)
    tracemalloc.start()
    with pytest.raises(UserError, match="holds"):
        source.load("train", OWN)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_file_that_vanishes_is_named(tmp_path):
    source = find_fashion_mnist(fashion(tmp_path))
    (tmp_path / f"{LABELS}.gz").unlink()
    with pytest.raises(UserError, match=rf"{LABELS}\.gz .*No such file"):
        source.load("train", OWN)


def fake_torchvision(monkeypatch, constructor):
    torchvision = types.ModuleType("torchvision")
    torchvision.datasets = types.SimpleNamespace(FashionMNIST=constructor)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)


def test_download_fetches_once_what_is_not_there(tmp_path, monkeypatch):
    asked = []

    def fashion_mnist(root, download):
        asked.append((root, download))
        fashion(tmp_path / "new" / "FashionMNIST" / "raw", zipped=False)

    fake_torchvision(monkeypatch, fashion_mnist)
    for _ in range(2):
        holds_the_images(find_fashion_mnist(tmp_path / "new", download=True))
    assert asked == [(str(tmp_path / "new"), True)]


def test_download_without_torchvision_or_network(tmp_path, monkeypatch):
    def fashion_mnist(root, download):
        raise OSError("no route")

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        UserError, match=rf"pip install 'fewshot-mcl\[torchvision\]', or put {IMAGES}\.gz and the three"
    ):
        find_fashion_mnist(tmp_path, download=True)
    fake_torchvision(monkeypatch, fashion_mnist)
    with pytest.raises(UserError, match=rf"FashionMNIST failed \(no route\): try again, or put {IMAGES}\.gz .* into"):
        find_fashion_mnist(tmp_path, download=True)
