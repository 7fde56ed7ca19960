# ruff: noqa: E501 (tables of bytes)
"""Pickles and the published sets made of them to be fuzzed."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import struct
import tarfile
from pathlib import Path

import numpy as np
from builders import mini_e, mini_g, write_python2
from guarded import Case
from labelled_builders import META, batch, cifar_binary, fashion, idx
from mutation import MAGIC, altered, damage

from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.pickles import load_pickle
from fewshot_mcl.data.sources import ImageOptions, open_source

CONTENT = {
    "data": np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3), "labels": [0, 1, np.int64(2)], "names": {"a": [0, 1]},
    "more": ["text", 1.5, True, None, (1, 2), -(1 << 70)], "grid": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}  # fmt: skip
MARK = "ran"
GADGETS = [
    ("os", "system", f"touch {MARK}"), ("posix", "system", f"touch {MARK}"), ("builtins", "eval", f"open('{MARK}','w')"),
    ("__builtin__", "eval", f"open('{MARK}','w')"), ("builtins", "exec", f"open('{MARK}','w')"), ("functools", "partial", "x"),
    ("subprocess", "getoutput", f"touch {MARK}"), ("numpy", "load", MARK), ("torch", "load", MARK), ("builtins", "getattr", "x"),
    ("numpy.testing._private.utils", "runstring", f"open('{MARK}','w')"), ("codecs", "decode", "x"), ("pickle", "loads", "x"),
    ("numpy._core.multiarray", "_reconstruct", "x"), ("numpy.core.multiarray", "fromfile", "/dev/zero"), ("_codecs", "decode", "x"),
]  # fmt: skip


def gadgets() -> list[bytes]:
    """Pickles that would call something, by every instruction that can."""
    found = []
    for module, name, argument in GADGETS:
        text, words = argument.encode(), f"{module}\n{name}\n".encode()
        argument_ = b"X" + struct.pack("<I", len(text)) + text
        stack = b"".join(b"\x8c" + bytes([len(each)]) + each.encode() for each in (module, name)) + b"\x93"
        found += [b"c" + words + b"(" + argument_ + b"tR.", b"\x80\x02c" + words + b"(" + argument_ + b"t\x81."]
        found += [
            b"(" + argument_ + b"i" + words + b".",
            b"(c" + words + argument_ + b"o.",
            b"\x80\x04" + stack + argument_ + b"\x85R.",
        ]
        found += [b"c" + words + b"}" + argument_ + b"Nsb.", b"c" + words + b")}\x92.", b"c" + words + b"."]
    return found


def mazes() -> list[bytes]:
    """Small pickles that are enormous when walked, hashed or counted."""
    wide = b"]" + b"q\0(" + b"N" * 10_000 + b"e"
    for slot in (1, 2, 3):
        wide += b"](" + b"h" + bytes([slot - 1]) + (b"h" + bytes([slot - 1])) * 10_000 + b"eq" + bytes([slot])
    pairs = b"Nq\0" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(64))
    lengths = [
        b"\x80\x05" + code + struct.pack("<Q", size)
        for code in (b"\x8d", b"\x8e", b"\x95", b"\x96")
        for size in (1 << 31, 1 << 33, 1 << 62)
    ]
    long = b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b"q\0"
    u1 = b"cnumpy\ndtype\n(X\x02\0\0\0u1I00\nI01\ntR"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR"
    product = array + b"(K\1(" + long + b"h\0" * 50_000 + b"t" + u1 + b"\x89C\1atb."
    deep = [
        b"(" * 200_000 + b".",
        b"]" * 3_000_000 + b".",
        b"(" * 3_000_000 + b"t" * 3_000_000 + b".",
        b"}" * 3_000_000 + b".",
    ]
    flood = [b"N" * 8_000_000 + b".", b"]N" + b"2" * 8_000_000 + b".", b"](" + b"K\1" * 8_000_000 + b"e."]
    hashed = [
        b"}" + pairs + b"Ns.",
        b"}(" + pairs + b"Nu.",
        b"(" + pairs + b"Nd.",
        b"\x80\x04\x8f(" + pairs + b"\x90.",
        b"\x80\x04(" + pairs + b"\x91.",
    ]
    shown = [
        b"\x80\x02K\1" + pairs + b"b.",
        wide + b"R.",
        pairs + b"R.",
        b"](" + pairs + b"u.",
        b"(" + pairs + b"l" + wide + b"\x93.",
    ]
    heads = [b"\x80\x02" + each for each in (wide + b".", b"}X\1\0\0\0d" + wide + b"s.", product)]
    return [
        *heads,
        *hashed,
        *shown,
        *lengths,
        *deep,
        *flood,
        b"L" + b"9" * 5_000_000 + b"L\n.",
        b"I" + b"9" * 5_000_000 + b"\n.",
    ]


def valid(folder: Path) -> list[bytes]:
    """Pickles of every protocol, of Python 3 and 2."""
    files = [pickle.dumps(CONTENT, protocol) for protocol in range(6)]
    for protocol in (0, 2):
        write_python2(folder / "old", {"data": CONTENT["data"], "labels": [64, 65], "tag": "caf\xe9"}, protocol)
        files.append((folder / "old").read_bytes())
    return files


def _with_gadgets(files: list[bytes], special: list[bytes], draw: random.Random) -> bytes:
    """A damaged file, at times with a gadget or a maze in it."""
    content = damage(draw.choice(files), draw, files)
    if draw.random() < 0.2:
        at = draw.randrange(len(content) + 1)
        content = content[:at] + draw.choice(special).rstrip(b".") + content[at:]
    return content


def case(folder: Path) -> Case:
    """`load_pickle`."""
    files, special = valid(folder), [*gadgets(), *mazes()]
    small = gadgets()
    path = folder / "x.pkl"

    def read(draw: random.Random, number: int) -> object:
        path.write_bytes(special[number] if number < len(special) else _with_gadgets(files, small, draw))
        return load_pickle(path)

    return read


def mini(folder: Path) -> Case:
    """The train split of miniImageNet's two kinds of pickles, damaged as bytes or rewritten with other contents."""
    roots = [mini_e(folder / "cache"), mini_g(folder / "category")]
    names = ["mini-imagenet-cache-train.pkl", "miniImageNet_category_split_train_phase_train.pickle"]
    files = [(root / name).read_bytes() for root, name in zip(roots, names)]
    contents = [pickle.loads(content, encoding="latin1") for content in files]  # this module's own
    special = gadgets()
    arrays = [
        np.zeros(shape, np.uint8)
        for shape in ((0, 8, 8, 3), (9, 0, 0, 3), (10**9, 0, 0, 3), (2, 8, 8), (64, 1, 1, 3), (64, 2, 3, 3))
    ]

    def read(draw: random.Random, number: int) -> object:
        which = number % 2
        if draw.random() < 0.5:
            content = damage(files[which], draw, special)
        else:
            value = altered(contents[which], draw)
            if isinstance(value, dict) and draw.random() < 0.3:
                value = value | {("image_data", "data")[which]: draw.choice(arrays)}
            content = pickle.dumps(value, draw.choice((2, 4)))
        (roots[which] / names[which]).write_bytes(content)
        source = open_source(str(roots[which]))
        return source.class_names("train"), source.load("train", ImageOptions(image_size=draw.choice((None, 8))))

    return read


def _cifar_file(draw: random.Random, part: str, files: dict[str, bytes], special: list[bytes]) -> bytes:
    kind = draw.randrange(3)
    if kind == 0:
        return damage(files[part], draw, special)
    value = altered(META if part == "meta" else batch(part), draw)
    return pickle.dumps(value, 2) if kind == 1 else files[part]


def cifar(folder: Path) -> Case:
    """CIFAR-100's python batches in a folder or a tar, and its binary files."""
    places = {kind: folder / kind for kind in ("python", "binary", "tar")}
    for place in places.values():
        place.mkdir()
    parts = ("train", "test", "meta")
    for part in parts:
        write_python2(places["python"] / part, META if part == "meta" else batch(part), 2)
    files, special = {part: (places["python"] / part).read_bytes() for part in parts}, gadgets()
    binary = {path.name: path.read_bytes() for path in cifar_binary(places["binary"]).iterdir()}
    crafted = tars(files)

    def read(draw: random.Random, number: int) -> object:
        kind = ("python", "binary", "tar")[number % 3]
        if kind == "python":
            for part in parts:
                (places[kind] / part).write_bytes(_cifar_file(draw, part, files, special))
        elif kind == "binary":
            for name, content in binary.items():
                (places[kind] / name).write_bytes(damage(content, draw, MAGIC) if draw.random() < 0.5 else content)
        else:
            content = (
                crafted[number // 3] if number // 3 < len(crafted) else damage(draw.choice(crafted[:4]), draw, MAGIC)
            )
            (places[kind] / "cifar-100-python.tar.gz").write_bytes(content)
        source = open_labelled("cifar100", places[kind], ImageOptions())
        return [source.load(split, ImageOptions()) for split in ("train", "test")]

    return read


def tars(files: dict[str, bytes]) -> list[bytes]:
    """Archives of the python batches: sound ones first, then such as leave the folder, link in circles, or never end."""

    def tar(names: dict[str, bytes], mode: str, form: int) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:
            for name, content in names.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    def headers(**values: object) -> bytes:
        info = tarfile.TarInfo("cifar-100-python/train")
        for name, value in values.items():
            setattr(info, name, value)
        return info.tobuf(tarfile.GNU_FORMAT)

    inside = {f"cifar-100-python/{name}": content for name, content in files.items()}
    sound = [tar(inside, mode, form) for mode in ("w", "w:gz") for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    outside = [
        {f"{prefix}{name}": content for name, content in files.items()}
        for prefix in ("../../../", "/etc/", "a\n\x1b[2J/")
    ]
    links = [
        headers(type=kind, linkname="train")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    ]
    sizes = [headers(size=size) for size in (1 << 30, (1 << 30) + 1, 1 << 60, -1)]
    kinds = [
        headers(type=kind, size=1 << 29)
        for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
    ]
    bombs = [gzip.compress(kind + bytes(1 << 29), 9) for kind in (kinds[0], kinds[2])]
    crowd = gzip.compress(headers(size=0, name="x") * 1_000_000, 9)
    sparse = gzip.compress(headers(type=tarfile.GNUTYPE_SPARSE, size=512) + bytes(1024), 9)
    return [
        *sound,
        *(tar(names, "w:gz", tarfile.PAX_FORMAT) for names in outside),
        *links,
        *sizes,
        *kinds,
        *bombs,
        crowd,
        sparse,
        gzip.compress(bytes(1 << 29), 9),
    ]


def clothes(folder: Path) -> Case:
    """Fashion-MNIST's IDX files, gzipped or not."""
    plain, zipped = fashion(folder / "plain", zipped=False), fashion(folder / "zipped")
    good = {path: path.read_bytes() for root in (plain, zipped) for path in root.iterdir()}
    bomb = gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 1_300_000, 28, 28) + bytes(1 << 28), 9)
    special = [bomb, gzip.compress(idx(np.zeros((1 << 24, 1, 1), np.uint8))), gzip.compress(b"")] + [
        struct.pack(">BBBBIII", 0, 0, 8, 3, *shape)
        for shape in ((2**32 - 1,) * 3, (2**31, 28, 28), (5_000_000, 28, 28), (0, 28, 28))
    ]

    def read(draw: random.Random, number: int) -> object:
        root = (plain, zipped)[number % 2]
        for path, content in good.items():
            if path.parent == root:
                path.write_bytes(damage(content, draw, special[1:]) if draw.random() < 0.4 else content)
        if number < 2 * len(special):
            next(path for path in good if path.parent == root and "train-images" in path.name).write_bytes(
                special[number // 2]
            )
        source = open_labelled("fashion-mnist", root, ImageOptions())
        return [source.load(split, ImageOptions()) for split in ("train", "test")]

    return read
