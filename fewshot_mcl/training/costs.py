"""What a step costs that several processes share: memory of each, bytes exchanged, seconds. By arithmetic alone.

What a machine must tell for it, seconds and bytes of a step's parts, is measured in `parts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FLOAT = 4  # bytes
BANDWIDTH = 10.0  # GB/s of each process's link, where the user says nothing
START = 20e-6  # seconds before an exchange flows
BUCKET = 25 << 20  # bytes of gradients that DistributedDataParallel sums at a time

ONE, DATA, SHARDED, PEERS = "one process", "data parallel", "sharded banks", "peer parallel"


@dataclass(frozen=True)
class Facts:
    """What bytes depend on. Numbers, where nothing else is said.

    Attributes:
        peers: M.
        images: of a step, B.
        rows, width: of each peer's memory bank, N and D; 0 without banks.
        outputs: how wide what the networks give of an image is: "features" and "logits" of every peer, "stem" of their
            trunk; 0 for what they do not give.
        trunk, own, heads: parameters that all peers share, of one peer beside them, of the objective.
        states: that the optimizer keeps for each parameter.
        trunk_norms, own_norms: channels of the batch norms whose statistics are of all processes' images, one entry for each
            time that one is computed in a step: in the trunk, and in all peers beside it.
    """

    peers: int
    images: int
    rows: int
    width: int
    outputs: dict[str, int]
    trunk: int
    own: int
    heads: int
    states: int
    trunk_norms: tuple[int, ...]
    own_norms: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.trunk + self.peers * self.own + self.heads

    def values(self, name: str, images: int, peers: int) -> int:
        """Numbers of one of `outputs` for so many images and peers; of the trunk there is one."""
        return self.outputs[name] * images * (1 if name == "stem" else peers)


@dataclass(frozen=True)
class Work:
    """Of a part of a step: seconds, forward and backward, and bytes that are kept from the one to the other."""

    seconds: float
    kept: int = 0


@dataclass(frozen=True)
class Parts:
    """One process's step by part.

    Attributes:
        networks, trunk: on all B images of a step; the trunk is a part of the networks.
        split: the networks on ceil(B / N) images, batch norm computed as it is over processes.
        objective: losses and the contrast, of all B images.
        data, update: seconds of making the batch, and of the optimizer.
        divided: seconds of the objective that sharded banks divide by N, where they are known.
    """

    networks: Work
    trunk: Work
    split: Work
    objective: Work
    data: float
    update: float
    divided: float = 0.0


@dataclass(frozen=True)
class Exchange:
    """What processes exchange in one step for one purpose.

    Attributes:
        payload: bytes that each process hands over.
        calls: in how many exchanges.
        gathered: each gets the payloads of all; otherwise their sum.
    """

    payload: int
    calls: int
    gathered: bool = False

    def sent(self, processes: int) -> float:
        """Bytes that each of N processes sends in a ring: of a sum 2 (N - 1) / N times the payload, of a gather N - 1 times."""
        return self.payload * (processes - 1) * (1 if self.gathered else 2 / processes)

    def seconds(self, processes: int, bandwidth: float) -> float:
        """At `bandwidth` GB/s: calls * START + sent / bandwidth."""
        return self.calls * START + self.sent(processes) / (bandwidth * 1e9)


@dataclass(frozen=True)
class Cost:
    """Of one way to share a step.

    Attributes:
        way: one of `ONE`, `DATA`, `SHARDED`, `PEERS`.
        memory: bytes of each process, by part.
        sent: bytes that each process sends in a step, by part.
        seconds: of a step, by part.
        calls: exchanges in a step.
    """

    way: str
    memory: dict[str, float]
    sent: dict[str, float]
    seconds: dict[str, float]
    calls: int = 0

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Several:
    """What N processes would take.

    Attributes:
        bandwidth: GB/s.
        steps, unit: how many steps are an epoch, or 1,000 episodes, and what they are called.
        costs: `ONE` first.
    """

    processes: int
    bandwidth: float
    steps: int
    unit: str
    costs: tuple[Cost, ...]


def costs(facts: Facts, parts: Parts, processes: int, bandwidth: float) -> tuple[Cost, ...]:
    """Of one process, and of each way to share its step by N: peer parallel where N <= M, sharded banks where there are any."""
    ways = [DATA, *[SHARDED] * (facts.rows > 0), *[PEERS] * (1 < processes <= facts.peers)]
    found = [Cost(ONE, memory(facts, parts, 1, ONE), {}, seconds(facts, parts, 1, ONE))]
    for way in ways:
        parted = exchanges(facts, processes, way)
        taken = seconds(facts, parts, processes, way)
        taken["exchange"] = sum(each.seconds(processes, bandwidth) for each in parted.values())
        sent = {name: each.sent(processes) for name, each in parted.items()}
        calls = sum(each.calls for each in parted.values())
        found.append(Cost(way, memory(facts, parts, processes, way), sent, taken, calls))
    return tuple(found)


def memory(facts: Facts, parts: Parts, processes: int, way: str) -> dict[str, float]:
    """Bytes of one process.

    * parameters: 4 P; P = trunk + M own + heads, with peers ceil(M / N) in the place of M.
    * gradients: as many, and those that are summed over processes once more, in the buffers that they are summed in.
    * optimizer: 4 P times its states.
    * banks: 4 M N D; sharded, ceil(N / processes) of the N rows.
    * activations: what is kept of the networks for the backward pass (of ceil(B / N) images, or of the trunk and of
      ceil(M / N) peers), and what the objective keeps and works in. What single operations work in comes on top.
    """
    held = _peers_held(facts, processes, way)
    learned = FLOAT * (facts.trunk + held * facts.own + facts.heads)
    rows = math.ceil(facts.rows / processes) if way == SHARDED else facts.rows
    summed = FLOAT * (facts.trunk + facts.heads) if way == PEERS else learned * (way != ONE)
    return {
        "parameters": learned, "gradients": learned + summed, "optimizer": learned * facts.states,
        "banks": FLOAT * facts.peers * rows * facts.width,
        "activations": _networks(facts, parts, processes, way, lambda w: w.kept) + parts.objective.kept,
    }  # fmt: skip


def seconds(facts: Facts, parts: Parts, processes: int, way: str) -> dict[str, float]:
    """Of a step without its exchanges.

    Networks: as timed on ceil(B / N) images; with peers, the trunk, and ceil(M / N) / M of what is not trunk. The objective is
    computed whole by each process, but for what sharded banks divide. Making the batch is divided by N, but not with peers, of
    which each process sees all images; the update is not, but with peers it is only of what the process has.
    """
    held = _peers_held(facts, processes, way)
    share = (facts.trunk + held * facts.own + facts.heads) / facts.parameters
    spared = parts.divided * (1 - 1 / processes) * (way == SHARDED)
    return {
        "networks": _networks(facts, parts, processes, way, lambda w: w.seconds), "objective": parts.objective.seconds - spared,
        "data": parts.data / (1 if way == PEERS else processes), "update": parts.update * share,
    }  # fmt: skip


def _peers_held(facts: Facts, processes: int, way: str) -> int:
    return math.ceil(facts.peers / processes) if way == PEERS else facts.peers


def _networks(facts: Facts, parts: Parts, processes: int, way: str, of: Callable[[Work], float]) -> float:
    """Seconds or bytes of the networks in one process."""
    if way == ONE:
        return of(parts.networks)
    if way == PEERS:
        beside = of(parts.networks) - of(parts.trunk)
        return of(parts.trunk) + beside * _peers_held(facts, processes, way) / facts.peers
    return of(parts.split)


def exchanges(facts: Facts, processes: int, way: str) -> dict[str, Exchange]:
    """What N processes exchange in a step, by purpose."""
    if way == PEERS:
        return _of_peers(facts, processes)
    found = _of_data(facts, processes)
    return found | _of_banks(facts) if way == SHARDED else found


def _of_data(facts: Facts, processes: int) -> dict[str, Exchange]:
    """Data parallel.

    * gradients: 4 P summed, a bucket at a time.
    * outputs: 4 ceil(B / N) (M F + M C + S) gathered: features, logits and stem of a process's images.
    * batch norm: of each with c channels, 4 (2 c + 1) gathered: means, squares about them, and a count.
    * its gradients: N times as much summed: each process has those of all processes' statistics.
    """
    part = math.ceil(facts.images / processes)
    given = [name for name, width in facts.outputs.items() if width]
    out = FLOAT * sum(facts.values(name, part, facts.peers) for name in given)
    norms = (*facts.trunk_norms, *facts.own_norms)
    statistics = FLOAT * sum(2 * channels + 1 for channels in norms)
    return {
        "gradients": _summed(FLOAT * facts.parameters),
        "outputs": Exchange(out, len(given), gathered=True),
        "batch norm": Exchange(statistics, len(norms), gathered=True),
        "gradients of batch norm": Exchange(processes * statistics, len(norms)),
    }


def _summed(payload: int) -> Exchange:
    return Exchange(payload, math.ceil(payload / BUCKET))


def _of_banks(facts: Facts) -> dict[str, Exchange]:
    """Sharded banks, beside what data parallel exchanges: what the rows of all processes add to.

    * normalisers: 4 M (M - 1) summed, one for each pair of peers (of the batch, as published).
    * losses: 4 M M (1 + B) summed, each pair's and its slopes at the positives.
    * gradients of anchors: 4 M M B D summed.
    """
    pairs = facts.peers * facts.peers
    return {
        "normalisers": Exchange(FLOAT * (pairs - facts.peers), facts.peers),
        "losses": Exchange(FLOAT * pairs * (1 + facts.images), 2),
        "gradients of anchors": Exchange(FLOAT * pairs * facts.images * facts.width, 1),
    }


def _of_peers(facts: Facts, processes: int) -> dict[str, Exchange]:
    """Peer parallel: each process sees all images, so batch norm needs nothing of others, and knows the gradient of all outputs.

    * outputs: 4 ceil(M / N) B (F + C) gathered: features and logits of a process's peers.
    * gradients: 4 (trunk + heads) summed at once, of what peers of several processes share and of the objective.
    """
    held = _peers_held(facts, processes, PEERS)
    given = [name for name, width in facts.outputs.items() if width and name != "stem"]
    out = FLOAT * sum(facts.values(name, facts.images, held) for name in given)
    return {
        "gradients": Exchange(FLOAT * (facts.trunk + facts.heads), 1),
        "outputs": Exchange(out, len(given), gathered=True),
    }
