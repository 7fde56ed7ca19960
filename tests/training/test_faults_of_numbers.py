"""NaN and infinity in any peer, any term, any step: named, and stopped or rolled back; no contrast in half precision."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fewshot_mcl.config import Config, resolve
from fewshot_mcl.data import ImageStore
from fewshot_mcl.errors import Interrupted, NotANumberError
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives.contrast import MultiViewContrast
from fewshot_mcl.training import episodic, loop, session
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.session import train

PEERS = 3
STEPS = {"first": 1, "mid": 4, "last before a save": 6}  # of 6, saved every 2
SETTINGS = [
    f"peers={PEERS}", "share=last-one", "episodes=6", "way=3", "query=2", "val_every=2", "val_episodes=2", "val_way=2",
    "val_query=2", "log_every=1", "device=cpu", "objective.negatives=other-class", "objective.num_negatives=8",
]  # fmt: skip
BAD = {"NaN": float("nan"), "infinity": float("inf")}
Spoil = Callable[[EpisodicTask, pytest.MonkeyPatch], None]


def images(split: str, classes: int) -> ImageStore:
    pixels = torch.randint(
        256, (classes * 8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(classes)
    )
    return ImageStore(pixels, torch.arange(classes).repeat_interleave(8), [f"{split}{i}" for i in range(classes)])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images in memory instead of a data source."""
    monkeypatch.setattr(episodic, "FINAL_EPISODES", 4)
    monkeypatch.setattr(session, "open_data", lambda config: type("Source", (), {"notes": ()}))
    monkeypatch.setattr(session, "load_stores", lambda *_: {"train": images("train", 4), "val": images("val", 3)})


def configuration(*settings: str) -> Config:
    return resolve(None, {"method": "mcl-okd"}, [*SETTINGS, *settings])


def run(config: Config, out: Path, resume: bool = False) -> str:
    """What training says."""
    with open(out.parent / f"said by {out.name}", "a+", encoding="utf-8") as said:
        train(config, out, resume, Console(file=said, width=400))
        said.seek(0)
        return said.read()


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoint(out: Path) -> tuple[int, dict[str, Tensor]]:
    state = json.loads((out / "checkpoints/last.json").read_text())
    return state["episode"], load_file(out / "checkpoints" / state["file"])


class Injection:
    """Something in a step becomes bad, as often as it is asked to.

    Args:
        spoil: what, given the task.
        step: in which, from 1.
        times: how often, over all tries.
    """

    def __init__(self, spoil: Spoil, step: int, times: int = 1) -> None:
        self.spoil, self.at, self.left = spoil, step, times
        self.step = EpisodicTask.step

    def __call__(self, task: EpisodicTask, number: int) -> Any:
        if number + 1 != self.at or not self.left:
            return self.step(task, number)
        self.left -= 1
        with pytest.MonkeyPatch.context() as patch:
            self.spoil(task, patch)
            return self.step(task, number)


def inject(monkeypatch: pytest.MonkeyPatch, spoil: Spoil, step: int, times: int = 1) -> None:
    injection = Injection(spoil, step, times)
    monkeypatch.setattr(EpisodicTask, "step", lambda self, number: injection(self, number))


def in_features(peer: int, value: float) -> Spoil:
    def spoil(task: EpisodicTask, patch: pytest.MonkeyPatch) -> None:
        forward = task._forward

        def spoiled(*arguments: Any) -> PeerOutputs:
            out = forward(*arguments)
            out.features[peer, 0, 0] = value
            return out

        patch.setattr(task, "_forward", spoiled)

    return spoil


def in_logits(peer: int, value: float) -> Spoil:
    def spoil(task: EpisodicTask, patch: pytest.MonkeyPatch) -> None:
        real = task._episode_logits

        def spoiled(features: Tensor) -> Tensor:
            logits = real(features).clone()
            logits[peer, 0] = value
            return logits

        patch.setattr(task, "_episode_logits", spoiled)

    return spoil


def in_parameter(peer: int, value: float) -> Spoil:
    """A parameter that only this peer has stays bad."""

    def spoil(task: EpisodicTask, patch: pytest.MonkeyPatch) -> None:
        own = task.objective.contrast.heads[peer].weight
        with torch.no_grad():
            own[0, 0] = value

    return spoil


def in_network(peer: int, value: float) -> Spoil:
    def spoil(task: EpisodicTask, patch: pytest.MonkeyPatch) -> None:
        copies = task.peers.stages[-1]
        with torch.no_grad():
            next(copies[peer].parameters())[0] = value

    return spoil


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("peer", range(PEERS))
@pytest.mark.parametrize("where", [in_features, in_logits, in_parameter, in_network])
def test_the_peer_is_named(
    where: Callable[[int, float], Spoil], peer: int, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, where(peer, BAD[value]), step=4)
    with pytest.raises(
        NotANumberError, match=rf"^the loss of episode 4 is not a number: term [a-z, ]+ of peer {peer}\b(?!,)"
    ):
        run(configuration(), tmp_path / "run")
    assert checkpoint(tmp_path / "run")[0] == 2


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("when", STEPS)
@pytest.mark.parametrize("term", ["ce", "kl", "contrast"])
def test_the_term_and_the_step_are_named_and_the_last_checkpoint_is_kept(
    term: str, when: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, in_term(term, BAD[value]), STEPS[when])
    with pytest.raises(
        NotANumberError, match=rf"^the loss of episode {STEPS[when]} is not a number: term {term}\."
    ) as error:
        run(configuration(), tmp_path / "run")
    if when == "first":
        assert "There was no checkpoint yet." in str(error.value)
        return
    assert "The last good checkpoint is kept: " in str(error.value)
    saved, tensors = checkpoint(tmp_path / "run")
    assert saved == (STEPS[when] - 1) // 2 * 2
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert [row["episode"] for row in rows(tmp_path / "run")] == [str(n) for n in range(1, STEPS[when])]


def in_term(term: str, value: float) -> Spoil:
    def spoil(task: EpisodicTask, patch: pytest.MonkeyPatch) -> None:
        real = task._terms

        def spoiled(*arguments: Any) -> dict[str, Tensor]:
            terms = real(*arguments)
            return terms | {term: terms[term] + value, "total": terms["total"] + value}

        patch.setattr(task, "_terms", spoiled)

    return spoil


@pytest.mark.parametrize("value", BAD)
def test_what_breaks_in_an_update_is_not_saved(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the step was a number; the gradient was not."""

    def spoil(task: EpisodicTask, patch: pytest.MonkeyPatch) -> None:
        own = task.objective.contrast.heads[1].weight
        handle = own.register_hook(lambda gradient: gradient + BAD[value])
        monkeypatch.setattr(task, "validate", lambda: handle.remove() or {})

    inject(monkeypatch, spoil, step=4)
    with pytest.raises(
        NotANumberError, match=r"'objective\.contrast\.heads\.1\.weight' holds .* after episode 4; nothing was saved"
    ):
        run(configuration(), tmp_path / "run")
    assert checkpoint(tmp_path / "run")[0] == 2


# Rolling back.


def test_a_run_that_is_rolled_back_goes_on_at_half_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, in_features(1, float("nan")), step=4)
    said = run(configuration("on_nan=rollback", "schedule=constant", "lr=0.004"), tmp_path / "run")
    assert "the loss of episode 4 is not a number: term ce, kl, contrast of peer 1" in said
    assert "Rolled back from episode 4 to 2; the learning rate is 0.5 times" in said
    found = rows(tmp_path / "run")
    assert [row["episode"] for row in found] == ["1", "2", "3", "4", "5", "6"]
    assert [float(row["lr"]) for row in found] == [0.004, 0.004, 0.002, 0.002, 0.002, 0.002]
    assert (tmp_path / "run/model.json").exists()


def test_the_rate_is_halved_down_to_a_64th(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, in_features(0, float("inf")), step=5, times=100)
    with pytest.raises(NotANumberError, match="the loss of episode 5"):
        run(configuration("on_nan=rollback"), tmp_path / "run")
    said = (tmp_path / "said by run").read_text(encoding="utf-8")
    assert [f"is {rate:g} times" in said for rate in (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)] == [True] * 6
    assert said.count("Rolled back") == 6
    assert checkpoint(tmp_path / "run")[0] == 4


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, in_features(0, float("nan")), step=2)
    with pytest.raises(NotANumberError, match="There was no checkpoint yet"):
        run(configuration("on_nan=rollback"), tmp_path / "run")


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_rolled_back_run_resumes_as_if_it_had_not_stopped(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the step that is done again, at a checkpoint, and behind one."""
    config = configuration("on_nan=rollback", "log_every=3")
    for name in ("whole", "parts"):
        with pytest.MonkeyPatch.context() as patch:
            inject(patch, in_features(1, float("nan")), step=4)
            if name == "parts":
                stop_once_rolled_back(patch, stop)
                with pytest.raises(Interrupted):
                    run(config, tmp_path / name)
            run(config, tmp_path / name, resume=name == "parts")
    assert [row["episode"] for row in rows(tmp_path / "parts")] == ["2", "3", "4", "6"]
    for file in ("metrics.csv", "model.safetensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    (_, whole), (_, parts) = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def stop_once_rolled_back(patch: pytest.MonkeyPatch, after: int) -> None:
    """As if a signal came in a step, the first time that the run has a lower rate."""
    step, asked = loop.Trainer._step, []

    def stopping(self: loop.Trainer, number: int) -> None:
        step(self, number)
        if self.rate < 1 and number + 1 == after and not asked:
            asked.append(number)
            self.stopping.signal = signal.SIGTERM

    patch.setattr(loop.Trainer, "_step", stopping)


def test_no_best_is_kept_of_a_state_that_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peers were fine, and better than ever; a head was not."""
    accuracies = iter([0.5, 0.9, 0.4, 0.3])  # after 2, 4 (undone), 4 and 6
    monkeypatch.setattr(EpisodicTask, "validate", lambda self: {"peer 0": Result(torch.full((2,), next(accuracies)))})
    monkeypatch.setattr(loop.Trainer, "_networks", lambda self: ["peer 0"])

    def spoil(task: EpisodicTask, patch: pytest.MonkeyPatch) -> None:
        weight = task.objective.contrast.heads[1].weight
        weight.register_hook(lambda gradient: gradient + (float("nan") if next(times, 0) else 0))

    times = iter([1])
    inject(monkeypatch, spoil, step=4)
    run(configuration("on_nan=rollback"), tmp_path / "run")
    best = json.loads((tmp_path / "run/checkpoints/best.json").read_text())
    assert (best["episode"], round(best["val"], 3)) == (2, 0.5)
    assert [row["val peer 0"][:3] for row in rows(tmp_path / "run") if row["val peer 0"]] == ["0.5", "0.4", "0.3"]


# Half precision.


class Dtypes(TorchDispatchMode):
    """Of every floating-point tensor that goes into or comes out of an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        flat, _ = tree_flatten((args, kwargs, result))
        self.seen |= {value.dtype for value in flat if isinstance(value, Tensor) and value.is_floating_point()}
        return result


@pytest.mark.parametrize("positive", ["bank", "live", "live-grad"])
@pytest.mark.parametrize("normaliser", ["batch", "full", "fixed"])
@pytest.mark.parametrize("negatives", ["other-class", "any", "all", "shared"])
@pytest.mark.parametrize("count", [2, 64])  # gathered, and dense
def test_the_contrast_never_sees_half_precision(
    count: int, negatives: str, normaliser: str, positive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"objective.{k}={v}" for k, v in {
        "negatives": negatives, "normaliser": normaliser, "positive": positive, "num_negatives": count, "shared_rows": 8,
    }.items()]  # fmt: skip
    form = "loop" if positive == "bank" else "grouped"
    config = configuration("precision=bfloat16", f"form={form}", *settings)
    task = EpisodicTask(config, images("train", 4), images("val", 3), torch.device("cpu"))
    inside, outside, real = Dtypes(), Dtypes(), MultiViewContrast.forward

    def spied(self: MultiViewContrast, *arguments: Any) -> Tensor:
        with inside:
            return real(self, *arguments)

    monkeypatch.setattr(MultiViewContrast, "forward", spied)
    with outside:
        total = task.step(1)[0]["total"]
    assert inside.seen == {torch.float32}
    assert torch.bfloat16 in outside.seen, "the networks are in half precision"
    total.backward()
    assert {p.grad.dtype for p in task.objective.contrast.parameters()} == {torch.float32}
    assert task.objective.contrast.banks.dtype == torch.float32
