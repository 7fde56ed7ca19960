"""ImageNet on up to 64 GPUs, on paper: an estimate of which only the drawing of negatives is timed; part of processes.py."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from functools import cache

import harness
import torch
from torch import nn

from fewshot_mcl.networks import PeerNetwork
from fewshot_mcl.networks.batch_norm import SynchronisedBatchNorm
from fewshot_mcl.networks.counting import count
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.objectives.contrast import MultiViewContrast
from fewshot_mcl.objectives.contrast_plan import choose_form
from fewshot_mcl.training.costs import DATA, FLOAT, ONE, START, Facts, Parts, Work, costs, exchanges
from fewshot_mcl.training.parts import channels_of, keeping, trunk_of

PEERS, ROWS, CLASSES, SIDE, STORED, WIDTH, NEGATIVES, SHARED = 4, 1_281_167, 1000, 224, 256, 128, 16384, 4096
RATE, MEMORY, LINK, HOST = (
    40e12,
    1.5e12,
    25.0,
    5e9,
)  # multiplications or additions a second; bytes a second; GB/s; bytes a second
GPUS = (1, 4, 8, 32, 64)
CASES = ((128, "other-class"), (128, "shared"), (1024, "shared"))  # images of a batch, and which negatives they have


def network(device: str = "meta") -> PeerNetwork:
    """Four ResNet-34 as the published code shares them; on "meta" they have shapes and no memory."""
    with torch.device(device):
        return PeerNetwork("resnet34", PEERS, CLASSES, "paper-code", image_size=SIDE)


@cache
def multiply_adds() -> tuple[int, int]:
    """Of one image, by all peers and by their trunk."""
    peers = network("cpu")
    return count(peers, SIDE).multiply_adds, count(trunk_of(peers), SIDE).multiply_adds


def facts_of(peers: PeerNetwork, images: int) -> Facts:
    """What bytes depend on."""
    trunk = trunk_of(peers)
    shared, everything = (sum(p.numel() for p in each.parameters()) for each in (trunk, peers))
    norms, trunk_norms = channels_of(peers), channels_of(trunk)
    return Facts(
        PEERS, images, ROWS, WIDTH,
        outputs={"features": peers.feature_dim, "logits": CLASSES, "stem": peers.stem_dim or 0},
        trunk=shared, own=(everything - shared) // PEERS, heads=PEERS * (peers.feature_dim + 1) * WIDTH, states=1,
        trunk_norms=tuple(trunk_norms), own_norms=tuple(norms[len(trunk_norms) :]),
    )  # fmt: skip


@cache
def kept(images: int, trunk: bool = False, several: bool = False) -> int:
    """Bytes that a forward pass keeps for the backward pass; counted on shapes."""
    net: nn.Module = trunk_of(network()) if trunk else network()
    for module in net.modules() if several else ():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm
            module.always = True  # type: ignore[assignment]
    with keeping(net) as storages:
        out = net.train()(torch.empty(images, 3, SIDE, SIDE, device="meta"))
    del out
    return sum(storages.values())


@cache
def drawing(images: int, negatives: str) -> float:
    """Seconds in which this machine draws the negatives of a batch (median of three)."""
    objective = create_objective(
        "mcl", num_peers=2, num_classes=CLASSES, feature_dim=1, labels=torch.arange(ROWS) % CLASSES, embedding_dim=1,
        num_negatives=NEGATIVES, negatives=negatives, shared_rows=SHARED,
    )  # fmt: skip
    contrast = next(each for each in objective.modules() if isinstance(each, MultiViewContrast))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        if negatives == "shared":
            contrast.draw_shared()
        else:
            contrast.draw(torch.arange(images))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def banks_seconds(images: int, negatives: str) -> float:
    """Of the banks in a step.

    "other-class": K rows of every bank are read for each image, once for the scores and once for the gradient:
    2 * 4 M B K D / MEMORY. "shared": R rows of every bank are multiplied with the images of all other peers, twice:
    2 * 2 M (M - 1) B R D / RATE.
    """
    if negatives == "shared":
        return 4 * PEERS * (PEERS - 1) * images * SHARED * WIDTH / RATE
    return 2 * FLOAT * PEERS * images * NEGATIVES * WIDTH / MEMORY


def parts_of(facts: Facts, processes: int, negatives: str) -> Parts:
    """A GPU's step by part.

    * networks: forward, and twice as much backward: 3 * 2 * multiply-adds of an image * images / RATE.
    * objective: drawing its negatives, on the host, and the banks.
    * update: parameters, gradients and momentum read, two of them written: 5 * 4 P / MEMORY.
    * batch: stored pixels / HOST.
    """
    images, part = facts.images, math.ceil(facts.images / processes)
    whole, trunk = multiply_adds()
    given = None if negatives == "shared" else NEGATIVES
    plan = choose_form(torch.empty(PEERS, ROWS, WIDTH, device="meta"), images, given=given, shared=SHARED)
    banks = banks_seconds(images, negatives)
    return Parts(
        networks=Work(6 * whole * images / RATE, kept(images)),
        trunk=Work(6 * trunk * images / RATE, kept(images, trunk=True)),
        split=Work(6 * whole * part / RATE, kept(part, several=True)),
        objective=Work(drawing(images, negatives) + banks, plan.bytes),
        data=images * 3 * STORED**2 / HOST, update=5 * FLOAT * facts.parameters / MEMORY, divided=banks,
    )  # fmt: skip


def table(images: int, negatives: str) -> Iterator[str]:
    """All ways to share a batch of so many images."""
    facts, rows = facts_of(network(), images), []
    for processes in GPUS:
        for cost in costs(facts, parts_of(facts, processes, negatives), processes, LINK):
            if (cost.way == ONE) == (processes == 1):
                s = {name: 1000 * value for name, value in cost.seconds.items()}
                epoch = math.ceil(facts.rows / images) * cost.step / 60
                first = rows[0][-3] if rows else 1000 * cost.step
                rows.append([
                    str(processes), cost.way, sum(cost.memory.values()) / 1e9, sum(cost.sent.values()) / 1e6, s["networks"],
                    s["objective"], s["data"] + s["update"], s.get("exchange", 0.0), 1000 * cost.step, first / (1000 * cost.step),
                    epoch,
                ])  # fmt: skip
    columns = [
        "GPUs",
        "way",
        "GB each",
        "MB sent",
        *(f"{part}, ms" for part in ("networks", "objective", "batch and update")),
    ]
    columns += ["exchange, ms", "a step, ms", "times as fast", "min an epoch"]
    which = f"{SHARED:,} shared rows" if negatives == "shared" else f"{NEGATIVES:,} negatives drawn for each"
    yield f"### Batches of {images:,} images, {which}"
    yield harness.table(columns, rows)


def worked(images: int, negatives: str) -> Iterator[str]:
    """The way from the figures of the network to one line of the table: whole banks."""
    processes, facts = GPUS[-1], facts_of(network(), images)
    parts, adds = parts_of(facts, processes, negatives), multiply_adds()[0]
    drawn, part = drawing(images, negatives), math.ceil(images / processes)
    lines = [
        f"counted: {facts.parameters:,} parameters (trunk {facts.trunk:,}, each peer {facts.own:,}, heads {facts.heads:,}), "
        f"{adds / 1e9:.2f} G multiply-adds an image, {len(facts.trunk_norms) + len(facts.own_norms)} batch norms",
        f"networks: 6 x {adds / 1e9:.2f} G x {part} images / {RATE / 1e12:g} T = {1000 * parts.split.seconds:.2f} ms",
        f"objective: {1000 * drawn:.1f} ms to draw negatives (timed here) + 2 x 4 bytes x {PEERS} x {images} x {NEGATIVES:,} x "
        f"{WIDTH} / {MEMORY / 1e12:g} TB/s = {1000 * parts.objective.seconds:.1f} ms; sharded banks divide the latter",
        f"batch: {images} x 3 x {STORED}² bytes / {HOST / 1e9:g} GB/s / {processes} = {1000 * parts.data / processes:.2f} ms; "
        f"update: 5 x 4 bytes x {facts.parameters:,} / {MEMORY / 1e12:g} TB/s = {1000 * parts.update:.2f} ms",
    ]
    lines += [
        f"exchange, {name}: {each.payload / 1e6:.2f} MB {'gathered' if each.gathered else 'summed'}, "
        f"{each.sent(processes) / 1e6:.2f} MB sent / {LINK:g} GB/s + {each.calls} x {1e6 * START:.0f} us = "
        f"{1000 * each.seconds(processes, LINK):.2f} ms"
        for name, each in exchanges(facts, processes, DATA).items()
    ]
    yield f"Step by step, {processes} GPUs, data parallel, batches of {images:,}, {NEGATIVES:,} negatives drawn for each:"
    yield "\n".join(f"* {line}" for line in lines)


def sections() -> Iterator[str]:
    """The parts of a report."""
    yield "## On paper: ImageNet, four ResNet-34, up to 64 GPUs"
    yield (
        "**An estimate: nothing of it was run on a GPU.** Counted: parameters, multiply-adds, batch norms, bytes kept. Timed, "
        "on the machine above: drawing the negatives, which the host does, in every process those of all images. Assumed: a GPU "
        f"does {RATE / 1e12:g} T multiplications or additions a second in the networks however few its images are, reads banks "
        f"at {MEMORY / 1e12:g} TB/s and has a link of {LINK:g} GB/s; its host hands over images at {HOST / 1e9:g} GB/s; an "
        f"exchange takes {1e6 * START:.0f} us to start; nothing overlaps. The formulas are in `fewshot_mcl/training/costs.py`."
    )
    for case in CASES:
        yield from table(*case)
    yield from worked(*CASES[0])
