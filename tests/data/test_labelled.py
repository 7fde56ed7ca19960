"""Data whose splits have the same classes: every form they come in, and what is held out of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from builders import class_folders, pixels, split_folders
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_builders import CLOTHES, cifar_binary, fashion

from fewshot_mcl.data.glyphs import GlyphSource
from fewshot_mcl.data.labelled import NEEDS_ROOT, class_problems, find_labelled, hold_out, open_labelled
from fewshot_mcl.data.lazy import FileImages
from fewshot_mcl.data.packed import write_packed
from fewshot_mcl.data.sources import ForbiddenSplitError, ImageOptions, Source, open_source, training_only
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError

EIGHT = ImageOptions(image_size=8)


def opened(path: Path | str, seed: int = 0) -> Source:
    return open_labelled(str(path), None, ImageOptions(image_size=8, split_seed=seed))


def same_classes(root: Path, count: int = 3, **names: str) -> Path:
    """root/SPLIT/NAME/K.png, no image twice."""
    for i, (split, each) in enumerate(names.items()):
        class_folders(root / split, each.split(), count, seed=100_000 * i)
    return root


def ids(source: Source, split: str) -> list[str]:
    return list(source.load(split, EIGHT).ids)


# Glyphs: the training classes of a few-shot set


@pytest.fixture(scope="module")
def glyphs() -> dict[str, ImageStore]:
    source = open_labelled("glyphs", None, ImageOptions())
    return {split: source.load(split, ImageOptions()) for split in source.splits}


def test_glyphs_are_227_classes_of_15_images_to_train_on_and_5_to_test(glyphs: dict[str, ImageStore]) -> None:
    assert list(glyphs) == ["train", "test"]
    for split, size in (("train", 15), ("test", 5)):
        store = glyphs[split]
        assert store.class_sizes.tolist() == [size] * 227
        assert (store.shape, store.split, store.source) == ((1, 28, 28), split, "glyphs")
        assert store.class_names == glyphs["train"].class_names


def test_glyphs_for_training_and_test_are_all_images_of_the_few_shot_training_classes_once(
    glyphs: dict[str, ImageStore],
) -> None:
    whole = GlyphSource().load("train", ImageOptions())
    assert sorted(glyphs["train"].ids + glyphs["test"].ids) == sorted(whole.ids)
    row = {name: i for i, name in enumerate(whole.ids)}
    for store in glyphs.values():
        rows = [row[name] for name in store.ids]
        assert torch.equal(store.images, whole.images[rows])
        assert torch.equal(store.labels, whole.labels[rows])


def test_glyphs_of_few_shot_validation_and_test_are_never_used(glyphs: dict[str, ImageStore]) -> None:
    few_shot = GlyphSource()
    unseen = {*few_shot.class_names("val"), *few_shot.class_names("test")}
    assert len(unseen) == 97 + 128
    for store in glyphs.values():
        assert not unseen & set(store.class_names)
        assert not unseen & {name.rpartition("[")[0] for name in store.ids}
    source = open_labelled("glyphs", None, ImageOptions())
    with pytest.raises(UserError, match=r"glyphs has no val split \(found: train, test\)"):
        source.load("val", ImageOptions())


def test_what_of_the_glyphs_is_for_test_goes_by_the_seed_and_is_noted(glyphs: dict[str, ImageStore]) -> None:
    def of(seed: int) -> Source:
        return open_labelled("glyphs", None, ImageOptions(split_seed=seed))

    assert of(0).load("test", ImageOptions()).fingerprint == glyphs["test"].fingerprint
    assert of(1).load("test", ImageOptions()).fingerprint != glyphs["test"].fingerprint
    assert of(3).notes == ("training classes of glyphs only; a quarter of each for test, by seed 3",)


def test_glyphs_have_the_size_and_colour_that_is_asked_for() -> None:
    store = open_labelled("glyphs", None, EIGHT).load("test", ImageOptions(image_size=14, color="rgb"))
    assert store.shape == (3, 14, 14)
    assert len(store) == len(store.ids) == 227 * 5


# Folders


def test_train_and_test_folders(tmp_path: Path) -> None:
    source = opened(same_classes(tmp_path / "birds", train="b a", test="a b"))
    assert (source.name, source.splits, source.notes) == ("birds", ("train", "test"), ())
    for split in source.splits:
        store = source.load(split, EIGHT)
        assert store.class_names == source.class_names(split) == ("a", "b")
        assert store.labels.tolist() == [0] * 3 + [1] * 3
        assert store.ids == tuple(f"{split}/{name}/{k}.png" for name in "ab" for k in range(3))
    assert torch.equal(source.load("test", EIGHT).images[3].permute(1, 2, 0), torch.from_numpy(pixels(100_000 + 1000)))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_where_there_is_train_and_val_only_val_is_the_test_split_and_that_is_noted(tmp_path: Path, name: str) -> None:
    source = opened(same_classes(tmp_path, train="a b", **{name: "a b"}))
    assert source.splits == ("train", "test")
    assert ids(source, "test") == [f"{name}/{each}/{k}.png" for each in "ab" for k in range(3)]
    assert source.notes == (f"no test/ folder: {name}/ is the test split, validation is held out of train/",)
    with training_only(), pytest.raises(ForbiddenSplitError):
        source.load("test", EIGHT)
    with pytest.raises(UserError, match="no val split"):
        source.load("val", EIGHT)


def test_all_three_folders_are_what_their_names_say(tmp_path: Path) -> None:
    source = opened(same_classes(tmp_path, train="a b", val="a b", test="a b"))
    assert (source.splits, source.notes) == (("train", "val", "test"), ())
    for split in source.splits:
        assert {name.split("/")[0] for name in ids(source, split)} == {split}


def test_two_validation_folders_are_one_too_many(tmp_path: Path) -> None:
    same_classes(tmp_path, train="a b", val="a b", valid="a b", test="a b")
    with pytest.raises(UserError, match="holds both val and valid: keep one of them"):
        opened(tmp_path)


def test_a_training_folder_alone_has_nothing_to_test_on(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"has no test split \(found: train\)\. Put images of the same classes into PATH/test/CLASS/, or",
    ):
        opened(same_classes(tmp_path, train="a b"))


@pytest.mark.parametrize("inside", ["", "images"])
def test_of_class_folders_alone_a_quarter_of_each_class_is_for_test(tmp_path: Path, inside: str) -> None:
    sizes = {"ant": 2, "bee": 3, "cat": 8, "dog": 11}
    for name, count in sizes.items():
        class_folders(tmp_path / inside, [name], count)
    source = opened(tmp_path, seed=5)
    assert source.splits == ("train", "test")
    assert source.notes == ("a quarter of each class is the test split, by seed 5 (no split was given)",)
    stores = {split: source.load(split, EIGHT) for split in source.splits}
    assert stores["test"].class_sizes.tolist() == [max(1, round(count / 4)) for count in sizes.values()] == [1, 1, 2, 3]
    for name, count in sizes.items():
        files = [f"{inside}/{name}/{k}.png".lstrip("/") for k in range(count)]
        assert sorted(i for store in stores.values() for i in store.ids if f"{name}/" in i) == sorted(files)
    for store in stores.values():
        assert store.class_names == tuple(sizes)


def test_the_quarter_goes_by_the_seed_and_a_new_class_moves_no_other(tmp_path: Path) -> None:
    class_folders(tmp_path, ["a", "b"], 12)
    first = ids(opened(tmp_path), "test")
    assert ids(opened(tmp_path), "test") == first
    assert ids(opened(tmp_path, seed=1), "test") != first
    assert [i.removeprefix("a/") for i in first[:3]] != [i.removeprefix("b/") for i in first[3:]]  # each its own draw
    class_folders(tmp_path, ["a2"], 12, seed=50_000)
    assert [i for i in ids(opened(tmp_path), "test") if not i.startswith("a2/")] == first


def test_a_class_named_like_a_split_is_a_class(tmp_path: Path) -> None:
    source = opened(class_folders(tmp_path, ["train", "test", "plane"], 4))
    assert source.class_names("train") == source.class_names("test") == ("plane", "test", "train")


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    class_folders(tmp_path, ["a", "b"], 4)
    class_folders(tmp_path, ["lonely"], 1)
    with pytest.raises(
        UserError, match=r"^class 'lonely' has one image: training and test take one each\. Add images\.$"
    ):
        opened(tmp_path)


def test_one_image_is_enough_where_test_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert len(opened(same_classes(tmp_path, 1, train="a b", test="a b")).load("train", EIGHT)) == 2


@pytest.mark.parametrize("names", [[], ["a"]])
def test_fewer_than_two_classes_are_nothing_to_tell_apart(tmp_path: Path, names: list[str]) -> None:
    class_folders(tmp_path, names, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"holds {len(names)} class folders with images: expected CLASS/image files"):
        opened(tmp_path)


def test_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    same_classes(tmp_path, train="a b", test="a b")
    for split in ("train", "test"):
        (tmp_path / split / "empty").mkdir()
    assert opened(tmp_path).class_names("train") == ("a", "b")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"train": "a b", "test": "a c"}, r"2 classes are not in both train and test \(b, c\)"),
        ({"train": "a b c d e", "test": "a"}, r"4 classes are not in both train and test \(b, c, d and 1 more\)"),
        ({"train": "a b", "val": "a", "test": "a b"}, r"1 classes are not in both train and val \(b\)"),
        ({"train": "a b", "val": "c d"}, r"4 classes are not in both train and test \(a, b, c and 1 more\)"),
    ],
)
def test_splits_of_other_classes_are_refused_in_a_sentence_that_names_the_other_command(
    tmp_path: Path, names: dict[str, str], message: str
) -> None:
    same_classes(tmp_path / "data", **names)
    with pytest.raises(UserError, match=rf"^data: {message}: classification .*For new classes: fewshot-mcl train\.$"):
        opened(tmp_path / "data")
    found = find_labelled(str(tmp_path / "data"), None, EIGHT)  # for a report
    assert len(class_problems(found)) == 1


def test_every_split_that_differs_is_a_problem(tmp_path: Path) -> None:
    same_classes(tmp_path, train="a b", val="a", test="b")
    assert len(class_problems(find_labelled(str(tmp_path), None, EIGHT))) == 2


def test_files_can_be_decoded_whenever_they_are_asked_for(tmp_path: Path) -> None:
    source = opened(class_folders(tmp_path, ["a", "b"], 5))
    for split in source.splits:
        lazy = source.load(split, ImageOptions(image_size=8, decode="always"))
        assert isinstance(lazy.images, FileImages)
        assert torch.equal(lazy.images[torch.arange(len(lazy))], source.load(split, EIGHT).images)


# The guard of the test split


@pytest.mark.parametrize("form", ["glyphs", "splits", "flat", "packed", "cifar100", "fashion-mnist"])
def test_training_cannot_open_the_test_split(tmp_path: Path, form: str) -> None:
    root = tmp_path / "data"
    if form == "glyphs":
        source = open_labelled("glyphs", None, EIGHT)
    elif form in ("cifar100", "fashion-mnist"):
        (cifar_binary if form == "cifar100" else fashion)(root)
        source = find_labelled(form, root, EIGHT)
    else:
        same_classes(root, train="a b", test="a b") if form == "splits" else class_folders(root, ["a", "b"], 4)
        source = opened(root)
        if form == "packed":
            write_packed(source, EIGHT, tmp_path / "packed")
            source = opened(tmp_path / "packed")
    with training_only():
        assert len(source.load("train", EIGHT))
        for attempt in (source.load, source.chunks):
            with pytest.raises(ForbiddenSplitError):
                attempt("test", EIGHT)
    assert len(source.load("test", EIGHT))


# Names


@pytest.mark.parametrize("name", NEEDS_ROOT)
def test_data_in_files_need_a_root(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} needs the folder its files lie in: give it with --root DIR\.$"):
        open_labelled(name, None, ImageOptions())


@pytest.mark.parametrize(
    ("name", "nearest"), [("cifar10", "cifar100"), ("glyph", "glyphs"), ("fashion", "fashion-mnist")]
)
def test_unknown_names_get_the_nearest_one(
    name: str, nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"unknown data source or folder '{name}'. Did you mean '{nearest}'?"):
        open_labelled(name, None, ImageOptions())


def test_paths_that_are_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "file")
    for name in ("imagenet", "mini-imagenet"):
        with pytest.raises(UserError, match="does not exist"):
            open_labelled(name, tmp_path / "nowhere", ImageOptions())


@pytest.mark.parametrize("data", ["a folder", "glyphs"])
def test_an_unknown_split_gets_the_nearest_one(tmp_path: Path, data: str) -> None:
    source = opened(class_folders(tmp_path, ["a", "b"]) if data != "glyphs" else data)
    with pytest.raises(UserError, match="Did you mean 'test'"):
        source.load("tests", EIGHT)


def test_named_sets_come_by_their_names(tmp_path: Path) -> None:
    fashion(tmp_path)
    source = find_labelled("fashion-mnist", tmp_path, ImageOptions())
    assert source.splits == ("train", "test")
    assert source.load("test", ImageOptions()).labels.tolist() == sorted(CLOTHES["test"])


# Packed stores


@pytest.mark.parametrize("form", ["splits", "three", "flat", "glyphs"])
def test_packed_stores_open_as_what_was_packed(tmp_path: Path, form: str) -> None:
    root = tmp_path / "data"
    if form == "flat":
        class_folders(root, ["b", "a"], 6)
    elif form != "glyphs":
        same_classes(root, train="a b", test="a b", **({"val": "b a"} if form == "three" else {}))
    original = opened("glyphs" if form == "glyphs" else root)
    write_packed(original, EIGHT, tmp_path / "packed")
    stores = {split: original.load(split, EIGHT) for split in original.splits}
    if form != "glyphs":
        shutil.rmtree(root)
    source = opened(tmp_path / "packed", seed=9)  # its split was decided when it was packed
    assert (source.name, source.splits, source.notes) == (original.name, original.splits, original.notes)
    for split, expected in stores.items():
        store = source.load(split, EIGHT)
        assert store.fingerprint == expected.fingerprint
        assert (store.source, store.split) == (expected.source, split)
        assert store.class_names == expected.class_names
        assert torch.equal(store.images, expected.images)
        assert torch.equal(store.labels, expected.labels)


def test_a_packed_store_answers_to_the_name_of_what_was_packed_alone(tmp_path: Path) -> None:
    cifar_binary(tmp_path / "files")
    write_packed(find_labelled("cifar100", tmp_path / "files", ImageOptions()), ImageOptions(), tmp_path / "packed")
    source = open_labelled("cifar100", tmp_path / "packed", ImageOptions())
    assert source.load("train", ImageOptions()).source == "cifar100"
    with pytest.raises(UserError, match=r"is a packed store of cifar100, not of fashion-mnist: give --data "):
        open_labelled("fashion-mnist", tmp_path / "packed", ImageOptions())


def test_a_packed_few_shot_store_is_refused_as_its_folder_is(tmp_path: Path) -> None:
    split_folders(tmp_path / "data", train="a b", val="c d", test="e f")
    write_packed(open_source(str(tmp_path / "data")), EIGHT, tmp_path / "packed")
    for path in (tmp_path / "data", tmp_path / "packed"):
        with pytest.raises(UserError, match=r"4 classes are not in both train and val .*fewshot-mcl train\.$"):
            opened(path)


# What is held out for validation


def store_of(sizes: dict[str, int]) -> ImageStore:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes.values())))
    return ImageStore(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels, list(sizes))


class_sizes = st.lists(st.integers(2, 40), min_size=1, max_size=6).map(
    lambda sizes: {f"class {i}": size for i, size in enumerate(sizes)}
)


@given(class_sizes, st.floats(0, 0.99), st.integers(0, 99), st.none() | st.integers(2, 30))
@settings(max_examples=150, deadline=None)
def test_what_is_held_out_has_its_share_of_each_class_and_is_not_trained_on(
    sizes: dict[str, int], share: float, seed: int, most: int | None
) -> None:
    store = store_of(sizes)
    train, val = hold_out(store, share, seed, most)
    assert not set(train.tolist()) & set(val.tolist())
    for rows in (train, val):
        assert torch.equal(rows, rows.unique())  # in order, none twice
        assert bool((store.labels[rows].diff() >= 0).all())
    for label, size in enumerate(sizes.values()):
        used = size if most is None else min(size, most)
        held_out = int((store.labels[val] == label).sum())
        assert int((store.labels[train] == label).sum()) == used - held_out > 0
        if share == 0:
            assert held_out == 0
        else:
            assert held_out >= 1
            assert abs(held_out - share * used) <= 0.5 or held_out in (1, used - 1)


def test_rows_go_by_the_seed() -> None:
    store = store_of({"a": 30, "b": 30})
    for most in (None, 20):
        first, again, other = (hold_out(store, 0.2, seed, most) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert not any(torch.equal(a, b) for a, b in zip(first, other))
    assert not torch.equal(hold_out(store, 0, 0, 20)[0], hold_out(store, 0, 1, 20)[0])


def test_each_class_is_drawn_for_itself_whatever_other_classes_there_are() -> None:
    sizes = {"a": 30, "b": 30}
    _, small = hold_out(store_of(sizes), 0.2, 0)
    _, large = hold_out(store_of({"new": 7} | sizes), 0.2, 0)
    assert (large[large >= 7] - 7).tolist() == small.tolist()
    assert small[:6].tolist() != (small[6:] - 30).tolist()


def test_every_row_may_be_held_out() -> None:
    store = store_of({"a": 5})
    assert {int(hold_out(store, 0.2, seed)[1]) for seed in range(60)} == set(range(5))


def test_without_a_share_all_rows_are_trained_on_one_image_classes_too() -> None:
    train, val = hold_out(store_of({"a": 1, "b": 3}), 0, 0)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3], [])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_class_of_one_image_has_none_to_hold_out(share: float) -> None:
    with pytest.raises(UserError, match=r"class 'lonely' has one training image.*--set val_share=0\.$"):
        hold_out(store_of({"a": 4, "lonely": 1}), share, 0)


@pytest.mark.parametrize("name", ["imagenet", "glyphs", "cifar100"])
def test_a_folder_that_is_called_like_a_set_is_not_taken_for_it(name: str, tmp_path: Path) -> None:
    source = open_labelled(
        str(class_folders(tmp_path / name, ["ant", "bee"], count=4)), None, ImageOptions(image_size=8)
    )
    assert source.name == f"folder {name}"
    assert source.load("train", ImageOptions(image_size=8)).source == f"folder {name}"
