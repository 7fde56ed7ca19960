"""Peers split over processes: who has what, what is sent, and that everything a step makes is what one process makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import HERE, assert_alike, difference, outcomes
from worker import APART_Z, CASES, CONTROL, FEW_SHOT, PEER_CASES

from fewshot_mcl import parallel
from fewshot_mcl.config import resolve
from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerNetwork
from fewshot_mcl.networks.peers import PRESETS
from fewshot_mcl.training.session import _require_a_peer_each

# A tree, a gate on the shared stages, banks, several forwards a step: the others are of the same kinds.
FIRST = (
    "few-shot cl-ilr",
    "classify one",
    "few-shot mcl-okd",
    "few-shot, support and query apart",
    "few-shot, sharded banks",
)
LATER = [case for case in (*CASES, *PEER_CASES) if case not in (*FIRST, CONTROL, APART_Z)]
Found = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """(processes, cases) -> case -> what came out."""
    folder = tmp_path_factory.mktemp("outcomes")
    return cache(lambda processes, cases: outcomes(processes, folder / f"{processes}-{len(cases)}.pt", "peers", *cases))


@pytest.mark.parametrize("case", FIRST)
def test_two_processes_with_three_peers_are_like_one(case: str, found: Found) -> None:
    assert_alike(found(1, (*FIRST, CONTROL))[case], found(2, (*FIRST, CONTROL))[case])


def test_gradients_that_are_not_added_up_are_told_apart(found: Found) -> None:
    one, several = (found(processes, (*FIRST, CONTROL))[CONTROL] for processes in (1, 2))
    assert difference(one["losses"][0], several["losses"][0]) < 1e-9  # no gradient is in it yet
    with pytest.raises(AssertionError, match=r"peers\.stages\.0"):
        assert_alike(one, several)


@pytest.mark.slow
@pytest.mark.parametrize("case", LATER)
def test_every_method_in_both_tasks(case: str, found: Found) -> None:
    assert_alike(found(1, tuple(LATER))[case], found(2, tuple(LATER))[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", [*FIRST, *LATER])
def test_three_processes_with_a_peer_each(case: str, found: Found) -> None:
    cases = (*FIRST, CONTROL) if case in FIRST else tuple(LATER)
    assert_alike(found(1, cases)[case], found(3, cases)[case])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes with three peers say of themselves."""
    return outcomes(2, tmp_path_factory.mktemp("seen") / "out.pt", worker=HERE / "peer_worker.py")


def test_memory_and_traffic(seen: list[dict[str, Any]]) -> None:
    config = resolve(settings=["peers=3", *FEW_SHOT])
    peers = PeerNetwork("conv4", 3, 6, image_size=20)
    shared = sum(p.nbytes for p in peers.stages[:2].parameters())
    own = sum(p.nbytes for module in (*peers.peer(0).stages[2:], peers.classifiers[0]) for p in module.parameters())
    assert [each["own"] for each in seen] == [[2], [0, 1]]
    for each in seen:
        assert each["held"] == each["gradients"] == shared + len(each["own"]) * own
        images = config.way * (config.shot + config.query)
        logits_and_features = 2 * images * (6 + peers.feature_dim) * 4  # of two peers, which the other process pads to
        heads = 3 * (peers.feature_dim * 8 + 8) * 4  # of the objective, which is in every process
        assert each["sent"] == {"all_gather": logits_and_features, "all_reduce": shared + heads}


def test_process_0_gets_everything_for_a_checkpoint(seen: list[dict[str, Any]]) -> None:
    assert [each["complete"] for each in seen] == [True, False]


def test_a_value_that_is_not_a_number_is_named_by_all(seen: list[dict[str, Any]]) -> None:
    """Where only one process can see it: in a check of what is to be saved, and in a loss."""
    first, second = seen
    assert first["errors"] == second["errors"]
    saved, loss = first["errors"]
    assert "'peers.classifiers.0.weight' holds" in saved
    assert "of peer 0 (first parameter: peers.classifiers.0.weight)" in loss


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from(PRESETS), st.sampled_from(["mcl-okd", "one", "cl-ilr"]))
def test_every_copy_is_held_by_those_whose_peers_stand_on_it(
    count: int, processes: int, share: str, method: str
) -> None:
    with (
        torch.device("meta"),
        mock.patch.object(parallel, "world", return_value=min(processes, count)),
        mock.patch.object(parallel, "rank") as rank,
    ):
        holders: dict[int, int] = {}
        own: list[list[int]] = []
        peers = PeerNetwork("conv4", count, 3, share, method, image_size=16)
        for rank.return_value in range(parallel.world()):
            peers.keep_own()
            own.append(list(peers.own))
            held = peers.own_parameters()
            assert {id(p) for m in peers.own for p in peers.peer(m).parameters()} == {id(p) for p in held}
            for parameter in held:
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1
        assert {id(p) for p in peers.parameters()} == holders.keys()
        assert {id(p) for p in peers.parameters_of_several()} == {p for p, number in holders.items() if number > 1}
    assert [m for each in own[::-1] for m in each] == list(range(count))
    assert max(map(len, own)) - min(map(len, own)) <= 1


def test_what_is_given_up_has_no_memory_and_follows_the_type() -> None:
    peers = PeerNetwork("conv4", 3, 4, image_size=16)
    names, shapes = zip(*((name, value.shape) for name, value in peers.state_dict().items()))
    with (
        mock.patch.object(parallel, "world", return_value=3),
        mock.patch.object(parallel, "rank", return_value=0),
    ):
        peers.keep_own()
    peers = peers.to("cpu").double()
    assert tuple(peers.state_dict()) == names
    assert tuple(value.shape for value in peers.state_dict().values()) == shapes
    assert {p.dtype for p in peers.parameters()} == {torch.float64}
    assert {p.is_meta for p in peers.peer(2).parameters()} == {False}
    assert {p.is_meta for p in peers.classifiers[0].parameters()} == {True}


def test_more_processes_than_peers_are_refused() -> None:
    config = resolve(settings=["peers=3", "parallel=peers"])
    with (
        mock.patch.object(parallel, "world", return_value=4),
        pytest.raises(UserError, match="there are 3 for 4 processes"),
    ):
        _require_a_peer_each(config)
    with mock.patch.object(parallel, "world", return_value=3):
        _require_a_peer_each(config)
