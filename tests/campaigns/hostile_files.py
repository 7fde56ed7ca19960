# ruff: noqa: E501 (tables of bytes)
"""Lists, packed stores and the files of run directories to be fuzzed."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from builders import class_folders, lists
from guarded import Case
from mutation import MAGIC, altered, damage

from fewshot_mcl.config import resolve
from fewshot_mcl.data.check import convert
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.restore import load_deployed, load_peers
from fewshot_mcl.networks.external import External, _load
from fewshot_mcl.runs import Run, files
from fewshot_mcl.runs.tensors import read_tensors, write_tensors

EIGHT = ImageOptions(image_size=8)
WORDS = ["a,b,c", "filename,label", "class_name,image_name", "a", "b", "../a", "a/../../b", "\x1b[2J", "0.png,a", "1.png,b", "a,0.png",
         "/etc/passwd,a", "..,x", "a\x00b", '"a\nb"', '"', "\ufeff", "é", "", "a" * 200_000, "," * 3000, "0.png,..", "./0.png,a"]  # fmt: skip


def class_lists(folder: Path) -> Case:
    """`SPLIT.csv` beside class folders."""
    root = class_folders(folder / "lists", "abcdef", count=2)
    good = {"train": "filename,label 0.png,a 1.png,a 0.png,b", "val": "c d", "test": "label e f"}
    texts = {split: text.replace(" ", "\n").encode() for split, text in good.items()}
    bombs = [
        b"," * 60_000_000,
        b"a\n" * 30_000_000,
        b"\n" * 60_000_000,
        b'"' + b"a" * 60_000_000,
        b'"a\n",' * 12_000_000,
        b"a" * 60_000_000,
    ]

    def read(draw: random.Random, number: int) -> object:
        for split, text in texts.items():
            lines = [draw.choice(WORDS) for _ in range(draw.randrange(6))] if draw.random() < 0.5 else []
            content = "\n".join(lines).encode() if lines else damage(text, draw, MAGIC) if draw.random() < 0.7 else text
            (root / f"{split}.csv").write_bytes(content)
        if number < len(bombs):
            (root / "train.csv").write_bytes(bombs[number])
        source = open_source(str(root), options=EIGHT)
        return [source.load(split, EIGHT) for split in source.splits]

    lists(root, **good)
    return read


def packed(folder: Path) -> Case:
    """A packed store's header, its arrays, and the notes of a packing that was interrupted."""
    root, whole, partial = folder / "store", folder / "whole", folder / ".again.partial"
    class_folders(folder / "pictures", "abcdef", count=2)
    convert(str(folder / "pictures"), None, whole, EIGHT)
    header = json.loads((whole / "store.json").read_text())
    names = ["store.json", "train/images.npy", "train/labels.npy"]
    good = {name: (whole / name).read_bytes() for name in names}
    plan = {
        "source": "pictures",
        "splits": {s: {"shape": each["shape"], "resize": each["resize"]} for s, each in header["splits"].items()},
    }
    progress = {"plan": plan, "chunks": {s: [] for s in header["splits"]}, "complete": [], "notes": []}
    shutil.copytree(whole, root)
    made = arrays()

    def read(draw: random.Random, number: int) -> object:
        for name in names:
            (root / name).write_bytes(good[name])
        if number % 5 == 4:
            return unfinished(draw)
        name = draw.choice(names)
        content = damage(good[name], draw, [*MAGIC, *made[:-3]])
        if name == "store.json" and draw.random() < 0.8:
            content = json.dumps(altered(header, draw)).encode()
        elif name != "store.json" and draw.random() < 0.3:
            content = draw.choice(made)
        (root / name).write_bytes(content)
        source = open_source(str(root))
        source.verify()  # type: ignore[attr-defined]
        return [source.load(split, ImageOptions(memory_share=draw.choice((0.5, 1e-9)))) for split in source.splits]

    def unfinished(draw: random.Random) -> object:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder / "again", ignore_errors=True)
        partial.mkdir()
        state = json.dumps(altered(progress, draw)).encode()
        (partial / "progress.json").write_bytes(damage(state, draw, MAGIC) if draw.random() < 0.4 else state)
        return convert(str(folder / "pictures"), None, folder / "again", EIGHT)

    return read


def arrays() -> list[bytes]:
    """Array files of other types and shapes, such as lie about them, and what is no array at all."""
    found = []
    for array in (
        np.zeros(3),
        np.array([1 + 2j]),
        np.array([{"a": 1}], object),
        np.array([(1, 2)], "i4,f4"),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.array("x"),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(buffer.getvalue())
    for shape in (
        "(99999999999, 3, 8, 8)",
        "(-1, 3, 8, 8)",
        f"({1 << 70},)",
        "()",
        "(0, 3, 8, 8)",
        "(True, 2)",
        "'x'",
        "(1.5,)",
    ):
        for kind in ("'|u1'", "'<i8'", "'|O'", "'V0'", "[('a', 'u1')] * 9"):
            text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
            found.append(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(64))
    zipped = io.BytesIO()
    np.savez(zipped, a=np.zeros(3))
    deep = b"(" * 60_000 + b"\n"
    return [*found, zipped.getvalue(), b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\1\0" + len(deep).to_bytes(2, "little") + deep,
            b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(1000), b"\x93NUMPY\3\0\xff\xff\xff\x7f" + bytes(1_000_000)]  # fmt: skip


def json_files(folder: Path) -> Case:
    """`read_json` of a run's files."""
    path = folder / "x.json"
    value = {"a": [1, 2.5, "x"], "b": {"c": None, "d": ["e"] * 3}, "e": "\u2026"}
    files.write_json(path, value)
    good = path.read_bytes()
    half = files.MOST_BYTES // 2
    bombs = [b"[" * half, b'{"a":' * (half // 5), b"[" + b"[]," * (half // 3) + b"[]]", b"[" + b"{}," * (half // 3) + b"0]",
             b'"' + b"a" * half + b'"', b"9" * half, b'{"schema":' + b"9" * 5000 + b"}", b"-" * half, b'{"schema": 1e999}', b'{"schema": NaN}',
             b"{" + b",".join(b'"%x":{}' % i for i in range(2_000_000)) + b"}", bytes(files.MOST_BYTES + 1), b'{"schema":1,"a":"\\ud800"}',
             b'{"schema": 2, "check": ""}', b'{"schema": 2, "check": []}', b'{"schema": 2, "check": "\\ud800"}', b"{}", b"[]", b"null", b"\xff\xfe"]  # fmt: skip

    def read(draw: random.Random, number: int) -> object:
        path.write_bytes(bombs[number] if number < len(bombs) else damage(good, draw, MAGIC))
        content = files.read_json(path, "a")
        assert number < len(bombs) or content == {"schema": files.SCHEMA, **value}, "another content passed the check"
        return content

    return read


def safetensors(folder: Path) -> Case:
    """`read_tensors` of a file whose SHA-256 is as its manifest says."""
    path = folder / "x.safetensors"
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.zeros(0),
        "c": torch.ones(3, dtype=torch.int64),
        "d": torch.tensor(True),
    }
    write_tensors(path, tensors)
    good = path.read_bytes()
    size = int.from_bytes(good[:8], "little")
    header, body = json.loads(good[8 : 8 + size]), good[8 + size :]

    def built(value: object, rest: bytes = body) -> bytes:
        text = json.dumps(value).encode()
        return len(text).to_bytes(8, "little") + text + rest

    def one(dtype: str, shape: list[object], offsets: list[object], rest: bytes = bytes(64)) -> bytes:
        return built({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, rest)

    crowd = {f"{i:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(150_000)}
    bombs = [
        built(crowd, b""),
        built({"__metadata__": {"k": "v" * 10_000_000}, **header}),
        one("F32", [1 << 62, 4, 0], [0, 0]),
        one("F32", [1 << 63], [0, 64]),
    ]
    bombs += [(1 << bits).to_bytes(8, "little") + body for bits in (20, 24, 25, 40, 63)] + [
        b"",
        b"\0",
        bytes(8),
        bytes(16),
    ]
    bombs += [
        one(kind, [64 // width], [0, 64])
        for kind, width in (
            ("F8_E4M3", 1),
            ("F8_E5M2", 1),
            ("F4", 1),
            ("U64", 8),
            ("C64", 8),
            ("X", 1),
            ("BOOL", 1),
            ("F6_E2M3", 1),
        )
    ]
    bombs += [
        built({"a": header["a"], "x": header["a"]}),
        one("F32", [16], [64, 0]),
        one("F32", [-1], [0, 64]),
        one("F32", [], [0, 4], bytes(4)),
    ]
    bombs += [
        len(text).to_bytes(8, "little") + text
        for text in (b"[" * 16_000_000, b'{"a":' * 3_000_000, b"{" + b'"a":1,' * 2_000_000 + b'"b":1}')
    ]

    def read(draw: random.Random, number: int) -> object:
        content = bombs[number] if number < len(bombs) else damage(good, draw, MAGIC)
        if number >= len(bombs) and draw.random() < 0.5:
            content = built(altered(header, draw))
        path.write_bytes(content)
        return read_tensors(path, hashlib.sha256(content).hexdigest(), "x.json", "Put it back.")

    return read


def toml(folder: Path) -> Case:
    """`resolve` of a configuration file."""
    path = folder / "x.toml"
    value = resolve("default")
    good = value.to_toml().encode()
    other = [
        good,
        b"[objective]\n",
        b"[[when]]\nmethod = ['mcl']\n[when.then]\nway = 3\n",
        b"x = {a = {a = {}}}\n",
        b"a.b.c = 1\n",
        *MAGIC,
    ]
    bombs = [b"x = " + b"[" * 60_000, b"x = " + b"{a=" * 20_000, b"a." * 20_000 + b"a = 1", b"[" + b"a." * 20_000 + b"a]", b"x = '" + b"a" * 10_000_000 + b"'",
             b"x = " + b"9" * 60_000, b"x = 0x" + b"f" * 60_000, b"x = 1e" + b"9" * 60_000, b"".join(b"k%d = 1\n" % i for i in range(30_000)), b"[[a]]\n" * 30_000,
             b"#" * 10_000_000, b"x = [" + b"1," * 100_000 + b"]", b"way = inf", b"way = 0x" + b"f" * 20_000, b"way = 1979-05-27", bytes(1 << 24), b"when = 3", b"when = [3]",
             b"[[when]]\nway = 3", b"[[when]]\nway = 3\n[when.then]\nx = 3", b"[[when]]\nthen = 3", b"task = []", b"task = {}", b"method = {}", b"objective = []",
             b"[objective]\nT = {}", b"data = ''", b"data = '\\u0000'", b"data = '" + b"a" * 5000 + b"'", b"data = 3", b"root = '\\u0000'"]  # fmt: skip

    def read(draw: random.Random, number: int) -> object:
        path.write_bytes(bombs[number] if number < len(bombs) else damage(good, draw, other))
        return resolve(str(path))

    return read


def weights(folder: Path) -> Case:
    """A library's weights, as safetensors or as torch writes them."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    state = model.state_dict()
    good: dict[str, bytes] = {}
    for name, options in (("new.pth", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
        torch.save(state, folder / name, **options)
        good[name] = (folder / name).read_bytes()
    write_tensors(folder / "x.safetensors", dict(state))
    good["x.safetensors"] = (folder / "x.safetensors").read_bytes()
    odd = []
    for value in (
        [1],
        3,
        {"a": 1},
        {1: torch.zeros(1)},
        {"state_dict": 3},
        {"0.weight": "x"},
        torch.zeros(2),
        {"0.weight": torch.zeros(9)},
    ):
        torch.save(value, folder / "odd.pt")
        odd.append((folder / "odd.pt").read_bytes())
    assert External

    def read(draw: random.Random, number: int) -> object:
        name = draw.choice(sorted(good))
        content = odd[number] if number < len(odd) else damage(good[name], draw, list(good.values()))
        (folder / name).write_bytes(content)
        _load(model, folder / name, "1", "the network")
        return model

    return read


def cards(folder: Path, run: Path) -> Case:
    """What the files of a run say where their own check holds: the network's card, the data, the manifests."""
    names = ("model.json", "data.json", "checkpoints/best.json")
    root = Path(shutil.copytree(run, folder / "run"))
    good = {name: (root / name).read_bytes() for name in names}
    values = {name: {k: v for k, v in json.loads(good[name]).items() if k not in ("schema", "check")} for name in names}
    values["checkpoints/best.json"].pop("belongs_to")

    def read(draw: random.Random, number: int) -> object:
        for name in names:
            (root / name).write_bytes(good[name])
        name = names[number % len(names)]
        value = altered(values[name], draw)
        try:
            files.write_json(root / name, value if isinstance(value, dict) else {"a": value})
        except (ValueError, TypeError):  # no JSON can say this
            raise UserError("not written") from None
        if name == "model.json":
            return load_deployed(Run.open(root))
        best = dict(values["checkpoints/best.json"])
        if name == "data.json":
            files.write_json(root / "checkpoints/best.json", best)
        return load_peers(Run.open(root), "best", torch.device("cpu"))

    return read
