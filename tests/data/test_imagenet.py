from __future__ import annotations

import numpy as np
import pytest
from builders import class_folders, picture

from fewshot_mcl.data import images, sources
from fewshot_mcl.data.imagenet import find_imagenet
from fewshot_mcl.data.packed import PackedSource, packed_bytes, write_packed
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import UserError

EIGHT = ImageOptions(image_size=8)
A, B, C = "n01440764", "n01443537", "n01484850"


@pytest.fixture
def root(tmp_path):
    class_folders(tmp_path / "imagenet" / "train", [A, B], count=3)
    class_folders(tmp_path / "imagenet" / "val", [B, A], count=2, seed=50_000)
    return tmp_path / "imagenet"


def found(root, options=EIGHT):
    return find_imagenet(root, options)


def test_train_and_val_are_train_and_test(root):
    source = found(root)
    assert (source.name, source.splits, source.problems) == ("imagenet", ("train", "test"), ())
    assert source.class_names("train") == source.class_names("test") == (A, B)
    test = source.load("test", EIGHT)
    assert (test.split, test.source, test.class_sizes.tolist()) == ("test", "imagenet", [2, 2])
    assert test.ids[0] == f"val/{A}/0.png"
    assert source.notes[0] == "test: the 4 images of val/, which the field calls ImageNet's test set"
    assert source.notes[1:] == ("2 classes, not the 1000 of ImageNet",)
    with pytest.raises(UserError, match=r"imagenet has no val split .*read as train/ and, as the test split, val/"):
        source.load("val", EIGHT)


def test_images_are_256_by_256_rgb_unless_asked_otherwise(root):
    always = ImageOptions(decode="always")
    assert found(root).load("train", always).shape == (3, 256, 256)
    assert found(root).load("train", EIGHT).shape == (3, 8, 8)
    assert packed_bytes(found(root), ImageOptions()) == 10 * 3 * 256 * 256
    assert any("decode = always" in note for note in found(root, always).notes)


@pytest.mark.parametrize("lacking", ["train", "val"])
def test_a_part_that_is_not_there(root, lacking):
    (root / lacking).rename(root / "elsewhere")
    with pytest.raises(UserError, match=f"has no {lacking}/: give the folder that holds train/CLASS/ and val/CLASS/"):
        found(root)


def test_classes_of_one_part_only_are_named(root):
    class_folders(root / "train", [C, "n2"])
    class_folders(root / "val", ["odd\x1b"])
    assert found(root).problems == (
        f"2 class(es) of train/ are not in val/: {C}, n2",
        "1 class(es) of val/ are not in train/: odd\\x1b",
    )


def test_a_flat_val_says_how_to_sort_it(root):
    (root / "val").rename(root / "sorted")
    picture(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    (problem,) = found(root).problems
    assert problem.startswith(
        "val/ holds 1 images but no class folders: sort them into val/CLASS/, such as val/n01440764/"
    )
    assert "LOC_val_solution.csv" in problem


def test_class_folders_without_images(root):
    (root / "val" / C).mkdir()
    (root / "train" / C).mkdir()
    assert found(root).problems == (
        f"class folders without images: train/{C}; fill or remove them",
        f"class folders without images: val/{C}; fill or remove them",
    )


def test_an_empty_train(root):
    (root / "train").rename(root / "elsewhere")
    (root / "train").mkdir()
    (problem,) = found(root).problems
    assert problem.startswith("train/ holds no class folders: it takes train/CLASS/")


def test_unreadable_images_are_named(root):
    (root / "train" / A / "1.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=rf"1 of 6 images cannot be used: .*train/{A}/1\.png \(not an image"):
        found(root).load("train", EIGHT)


def test_what_does_not_fit_the_memory_is_refused_before_decoding(root, monkeypatch):
    small = ImageOptions(image_size=8, memory_share=1e-12)
    (root / "train" / A / "1.png").write_bytes(b"nothing")
    with pytest.raises(UserError) as caught:
        found(root).load("train", small)
    for part in (
        "6 images at 8x8 need 1,152 bytes of memory", "data convert imagenet --root ", "--out PACKED", "--data PACKED",
        "--set decode=always", "smaller --image-size",
    ):  # fmt: skip
        assert part in str(caught.value)
    always = ImageOptions(image_size=8, memory_share=1e-12, decode="always")
    assert len(found(root).load("train", always).images[:1]) == 1


def test_it_packs_without_fitting_the_memory(root, tmp_path):
    small = ImageOptions(image_size=8, memory_share=1e-12)
    write_packed(found(root), small, tmp_path / "packed")
    packed = PackedSource(tmp_path / "packed")
    assert (packed.name, packed.splits) == ("imagenet", ("train", "test"))
    assert packed.notes == found(root).notes
    for split in packed.splits:
        store, whole = packed.load(split, small), found(root).load(split, EIGHT)
        assert np.array_equal(store.images, whole.images)
        assert np.array_equal(store.labels, whole.labels)
        assert store.fingerprint == whole.fingerprint


def test_training_never_opens_the_test_split(root, monkeypatch):
    monkeypatch.setattr(images, "decode", None)
    with sources.training_only():
        for use in (found(root).load, found(root).chunks):
            with pytest.raises(sources.ForbiddenSplitError):
                use("test", EIGHT)
