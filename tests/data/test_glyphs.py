from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from fewshot_mcl.data import sources
from fewshot_mcl.data.glyphs import FILE, finish
from fewshot_mcl.data.sources import ImageOptions, open_source

# SHA-256 of finish() of the whole file: the stream is frozen, results that were published rest on it.
FINISHED = "329e1d652ba73d19a7e61d7ce3c611231c14cb8c1096db71573a9b69b73c8bf0"


def test_the_finished_set_is_frozen():
    with np.load(FILE, allow_pickle=False) as file:
        clean = file["images"]
    finished = finish(clean)
    assert finished.shape == clean.shape == (452, 20, 28, 28)
    assert hashlib.sha256(finished.tobytes()).hexdigest() == FINISHED


@pytest.mark.parametrize(("split", "classes"), [("train", 227), ("val", 97), ("test", 128)])
def test_splits(split, classes):
    source = open_source("glyphs")
    store = source.load(split, ImageOptions())
    assert store.shape == (1, 28, 28)
    assert store.class_sizes.tolist() == [20] * classes
    assert store.class_names == source.class_names(split) == tuple(sorted(store.class_names))
    assert (store.source, store.split, store.resize) == ("glyphs", split, "as stored")


def test_class_names_are_unique_and_name_the_character():
    source = open_source("glyphs")
    names = [name for split in source.splits for name in source.class_names(split)]
    assert len(set(names)) == 452
    assert "Latin U+0041 A" in source.class_names("train")
    assert all(name.isprintable() for name in names)
    scripts = {split: {name.split()[0] for name in source.class_names(split)} for split in source.splits}
    assert scripts["test"] == {"Devanagari", "Thai", "Hebrew"}
    assert not scripts["train"] & scripts["val"]


def test_each_class_has_its_own_images():
    with np.load(FILE, allow_pickle=False) as file:
        place = int(np.flatnonzero((file["script"] == "Hebrew") & (file["codepoint"] == 0x5D0))[0])
        expected = finish(file["images"])[place]
    store = open_source("glyphs").load("test", ImageOptions())
    label = store.class_names.index("Hebrew U+05D0 \u05d0")
    assert np.array_equal(store.images[store.labels == label][:, 0], expected)


def test_rgb_repeats_and_other_sizes_resize():
    source = open_source("glyphs")
    rgb = source.load("val", ImageOptions(color="rgb"))
    assert rgb.shape == (3, 28, 28)
    assert (rgb.images == source.load("val", ImageOptions()).images).all()
    assert source.load("val", ImageOptions(image_size=14)).shape == (1, 14, 14)


def test_a_caller_may_change_the_images():
    first = open_source("glyphs").load("val", ImageOptions())
    first.images[:] = 0
    assert open_source("glyphs").load("val", ImageOptions()).images.any()


def test_training_never_opens_the_test_split():
    source = open_source("glyphs")
    with sources.training_only():
        source.load("train", ImageOptions())
        with pytest.raises(sources.ForbiddenSplitError):
            source.load("test", ImageOptions())
    assert len(source.load("test", ImageOptions())) == 2560


def test_the_package_names_what_it_has_and_imports_no_torch():
    code = "import sys, fewshot_mcl.data as d; assert 'torch' not in sys.modules; d.ImageStore; d.open_source; d.ImageOptions"
    subprocess.run([sys.executable, "-c", code], check=True)
