"""`fewshot-mcl doctor`: what there is here, and whether it works. Nothing is written but in a temporary directory, which goes."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from fewshot_mcl import __version__
from fewshot_mcl.errors import UserError

PACKAGE = "fewshot-mcl"
LITTLE, TOO_LITTLE = 2e9, 1e8  # bytes of memory or disk
SHORT = {"episodes": 8, "peers": 2, "way": 5, "shot": 1, "query": 5}  # what the self-test trains
CHANCE = 0.2  # of its 5-way episodes
CLASSES = {"train": 20, "val": 10, "test": 10}  # of glyphs, that it writes as pictures: all of them would take longer
PURPOSES = {  # of optional packages; others are named with their extra alone
    "matplotlib": "charts in pages", "scikit-learn": "maps of embeddings", "learn2learn": "its task sets, both ways",
    "timm": "backbones timm/NAME", "torchvision": "backbones torchvision/NAME, download of CIFAR-100 and Fashion-MNIST",
}  # fmt: skip
State = Literal["ok", "warning", "problem", "absent"]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        section: what it belongs to.
        state: "absent" is an optional package that is not installed.
        advice: what to do, where there is something to do.
    """

    section: str
    name: str
    state: State
    value: str
    advice: str = ""


def examine(begin: Callable[[str], None] = lambda section: None) -> Iterator[Line]:
    """Everything that can be looked at, one after another; what fails is a problem and stops nothing else.

    `begin` is told of each section before it is looked at.
    """
    for section, look in (
        ("versions", _versions), ("devices", _devices), ("room", _room), ("optional", _optional), ("self-test", _self_test),
    ):  # fmt: skip
        begin(section)
        try:
            yield from (Line(section, *each) for each in look())
        except (Exception, SystemExit) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            advice = "" if isinstance(error, UserError) else "Install again: pip install --force-reinstall fewshot-mcl"
            yield Line(section, section, "problem", f"failed: {reason}", advice)


Found = tuple[str, State, str, str]


def _versions() -> Iterator[Found]:
    yield PACKAGE, "ok", __version__, ""
    yield "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""
    for name in _required(None):
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, "ok", metadata.version(name), ""
            continue
        yield name, "problem", "not installed", f"pip install {name}"


def _required(extra: str | None) -> list[str]:
    """The distributions that an extra of this package asks for; None: that it always needs."""
    names = []
    for line in metadata.requires(PACKAGE) or []:
        own = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if (own[1] if own else None) == extra:
            names.append(re.split(r"[^\w.-]", line, maxsplit=1)[0])
    return names


def _devices() -> Iterator[Found]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    yield (
        "processor",
        "ok",
        f"{platform.processor() or platform.machine()}, {usable} of {os.cpu_count()} cores usable",
        "",
    )
    many = threads > usable
    yield (
        "threads", "warning" if many else "ok", f"torch computes with {threads}",
        f"more threads than cores wait for each other: export OMP_NUM_THREADS={usable}" if many else "",
    )  # fmt: skip
    if not torch.cuda.is_available():
        yield "GPU", "ok", "none that torch can use: everything runs on the processor", ""
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        yield f"GPU {i}", "ok", f"{torch.cuda.get_device_name(i)}, {_size(free)} of {_size(total)} free", ""


def _room() -> Iterator[Found]:
    import torch

    from fewshot_mcl.data.store import memory_bytes
    from fewshot_mcl.training.budget import available_memory

    memory = available_memory(torch.device("cpu"))
    advice = "Close other programs, or train with fewer --peers and a smaller --image-size."
    yield _enough("memory", memory, f"{_size(memory)} of {_size(memory_bytes())} available", advice)
    for name, folder in (("disk here", Path.cwd()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        other = (
            "Work in a folder on another disk." if name == "disk here" else "Set TMPDIR to a folder on another disk."
        )
        if os.access(folder, os.W_OK):
            yield _enough(name, free, f"{_size(free)} free in {folder}", other)
        else:
            yield (
                name,
                "warning",
                f"{folder} cannot be written to",
                "Work elsewhere, or give runs a place with --out DIR.",
            )


def _enough(name: str, bytes: int, value: str, advice: str) -> Found:
    state: State = "problem" if bytes < TOO_LITTLE else "warning" if bytes < LITTLE else "ok"
    return name, state, value, "" if state == "ok" else advice


def _optional() -> Iterator[Found]:
    extras = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    homes: dict[str, list[str]] = {}
    for extra in extras:
        for name in _required(extra):
            homes.setdefault(name, []).append(extra)
    for name, own in sorted(homes.items()):
        purpose = f"for {PURPOSES[name]}" if name in PURPOSES else f"for the extra {' or '.join(own)}"
        try:
            yield name, "ok", f"{metadata.version(name)}, {purpose}", ""
        except metadata.PackageNotFoundError:
            yield name, "absent", f"not installed, {purpose}", f"pip install '{PACKAGE}[{own[0]}]'"


def _self_test() -> Iterator[Found]:
    start = time.monotonic()
    yield _timed("forms of the contrast", _forms_agree)
    with tempfile.TemporaryDirectory(prefix="fewshot-mcl-doctor-") as folder:
        pictures, run = Path(folder) / "characters", Path(folder) / "run"
        yield _timed("pictures", lambda: _draw(pictures))
        yield _timed("training", lambda: _train(run, pictures))
        yield _timed("checkpoint", lambda: _read_back(run))
        yield _timed("evaluation", lambda: _evaluate(run))
    yield "in all", "ok", f"the self-test took {time.monotonic() - start:.1f} s", ""


def _timed(name: str, test: Callable[[], str]) -> Found:
    start = time.monotonic()
    said = test()
    return name, "ok", f"{said} ({time.monotonic() - start:.1f} s)", ""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(what)


def _forms_agree() -> str:
    """Both forms of the contrast, with all negatives named and with all multiplied, give one loss and one gradient."""
    import torch

    from fewshot_mcl.objectives.candidates import Gathered
    from fewshot_mcl.objectives.contrast_plan import ContrastPlan
    from fewshot_mcl.objectives.multi_view import contrast_pairs

    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 8, 16), (3, 60, 16))  # peers, images or rows, width
    values = [torch.nn.functional.normalize(torch.randn(s, generator=generator), dim=-1) for s in shapes]
    embeddings, banks = values[0].requires_grad_(), values[1]
    labels, positives = torch.arange(60) % 6, torch.arange(8)
    allowed = labels[positives][:, None] != labels
    ids = allowed.nonzero()[:, 1].view(8, 50)
    gathered = Gathered(ContrastPlan("gather", 2, 16, True, "self-test", 0), ids)
    results = []
    for negatives in (gathered, None):
        loss = contrast_pairs(embeddings, banks, positives, negatives, 0.2, allowed=allowed, count=50)[0].sum()
        results.append((loss, *torch.autograd.grad(loss, embeddings)))
    for one, other in zip(*results):
        _require(torch.allclose(one, other, rtol=1e-4, atol=1e-5), "two forms of the contrast give different values")
    return "gathered and dense give equal losses and gradients"


def _draw(folder: Path) -> str:
    """Some characters of glyphs as folders of pictures, which are the same when they are read again."""
    import torch
    from PIL import Image

    from fewshot_mcl.data.sources import ImageOptions, open_source

    written = 0
    for split, classes in CLASSES.items():
        store = open_source("glyphs").load(split, ImageOptions())
        chosen = torch.linspace(0, store.num_classes - 1, classes).long().tolist()  # of every script
        for label in chosen:
            place = folder / split / f"{split}-{label:03d}"
            place.mkdir(parents=True)
            for number, pixels in enumerate(store.images[store.labels == label]):
                Image.fromarray(pixels[0].numpy()).save(place / f"{number:02d}.png")
        images = store.images[torch.isin(store.labels, torch.tensor(chosen))]
        again = open_source(str(folder)).load(split, ImageOptions(image_size=28, color="grey"))
        _require(torch.equal(again.images, images), "a picture is not the same when it is read again")
        written += len(images)
    return f"{written} characters of glyphs written as PNG and read back, pixel by pixel"


def _train(path: Path, pictures: Path) -> str:
    from rich.console import Console

    from fewshot_mcl.config import resolve
    from fewshot_mcl.training import session

    settings = ["val_every=8", "val_episodes=20", "log_every=1"]
    own = {"data": str(pictures), "image_size": 28, "color": "grey", "seed": 0}
    config = resolve("default", {**own, **SHORT}, settings)
    outcome = session.train(config, path, False, Console(file=io.StringIO()))
    lines = (outcome.run.path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    _require(len(lines) > SHORT["episodes"], "training wrote no metrics")
    return f"{SHORT['episodes']} episodes of {config.method} on {CLASSES['train']} of them with {SHORT['peers']} peers"


def _read_back(path: Path) -> str:
    import torch

    from fewshot_mcl.evaluation.restore import load_deployed, load_peers
    from fewshot_mcl.runs import Run

    run = Run.open(path)
    peers, state = load_peers(run, "best", torch.device("cpu"))
    network, _ = load_deployed(run)
    _require(not run.notes, "the checkpoint was damaged on the way to the disk")
    own = peers.deployed().state_dict()
    same = all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    _require(same, "the deployed network is not the one of its checkpoint")
    return f"that of episode {state['episode']} written, read back, its SHA-256 right"


def _evaluate(path: Path) -> str:
    from fewshot_mcl.evaluation.session import Protocol, evaluate_run
    from fewshot_mcl.runs import Run

    content = evaluate_run(Run.open(path), Protocol(way=5, shots=(1,), query=15, episodes=200, seed=0))
    mean, ci95 = next((r["mean"], r["ci95"]) for r in content["results"] if r["network"] == content["deployed"])
    _require(mean - ci95 > CHANCE, f"accuracy {100 * mean:.1f} % on glyphs is no better than guessing")
    of = f"of {CLASSES['test']} test characters"
    return f"{100 * mean:.1f} ± {100 * ci95:.1f} % on 200 5-way 1-shot episodes, 15 queries, {of}; chance 20"


def _size(bytes: float) -> str:
    return f"{bytes / 1e9:,.1f} GB"
