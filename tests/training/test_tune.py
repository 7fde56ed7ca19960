"""`--tune`: which variant is taken, and that variants give equal values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fewshot_mcl.config import Config, resolve
from fewshot_mcl.data import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.training import tune
from fewshot_mcl.training.session import task_on
from fewshot_mcl.training.tune import Timing

STEPS = 10_000
CONFIG = resolve(None, {}, [])


def tuned(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[dict[str, Any], int, bool], float | str], steps: int = STEPS
) -> tuple[Config, tune.Tuning, list[Timing]]:
    """`tune` where a step of a variant takes `seconds(changes, how often it was measured before, huge pages)`."""
    seen: list[dict[str, Any]] = []

    @contextmanager
    def worker(huge_pages: bool) -> Iterator[Callable[[Config, dict[str, Any]], Timing]]:
        def measure(config: Config, changes: dict[str, Any]) -> Timing:
            answer = seconds(changes, seen.count(changes), huge_pages)
            seen.append(changes)
            return (
                Timing(changes, why=answer) if isinstance(answer, str) else Timing(changes, steps, answer, 2 * answer)
            )

        yield measure

    monkeypatch.setattr(tune, "_worker", worker)
    said: list[Timing] = []
    config, tuning = tune.tune(CONFIG, said.append)
    return config, tuning, said


def test_all_variants_are_measured_and_the_fastest_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(changes: dict[str, Any], before: int, huge_pages: bool) -> float:
        faster = {"stacked": 0.9, "grouped": 0.8, "contiguous": 0.9, True: 1.2, "bfloat16": 0.3}
        result = 1.0
        for value in changes.values():
            result *= faster[value]
        return result if huge_pages else 2 * result

    config, tuning, said = tuned(monkeypatch, seconds)
    assert [t.name for t in said] == [
        "as configured",
        "form=stacked",
        "form=grouped",
        "layout=contiguous",
        "compile=true",
        "form=grouped, layout=contiguous",
        "precision=bfloat16",
        "form=grouped, layout=contiguous, no huge pages",
    ]
    assert (config.form, config.layout, config.compile, config.precision) == ("grouped", "contiguous", False, "float32")
    assert {t.name for t in tuning.timings} == {t.name for t in said}
    record = tuning.record()
    assert record["chosen"] == "form=grouped, layout=contiguous"
    assert [t["seconds"] for t in record["timings"] if t["changes"] == {"form": "grouped", "layout": "contiguous"}] == [
        pytest.approx(0.72),
        pytest.approx(1.44),
    ]


def test_precision_is_never_changed_and_a_small_gain_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    config, tuning, _ = tuned(
        monkeypatch, lambda c, *_: {"bfloat16": 0.1, "stacked": 0.98}.get(next(iter(c.values()), ""), 1.0)
    )
    assert config == CONFIG
    assert tuning.chosen is tuning.timings[0]


def test_what_was_fast_once_by_chance_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    config, *_ = tuned(monkeypatch, lambda c, before, _: 0.5 if c == {"form": "stacked"} and not before else 1.0)
    assert config == CONFIG


def test_what_cannot_run_is_said_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, said = tuned(monkeypatch, lambda c, *_: "mixes channels" if c.get("form") == "grouped" else 1.0)
    assert next(t.why for t in said if t.changes == {"form": "grouped"}) == "mixes channels"
    assert config == CONFIG


def test_a_short_run_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, said = tuned(monkeypatch, lambda *_: 0.1, steps=100)
    assert "the run takes 10 s" in next(t.why for t in said if "compile" in t.changes)


def test_compiling_must_pay_within_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    base, compiled = Timing({}, 700, 1.0, 2.0), Timing({"compile": True}, 700, 0.9, 90.0)
    assert not tune._better(compiled, base)
    assert tune._better(Timing({"compile": True}, 7000, 0.9, 90.0), Timing({}, 7000, 1.0, 2.0))


def test_a_run_that_cannot_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no images"):
        tuned(monkeypatch, lambda *_: "no images")


def losses(**options: Any) -> list[float]:
    """Of three steps."""
    small = {"way": 3, "shot": 2, "query": 3, "val_way": 3, "val_query": 2, "val_episodes": 2, "peers": 2}
    config = resolve(None, {}, [f"{name}={str(value).lower()}" for name, value in (small | options).items()])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 1, 16, 16), dtype=torch.uint8, generator=generator)
    store = ImageStore(images, torch.arange(6).repeat_interleave(8), list("abcdef"))
    task = task_on({"train": store, "val": store}, config, torch.device("cpu"))
    optimizer, found = task.optimizer(task.modules().parameters()), []
    for number in range(3):
        total = task.step(number)[0]["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        found.append(float(total.detach()))
    return found


def require_equal(found: list[float]) -> None:
    wanted = losses()
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found == pytest.approx(wanted, rel=1e-3)  # Adam's first steps make much of rounding


@pytest.mark.parametrize("options", [{"layout": "contiguous"}, {"form": "grouped"}, {"form": "stacked"}])
def test_variants_are_equal_but_for_rounding(options: dict[str, Any]) -> None:
    require_equal(losses(**options))


@pytest.mark.slow
def test_compiled_peers_are_equal_but_for_rounding() -> None:
    require_equal(losses(compile=True))
