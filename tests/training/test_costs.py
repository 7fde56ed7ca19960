"""The arithmetic of several processes, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fewshot_mcl.config import resolve
from fewshot_mcl.data.sources import open_source
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.training import parts
from fewshot_mcl.training.costs import (
    DATA,
    ONE,
    PEERS,
    SHARDED,
    START,
    Exchange,
    Facts,
    Parts,
    Work,
    costs,
    exchanges,
    memory,
    seconds,
)
from fewshot_mcl.training.session import task_on

FACTS = Facts(
    peers=4, images=10, rows=1001, width=8, outputs={"features": 6, "logits": 5, "stem": 3},
    trunk=100, own=50, heads=20, states=2, trunk_norms=(7,), own_norms=(2, 2, 2, 2),
)  # fmt: skip
PARTS = Parts(
    networks=Work(1.0, 1000), trunk=Work(0.2, 200), split=Work(0.4, 300), objective=Work(0.3, 40), data=0.1, update=0.05
)  # fmt: skip


def test_memory() -> None:
    learned = 4 * (100 + 4 * 50 + 20)  # 1,280
    banks = 4 * 4 * 1001 * 8  # 128,128
    one = {"parameters": 1280, "gradients": 1280, "optimizer": 2560, "banks": banks, "activations": 1040}
    assert memory(FACTS, PARTS, 1, ONE) == one
    assert learned == 1280
    data = one | {"gradients": 2560, "activations": 340}
    assert memory(FACTS, PARTS, 3, DATA) == data
    assert memory(FACTS, PARTS, 3, SHARDED) == data | {"banks": 4 * 4 * 334 * 8}
    held = 4 * (100 + 2 * 50 + 20)  # two peers of four
    assert memory(FACTS, PARTS, 3, PEERS) == {
        "parameters": held, "gradients": held + 4 * 120, "optimizer": 2 * held, "banks": banks, "activations": 200 + 400 + 40,
    }  # fmt: skip


def test_seconds() -> None:
    whole = {"networks": 1.0, "objective": 0.3, "data": 0.1, "update": 0.05}
    assert seconds(FACTS, PARTS, 1, ONE) == pytest.approx(whole)
    split = {"networks": 0.4, "objective": 0.3, "data": 0.05, "update": 0.05}
    assert seconds(FACTS, PARTS, 2, DATA) == seconds(FACTS, PARTS, 2, SHARDED) == pytest.approx(split)
    banks = replace(PARTS, divided=0.2)
    assert seconds(FACTS, banks, 4, SHARDED)["objective"] == pytest.approx(0.1 + 0.2 / 4)
    assert seconds(FACTS, banks, 4, DATA)["objective"] == 0.3
    peers = {"networks": 0.2 + 0.8 / 2, "objective": 0.3, "data": 0.1, "update": 0.05 * 220 / 320}
    assert seconds(FACTS, PARTS, 2, PEERS) == pytest.approx(peers)


def test_bytes_of_data_parallel() -> None:
    found = exchanges(FACTS, 3, DATA)  # parts of four images, the last one filled up
    assert {name: each.payload for name, each in found.items()} == {
        "gradients": 1280,
        "outputs": 4 * 4 * (4 * 6 + 4 * 5 + 3),
        "batch norm": 4 * (2 * 7 + 1 + 4 * (2 * 2 + 1)),
        "gradients of batch norm": 4 * 3 * (2 * 7 + 1 + 4 * (2 * 2 + 1)),
    }
    assert {name: each.calls for name, each in found.items()} == {
        "gradients": 1, "outputs": 3, "batch norm": 5, "gradients of batch norm": 5,
    }  # fmt: skip
    assert [name for name, each in found.items() if each.gathered] == ["outputs", "batch norm"]


def test_bytes_of_peer_parallel() -> None:
    found = exchanges(FACTS, 3, PEERS)  # two peers in a process
    assert {name: (each.payload, each.gathered) for name, each in found.items()} == {
        "gradients": (4 * 120, False), "outputs": (4 * 2 * 10 * 11, True),
    }  # fmt: skip


def test_bytes_of_sharded_banks() -> None:
    found, data = exchanges(FACTS, 3, SHARDED), exchanges(FACTS, 3, DATA)
    assert {name: each.payload for name, each in found.items() if name not in data} == {
        "normalisers": 4 * 12, "losses": 4 * 16 * 11, "gradients of anchors": 4 * 16 * 10 * 8,
    }  # fmt: skip


def test_what_is_sent_in_a_ring() -> None:
    summed, gathered = Exchange(3_000_000, 2), Exchange(1_000_000, 1, gathered=True)
    assert summed.sent(4) == pytest.approx(4_500_000)  # 2 * 3 / 4
    assert gathered.sent(4) == 3_000_000
    assert (summed.sent(1), gathered.sent(1)) == (0, 0)
    assert summed.seconds(4, 1.5) == pytest.approx(0.003 + 2 * START)


def test_columns() -> None:
    found = costs(FACTS, PARTS, 4, 1.0)
    assert [each.way for each in found] == [ONE, DATA, SHARDED, PEERS]
    assert [each.way for each in costs(FACTS, PARTS, 5, 1.0)] == [ONE, DATA, SHARDED]
    assert [each.way for each in costs(replace(FACTS, rows=0, width=0), PARTS, 4, 1.0)] == [ONE, DATA, PEERS]
    for each in found[1:]:
        assert each.seconds["exchange"] == pytest.approx(each.calls * START + sum(each.sent.values()) / 1e9)
        assert each.step == pytest.approx(sum(each.seconds.values()))
    assert found[0].step == pytest.approx(1.45)


def test_what_is_kept_for_the_backward_pass_is_counted_once() -> None:
    layer = nn.Linear(3, 5)
    images = torch.zeros(7, 3)
    with parts.keeping(layer) as storages:
        out = layer(images).relu()
    assert sum(storages.values()) == images.nbytes + out.nbytes  # not the weight, and what relu gives where it is given


def small_task(*settings: str):
    config = resolve(
        None, {}, ["images_per_class=4", "batch=30", "peers=3", "share=last-two", *settings], task="classify"
    )
    store = open_source("glyphs").load("train", config.image_options)
    few = ImageStore(store.images[:400], store.labels[:400], store.class_names[:20])
    return task_on({"train": few}, config, torch.device("cpu"))


def test_the_parts_of_a_step_are_those_of_the_network() -> None:
    torch.set_num_threads(1)
    task = small_task()
    facts, measured = parts.measured(task, 2)
    assert (facts.peers, facts.images, facts.width, facts.states) == (3, 30, 128, 1)
    assert facts.parameters == sum(p.numel() for p in task.modules().parameters())
    assert facts.outputs == {"features": 64, "logits": 20, "stem": 64}
    assert (facts.trunk_norms, facts.own_norms) == ((64, 64), (64,) * 6)
    for each in (measured.networks, measured.trunk, measured.split, measured.objective):
        assert each.seconds > 0
    assert 0 < measured.trunk.kept < measured.networks.kept
    maps = (
        4 * 30 * 64 * 28 * 28
    )  # bytes of the first convolution's maps, of three more layers a quarter, a 1/16, a 1/64
    assert measured.networks.kept > maps
