"""miniImageNet in torchmeta's HDF5: what torchmeta does not write is refused, and nothing outside the file is read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import mini_arrays, mini_h, pixels, wnids

from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import UserError

IMAGES = np.stack([pixels(i) for i in range(4)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return mini_h(tmp_path / "mini")


def load(root: Path, **options: object):
    return open_source("mini-imagenet", root=root).load("val", ImageOptions(**options))  # type: ignore[arg-type]


def test_images_come_with_their_names_in_any_size(root: Path) -> None:
    store = load(root)
    images, labels = mini_arrays("val")
    assert np.array_equal(store.images.numpy(), images[np.argsort(labels, kind="stable")].transpose(0, 3, 1, 2))
    assert store.resize == "as stored"
    assert store.ids[:3] == tuple(f"val_data.hdf5[{wnids('val')[i]}, {k}]" for i, k in ((0, 0), (0, 1), (1, 0)))
    assert load(root, image_size=5, color="grey").shape == (1, 5, 5)


def test_images_that_stay_in_their_file_are_the_same(root: Path) -> None:
    once, always = load(root), load(root, decode="always")
    assert not hasattr(always.images, "numpy")
    assert np.array_equal(once.images[3:9].numpy(), always.images[3:9].numpy())


def test_without_the_library_it_is_said_how_to_get_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"val_data\.hdf5.*pip install 'fewshot-mcl\[hdf5\]'"):
        load(root)


def test_other_classes_are_refused(root: Path) -> None:
    with h5py.File(root / "miniimagenet" / "val_data.hdf5", "a") as file:
        file["datasets"].move(wnids("val")[2], "n99999999")
    with pytest.raises(UserError, match=f"not miniImageNet: val lacks 1 of 16 classes: {wnids('val')[2]}.*n99999999"):
        load(root)


def test_a_missing_split_is_named(root: Path) -> None:
    (root / "miniimagenet" / "val_data.hdf5").unlink()
    with pytest.raises(UserError, match=r"no val split .*Put SPLIT_data\.hdf5 beside"):
        load(root)


def _absurd(group: h5py.Group) -> None:
    group.create_dataset("a", shape=(1 << 40, 84, 84, 3), dtype=np.uint8)  # nothing of it is allocated


def _outside(group: h5py.Group) -> None:
    other = Path(group.file.filename).with_name("other.hdf5")
    with h5py.File(other, "w") as file:
        file.create_dataset("secret", data=IMAGES)
    group["a"] = h5py.ExternalLink(str(other), "secret")


def _raw_outside(group: h5py.Group) -> None:
    raw = Path(group.file.filename).with_name("raw")
    raw.write_bytes(IMAGES.tobytes())
    group.create_dataset("a", IMAGES.shape, np.uint8, external=[(str(raw), 0, IMAGES.nbytes)])


def _virtual(group: h5py.Group) -> None:
    _outside(group)
    layout = h5py.VirtualLayout(IMAGES.shape, np.uint8)
    layout[:] = h5py.VirtualSource(str(Path(group.file.filename).with_name("other.hdf5")), "secret", IMAGES.shape)
    group.create_virtual_dataset("b", layout)
    del group["a"]


def _twice(group: h5py.Group) -> None:
    group["a"] = group.create_dataset("b", data=IMAGES)


def _soft(group: h5py.Group) -> None:
    group.create_dataset("a", data=IMAGES)
    group["b"] = h5py.SoftLink("/datasets/a")


def _loop(group: h5py.Group) -> None:
    group["a"] = group


HOSTILE: dict[str, tuple[Callable[[h5py.Group], object], str]] = {
    "empty": (lambda group: None, "no classes"),
    "absurd": (_absurd, "do not lie in it"),
    "outside": (_outside, "no dataset 'a' of its own"),
    "raw outside": (_raw_outside, "do not lie in it"),
    "virtual": (_virtual, "do not lie in it"),
    "soft": (_soft, "no dataset 'b' of its own"),
    "twice": (_twice, "classes share images"),
    "loop": (_loop, "no dataset 'a' of its own"),
    "compressed": (lambda g: g.create_dataset("a", data=IMAGES, compression="gzip"), "do not lie in it"),
    "floats": (lambda g: g.create_dataset("a", data=IMAGES.astype(np.float32)), "float32 of shape"),
    "flat": (lambda g: g.create_dataset("a", data=IMAGES[0]), r"uint8 of shape \(8, 8, 3\)"),
    "no images": (lambda g: g.create_dataset("a", data=IMAGES[:0]), "shape"),
    "scalar": (lambda g: g.create_dataset("a", data=3), "of shape"),
    "nothing": (lambda g: g.create_dataset("a", dtype=np.uint8), "of shape"),
    "not square": (lambda g: g.create_dataset("a", data=IMAGES[:, :5]), "of shape"),
    "sizes": (
        lambda g: (g.create_dataset("a", data=IMAGES), g.create_dataset("b", data=IMAGES[:, :5, :5])),
        "of several sizes",
    ),
    "a name": (lambda g: g.create_dataset("n\x1b[2J", data=IMAGES[0]), r"'n\\x1b\[2J' is uint8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_torchmeta_does_not_write_is_refused(name: str, tmp_path: Path) -> None:
    build, words = HOSTILE[name]
    with h5py.File(tmp_path / "val_data.hdf5", "w") as file:
        build(file.create_group("datasets"))
    with pytest.raises(UserError, match=rf"val_data\.hdf5 is not as torchmeta writes it .*{words}") as caught:
        load(tmp_path)
    assert str(caught.value).isprintable()


def test_what_is_no_hdf5_or_lacks_its_group(tmp_path: Path) -> None:
    path = tmp_path / "val_data.hdf5"
    for content in (b"", b"no hdf5" * 100, b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"val_data\.hdf5 is not as torchmeta writes it"):
            load(tmp_path)
    for build in (lambda file: None, lambda file: file.create_dataset("datasets", data=IMAGES)):
        with h5py.File(path, "w") as file:
            build(file)
        with pytest.raises(UserError, match="no group 'datasets' of its own"):
            load(tmp_path)


def test_a_file_that_is_cut_short(root: Path) -> None:
    path = root / "miniimagenet" / "val_data.hdf5"
    whole = path.read_bytes()
    for keep in (len(whole) - 1, len(whole) // 2, 600):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"val_data\.hdf5 is not as torchmeta writes it"):
            load(root)
