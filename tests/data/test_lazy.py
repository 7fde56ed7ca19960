from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from builders import class_folders, picture, split_folders

from fewshot_mcl.data import images, sources
from fewshot_mcl.data.lazy import FileImages
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import UserError

ONCE, ALWAYS = ImageOptions(image_size=8), ImageOptions(image_size=8, decode="always")


@pytest.fixture
def source(tmp_path):
    split_folders(tmp_path / "data", train="a b", val="c d", test="e f")
    picture(tmp_path / "data" / "train" / "b" / "large.png", seed=9, side=20)
    return open_source(str(tmp_path / "data"))


@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_always_gives_the_pixels_of_once(source, color):
    once = source.load("train", ImageOptions(image_size=8, color=color))
    always = source.load("train", ImageOptions(image_size=8, color=color, decode="always"))
    assert (len(always), always.shape, always.ids) == (len(once), once.shape, once.ids)
    assert (always.images.shape, always.images.dtype) == (once.images.shape, torch.uint8)
    assert (always.class_names, always.resize, always.split) == (once.class_names, once.resize, "train")
    assert torch.equal(always.labels, once.labels)
    for rows in (slice(None), slice(2, 5), slice(5, 99), slice(3, 3), torch.tensor([6, 0, 0, -1]), torch.tensor([2])):
        assert torch.equal(always.images[rows], once.images[rows])
    assert torch.equal(always.gather(torch.tensor([6, 0, 0])), once.gather(torch.tensor([6, 0, 0])))


def test_nothing_is_decoded_before_it_is_asked_for(source, monkeypatch):
    asked = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda path, *rest: asked.append(path.name) or decode(path, *rest))
    store = source.load("train", ALWAYS)
    assert store.class_sizes.tolist() == [3, 4]
    assert len(store.fingerprint) == 64
    assert asked == []
    store.images[torch.tensor([1, 5])]
    assert sorted(asked) == ["1.png", "2.png"]


@pytest.mark.parametrize(
    "rows", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(7, dtype=torch.bool), torch.ones(2)]
)
def test_other_indices_are_a_fault(source, rows):
    with pytest.raises(TypeError, match="1-d tensor of integers"):
        source.load("train", ALWAYS).images[rows]
    with pytest.raises(IndexError):
        source.load("train", ALWAYS).images[torch.tensor([7])]


@pytest.mark.parametrize("on_bad_image", ["refuse", "skip"])
def test_a_bad_image_is_refused_when_it_is_read(source, tmp_path, on_bad_image):
    (tmp_path / "data" / "train" / "a" / "1.png").write_bytes(b"")
    (tmp_path / "data" / "train" / "b" / "2.png").unlink()
    images = source.load("train", ImageOptions(image_size=8, decode="always", on_bad_image=on_bad_image)).images
    assert len(images[torch.tensor([0, 2])]) == 2
    with pytest.raises(UserError, match=r"1 of 3 images.*a/1\.png \(empty file\)\. .*pack .*--on-bad-image skip"):
        images[0:3]
    with pytest.raises(UserError, match=r"b/2\.png \(a link to a file that is not there\)"):
        images[5:6]


def test_the_fingerprint_sees_names_sizes_classes_and_options(tmp_path):
    class_folders(tmp_path / "data" / "train", "ab")

    def fingerprint(**options):
        return open_source(str(tmp_path / "data")).load("train", ImageOptions(decode="always", **options)).fingerprint

    first, file = fingerprint(), tmp_path / "data" / "train" / "a" / "0.png"
    os.rename(tmp_path / "data", tmp_path / "moved")
    os.rename(tmp_path / "moved", tmp_path / "data")
    assert fingerprint() == first
    found = {first, fingerprint(image_size=8), fingerprint(color="grey"), fingerprint(resize="squash")}
    file.write_bytes(file.read_bytes() + b"x")
    found.add(fingerprint())
    file.rename(file.with_name("00.png"))
    found.add(fingerprint())
    (tmp_path / "data" / "train" / "b").rename(tmp_path / "data" / "train" / "c")
    found.add(fingerprint())
    assert len(found) == 7


def test_the_test_split_stays_closed(source):
    with sources.training_only(), pytest.raises(sources.ForbiddenSplitError):
        source.load("test", ALWAYS)


def test_no_files_are_no_images():
    images = FileImages([], 8, 3, "crop")
    assert images[:].shape == (0, 3, 8, 8)
    assert np.prod(images.shape) == 0
