from __future__ import annotations

import hashlib
import os
import pickle
import shutil

import numpy as np
import pytest
from builders import write_python2
from labelled_builders import (
    FINE_LABELS,
    META,
    archive,
    batch,
    cifar_binary,
    cifar_expected,
    cifar_python,
    holds_cifar,
)

from fewshot_mcl.data import cifar, published, sources
from fewshot_mcl.data.cifar import find_cifar100
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import UserError

OWN = ImageOptions()
FORMS = {
    "python": cifar_python,
    "python text": lambda root: cifar_python(root, protocol=0),
    "python folder": lambda root: cifar_python(root / "cifar-100-python"),
    "binary": cifar_binary,
    "binary folder": lambda root: cifar_binary(root / "cifar-100-binary"),
    "python tar.gz": lambda root: archive(root / "cifar-100-python.tar.gz", cifar_python(root / "aside/of-all")),
    "python tar": lambda root: archive(root / "cifar-100-python.tar", cifar_python(root / "aside/of-all")),
    "binary tar.gz": lambda root: archive(root / "cifar-100-binary.tar.gz", cifar_binary(root / "aside/of-all")),
    "binary tar": lambda root: archive(root / "cifar-100-binary.tar", cifar_binary(root / "aside/of-all")),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Each form once; the tests only read."""
    base = tmp_path_factory.mktemp("cifar")
    for name, build in FORMS.items():
        build(base / name)
        shutil.rmtree(base / name / "aside", ignore_errors=True)
    return {name: base / name for name in FORMS}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_published_images(roots, name):
    source = find_cifar100(roots[name])
    assert (source.name, source.splits) == ("cifar100", ("train", "test"))
    assert name.split()[0] in source.format
    holds_cifar(source)


@pytest.mark.parametrize("build", [cifar_python, cifar_binary])
@pytest.mark.parametrize("name", ["of any name.tgz", "plain"])
def test_an_archive_is_named_itself_and_known_by_its_content(tmp_path, build, name):
    holds_cifar(find_cifar100(archive(tmp_path / name, build(tmp_path / "folder"))))
    assert sorted(os.listdir(tmp_path)) == sorted(["folder", name])


def test_torchvision_reads_the_same_from_the_same_files(tmp_path):
    from torchvision.datasets import CIFAR100

    class Tiny(CIFAR100):
        train_list = [["train", None]]  # noqa: RUF012
        test_list = [["test", None]]  # noqa: RUF012
        meta = {"filename": "meta", "key": "fine_label_names", "md5": None}  # noqa: RUF012

    for protocol in (0, 2):
        cifar_python(tmp_path / "cifar-100-python", protocol)
        source = find_cifar100(tmp_path)
        for split in ("train", "test"):
            theirs, ours = Tiny(tmp_path, train=split == "train"), source.load(split, OWN)
            assert len(theirs) == len(ours)
            assert tuple(theirs.classes) == ours.class_names
            for image, label, name in zip(ours.images, ours.labels.tolist(), ours.ids):
                picture, target = theirs[int(name[len(split) + 1 : -1])]
                assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), image.numpy())
                assert target == label


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_python_3_pickled_again_is_read_with_text_or_bytes(tmp_path, protocol):
    def in_bytes(value):
        if isinstance(value, dict):
            return {in_bytes(key): in_bytes(item) for key, item in value.items()}
        if isinstance(value, list):
            return [in_bytes(item) for item in value]
        return value.encode() if isinstance(value, str) else value

    for form in (in_bytes, lambda value: value):
        for name, content in {"train": batch("train"), "test": batch("test"), "meta": META}.items():
            (tmp_path / name).write_bytes(pickle.dumps(form(content), protocol))
        holds_cifar(find_cifar100(tmp_path))


def test_labels_and_pixels_may_be_arrays_of_any_order(tmp_path):
    cifar_python(tmp_path)
    content = batch("train")
    content |= {"fine_labels": np.array(content["fine_labels"]), "data": np.asfortranarray(content["data"])}
    (tmp_path / "train").write_bytes(pickle.dumps(content, 2))
    holds_cifar(find_cifar100(tmp_path))


@pytest.mark.parametrize("memory_share", [0.5, 0.0])
@pytest.mark.parametrize("name", ["python", "binary tar.gz"])
def test_other_sizes_and_colours_in_memory_or_on_disk(roots, name, memory_share, monkeypatch):
    shares = []
    kept = published.allocate_images
    monkeypatch.setattr(published, "allocate_images", lambda shape, share: shares.append(share) or kept(shape, share))
    source = find_cifar100(roots[name])
    grey = source.load("test", ImageOptions(color="grey", memory_share=memory_share))
    assert grey.shape == (1, 32, 32)
    red, green, blue = cifar_expected("test")[0].astype(float).transpose(1, 0, 2, 3)
    assert np.abs(grey.images[:, 0].numpy() - (0.299 * red + 0.587 * green + 0.114 * blue)).max() < 1
    small = source.load("test", ImageOptions(image_size=16, memory_share=memory_share))
    assert (small.shape, small.labels.tolist()) == ((3, 16, 16), sorted(FINE_LABELS["test"]))
    assert "to 16x16" in small.resize
    assert shares == [memory_share] * 2


@pytest.mark.parametrize(("name", "place"), [("python", published.FolderFiles), ("binary tar", published.ArchiveFiles)])
def test_a_split_is_read_alone_and_opening_reads_the_names_only(roots, name, place, monkeypatch):
    read, inner = [], place.read
    monkeypatch.setattr(place, "read", lambda self, file: read.append(file) or inner(self, file))
    with sources.training_only():
        source = find_cifar100(roots[name])
        assert read == [source.files["meta"]]
        source.load("train", OWN)
        assert read == [source.files["meta"], source.files["train"]]
        with pytest.raises(sources.ForbiddenSplitError):
            source.load("test", OWN)


def test_damage_to_the_test_images_does_not_hinder_training(tmp_path):
    cifar_python(tmp_path)
    (tmp_path / "test").write_bytes((tmp_path / "test").read_bytes()[:5000])
    source = find_cifar100(tmp_path)
    assert len(source.load("train", OWN)) == 7
    with pytest.raises(UserError, match=r"test is refused: the file ends early"):
        source.load("test", OWN)


def test_a_complete_set_goes_before_an_incomplete_one(tmp_path):
    cifar_binary(tmp_path / "cifar-100-binary")
    cifar_python(tmp_path / "cifar-100-python")
    (tmp_path / "cifar-100-python" / "meta").unlink()
    assert "binary" in find_cifar100(tmp_path).format


def test_files_other_than_the_official_are_noted_when_they_are_loaded(tmp_path, monkeypatch):
    cifar_python(tmp_path)
    source = find_cifar100(tmp_path)
    assert source.notes == ()
    source.load("train", OWN)
    source.load("test", OWN)
    assert source.notes == ("not the official CIFAR-100 files",)

    digests = {name: hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(cifar, "OFFICIAL", digests)
    source = find_cifar100(tmp_path)
    holds_cifar(source)
    assert source.notes == ()
    write_python2(tmp_path / "meta", META | {"more": 1})
    source = find_cifar100(tmp_path)
    source.load("train", OWN)
    assert source.notes == ("not the official CIFAR-100 files",)


def test_there_is_no_validation_split(roots):
    with pytest.raises(UserError, match=r"cifar100 has no val split \(found: train, test\)"):
        find_cifar100(roots["python"]).load("val", OWN)


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz"])
@pytest.mark.parametrize(
    ("build", "file"),
    [(cifar_python, name) for name in ("train", "test", "meta")]
    + [(cifar_binary, name) for name in ("train.bin", "test.bin", "fine_label_names.txt")],
)
def test_a_missing_file_is_named(tmp_path, build, file, form):
    root = build(tmp_path / "set")
    (root / file).unlink()
    if form != "folder":
        root = archive(tmp_path / f"cifar-100-python.{form}", root)
    with pytest.raises(UserError, match=rf"{root.name} lacks {file}: CIFAR-100 is .* together"):
        find_cifar100(root)
    with pytest.raises(UserError, match=f"lacks {file}"):  # nor is anything fetched over it
        find_cifar100(root, download=True)


@pytest.mark.parametrize(
    "files",
    [
        ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"],
        ["cifar-10-batches-bin/data_batch_1.bin", "cifar-10-batches-bin/batches.meta.txt"],
        ["data_batch_1"],
        ["batches.meta"],
        ["cifar-10-python.tar.gz"],
        ["cifar-100-python/data_batch_1"],  # a folder of the wrong name
    ],
)
def test_cifar_10_is_told_apart(tmp_path, files):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(UserError, match="this is CIFAR-10; cifar100 needs the CIFAR-100 files"):
        find_cifar100(tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-100-python.tar.gz"])
def test_a_tar_of_cifar_10_is_told_apart(tmp_path, name):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").touch()
    path = archive(tmp_path / name, tmp_path / "cifar-10-batches-py")
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    for root in (path, tmp_path):
        with pytest.raises(UserError, match="this is CIFAR-10"):
            find_cifar100(root)


def test_nothing_found_says_what_is_expected(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    for root in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=r"no CIFAR-100 files at .*cifar-100-python\.tar\.gz.*--set download=true"):
            find_cifar100(root)


DAMAGED_BATCHES = {
    "no 'data'": {"data": None},
    "no 'fine_labels'": {"fine_labels": None},
    "3072 columns": {"data": np.zeros((7, 3071), np.uint8)},
    "no uint8 array with": {"data": np.zeros((7, 3072), np.int16)},
    "its data is no uint8": {"data": "text"},
    "7 images but 6 fine labels": {"fine_labels": [0] * 6},
    "no list of integers": {"fine_labels": [[0]] * 7},
    "fine labels are no list": {"fine_labels": np.zeros(7)},
    "label 3 of image 6 is none of the 3 classes": {"fine_labels": [0] * 6 + [3]},
    "label -1 of image 0": {"fine_labels": [-1] + [0] * 6},
    "no images": {"data": np.zeros((0, 3072), np.uint8), "fine_labels": []},
}


@pytest.mark.parametrize("reason", DAMAGED_BATCHES)
def test_a_batch_that_is_not_as_published(tmp_path, reason):
    content = {key: value for key, value in (batch("train") | DAMAGED_BATCHES[reason]).items() if value is not None}
    cifar_python(tmp_path)
    (tmp_path / "train").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(UserError, match=rf"train is no usable file of CIFAR-100: .*{reason}.*Fetch it again"):
        find_cifar100(tmp_path).load("train", OWN)


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"coarse_label_names": ["a"]}, "no 'fine_label_names'"),
        ({"fine_label_names": []}, "names no classes"),
        ({"fine_label_names": "abc"}, "names no classes"),
        ({"fine_label_names": ["a", "b", "a"]}, "not all different"),
        ({"fine_label_names": ["a", "", "c"]}, "not all text"),
        ({"fine_label_names": ["a", 3, "c"]}, "not all text"),
        (["a", "b", "c"], "no 'fine_label_names'"),
    ],
)
def test_class_names_that_cannot_be_used(tmp_path, meta, reason):
    cifar_python(tmp_path)
    write_python2(tmp_path / "meta", meta)
    with pytest.raises(UserError, match=rf"meta is no usable file of CIFAR-100: .*{reason}"):
        find_cifar100(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"), [("\n\n", "names no classes"), ("a\nb\na\n", "all different"), ("a\n\nc", "not all text")]
)
def test_class_names_of_the_binary_form_that_cannot_be_used(tmp_path, text, reason):
    (cifar_binary(tmp_path) / "fine_label_names.txt").write_text(text)
    with pytest.raises(UserError, match=rf"fine_label_names\.txt is no usable file of CIFAR-100: .*{reason}"):
        find_cifar100(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(3074 * 2 - 1), "cut short, 6147 bytes are not 3074 for each image"),
        (bytes(3073), "cut short"),
        (b"", "no images"),
        (bytes(3074) + bytes((0, 3)) + bytes(3072), "label 3 of image 1 is none of the 3"),
    ],
)
def test_a_binary_file_that_is_not_as_published(tmp_path, content, reason):
    (cifar_binary(tmp_path) / "train.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"train\.bin is no usable file of CIFAR-100: .*{reason}"):
        find_cifar100(tmp_path).load("train", OWN)


class Calls:
    """Pickles as a call."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return os.mkdir, self.arguments


@pytest.mark.parametrize("packed", [False, True])
def test_pickles_that_ask_for_code_are_refused_and_never_run(tmp_path, packed):
    folder, marker = cifar_python(tmp_path / "set"), tmp_path / "marker"
    (folder / "train").write_bytes(pickle.dumps({"data": Calls(str(marker))}))
    root = archive(tmp_path / "a.tar", folder) if packed else folder
    where = r"train in \S*a\.tar" if packed else "train"
    with pytest.raises(UserError, match=rf"{where} is refused: it asks for .*mkdir"):
        find_cifar100(root).load("train", OWN)
    (folder / "meta").write_bytes(pickle.dumps(Calls(str(marker))))
    root = archive(tmp_path / "a.tar", folder) if packed else folder
    with pytest.raises(UserError, match="is refused"):
        find_cifar100(root)
    assert not marker.exists()
