"""Archives, unreadable files and downloads, as CIFAR-100 meets them."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import tarfile
import tracemalloc
import types
import urllib.error

import pytest
from labelled_builders import archive, cifar_binary, cifar_python, holds_cifar, tar_of

from fewshot_mcl.data import published
from fewshot_mcl.data.cifar import find_cifar100
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import UserError

OWN = ImageOptions()


@pytest.mark.parametrize("name", ["cifar-100-python.tar.gz", "cifar-100-python.tar"])
def test_a_damaged_archive(tmp_path, name):
    path = archive(tmp_path / name, cifar_python(tmp_path / "aside"))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no tar" * 200, b"\x1f\x8b" + bytes(600)):
        path.write_bytes(content)
        for root in (path, tmp_path):
            with pytest.raises(UserError, match=rf"{name} cannot be read as a tar archive \(.+\): fetch it again"):
                find_cifar100(root)


def test_an_archive_that_breaks_off_at_a_header_lacks_files(tmp_path):
    path = archive(tmp_path / "a.tar", cifar_python(tmp_path / "aside"))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    with pytest.raises(UserError, match=f"lacks {last.name.split('/')[1]}"):
        find_cifar100(path)


def header(name, size=0, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def test_paths_in_an_archive_lead_nowhere(tmp_path):
    files = {name: (cifar_python(tmp_path / "aside") / name).read_bytes() for name in ("train", "test", "meta")}
    shutil.rmtree(tmp_path / "aside")
    os.mkdir(tmp_path / "in")
    members = [(header(f"../../{name}", len(content)), content) for name, content in files.items()]
    holds_cifar(find_cifar100(tar_of(tmp_path / "in" / "a.tar", members)))
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["a.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_in_an_archive_are_no_files(tmp_path, kind):
    folder = cifar_python(tmp_path / "aside")
    content = (folder / "meta").read_bytes()
    train = str(folder / "train")
    members = [(header("meta", len(content)), content), (header("test", len(content)), content)]
    path = tar_of(tmp_path / "a.tar", [*members, (header("train", 0, kind, train), b"")])
    with pytest.raises(UserError, match=r"a\.tar lacks train:"):
        find_cifar100(path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.DIRTYPE])
@pytest.mark.parametrize("name", ["train", "other"])
def test_a_member_too_large_is_refused_before_it_is_read(tmp_path, kind, name):
    path = tar_of(tmp_path / "a.tar.gz", [(header(name, (1 << 30) + 1, kind), bytes(4 << 20))])
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.tar\.gz cannot be read .*more than 1 GiB"):
        find_cifar100(path)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_a_size_that_an_extended_header_announces_counts_too(tmp_path, monkeypatch):
    meta = (cifar_python(tmp_path / "aside") / "meta").read_bytes()
    record = b"13 size=5000\n"
    extended = (header("x", len(record), tarfile.XHDTYPE), record)
    members = [(header(name, len(meta)), meta) for name in ("meta", "test")]
    path = tar_of(tmp_path / "a.tar", [*members, extended, (header("train"), bytes(5000))])
    monkeypatch.setattr(published, "LARGEST", 4000)
    with pytest.raises(UserError, match=r"a\.tar cannot be read .*a file of 5000 bytes"):
        find_cifar100(path).load("train", OWN)


def test_a_file_too_large_is_not_read(tmp_path):
    with (cifar_binary(tmp_path) / "train.bin").open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse: it takes no room
    with pytest.raises(UserError, match=r"train\.bin is larger than the 1 GiB"):
        find_cifar100(tmp_path).load("train", OWN)


def test_a_file_that_vanishes_is_named(tmp_path):
    source = find_cifar100(cifar_binary(tmp_path))
    (tmp_path / "train.bin").unlink()
    with pytest.raises(UserError, match=r"train\.bin cannot be read: No such file"):
        source.load("train", OWN)
    path = archive(tmp_path / "a.tar", cifar_python(tmp_path / "aside"))
    source = find_cifar100(path)
    (tmp_path / "aside" / "train").unlink()
    archive(path, tmp_path / "aside")
    with pytest.raises(UserError, match="train is no longer in it"):
        source.load("train", OWN)


def fake_torchvision(monkeypatch, constructor):
    torchvision = types.ModuleType("torchvision")
    torchvision.datasets = types.SimpleNamespace(CIFAR100=constructor)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)


def never(root, download):
    raise AssertionError("nothing is to be fetched")


def test_download_fetches_what_is_not_there(tmp_path, monkeypatch):
    asked = []

    def cifar100(root, download):
        asked.append((root, download))
        cifar_python(tmp_path / "new" / "cifar-100-python")

    fake_torchvision(monkeypatch, cifar100)
    holds_cifar(find_cifar100(tmp_path / "new", download=True))
    holds_cifar(find_cifar100(tmp_path / "new", download=True))
    assert asked == [(str(tmp_path / "new"), True)]


def test_download_leaves_alone_what_is_there(tmp_path, monkeypatch):
    fake_torchvision(monkeypatch, never)
    for build in (cifar_python, cifar_binary):
        holds_cifar(find_cifar100(build(tmp_path / build.__name__), download=True))
    with pytest.raises(UserError, match="no CIFAR-100 files"):
        find_cifar100(tar_of(tmp_path / "other.tar", [(header("file"), b"")]), download=True)
    shutil.copy(tmp_path / "other.tar", tmp_path / "cifar-100-python.tar.gz")
    with pytest.raises(UserError, match="no CIFAR-100 files"):
        find_cifar100(tmp_path, download=True)


def test_download_beside_cifar_10_is_no_mistake(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b""))
    fake_torchvision(monkeypatch, lambda root, download: cifar_binary(tmp_path / "cifar-100-binary"))
    holds_cifar(find_cifar100(tmp_path, download=True))


def test_download_without_torchvision_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        UserError, match=r"pip install 'fewshot-mcl\[torchvision\]', or put cifar-100-python\.tar\.gz into"
    ):
        find_cifar100(tmp_path, download=True)


@pytest.mark.parametrize("error", [urllib.error.URLError("no route\n\x1b[0m"), RuntimeError("corrupted")])
def test_a_failed_download_says_which_file_to_put_where(tmp_path, monkeypatch, error):
    def cifar100(root, download):
        raise error

    fake_torchvision(monkeypatch, cifar100)
    with pytest.raises(
        UserError, match=r"the download of CIFAR100 failed \(.*\): .*put cifar-100-python\.tar\.gz into"
    ) as raised:
        find_cifar100(tmp_path, download=True)
    assert str(tmp_path) in str(raised.value)
    assert str(raised.value).isprintable()
