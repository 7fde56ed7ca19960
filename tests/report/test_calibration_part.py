"""Calibration: bins, intervals and coverage against loops, a temperature that is known, and where none may be chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_mcl.report.calibration import BINS, Answers, best_temperature, coverage, reliability, section
from fewshot_mcl.report.material import Material


def sound_logits(episodes: int, way: int, query: int, spread: float = 2.0) -> Tensor:
    """Logits whose softmax is exactly how often each class is right."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(episodes * way * query, way, generator=generator, dtype=torch.float64)
    right = torch.multinomial(logits.softmax(1), 1, generator=generator)
    target = torch.arange(way).repeat_interleave(query).repeat(episodes)[:, None]
    swapped = logits.gather(1, torch.cat([target, right], 1))
    logits.scatter_(1, right, swapped[:, :1])
    logits.scatter_(1, target, swapped[:, 1:])
    return logits.view(episodes, way * query, way)


def test_answers_equal_loops() -> None:
    logits = sound_logits(3, 4, 2)
    found = Answers.of(logits, 1.7)
    for e in range(3):
        for q in range(8):
            weights = [math.exp(float(z) / 1.7) for z in logits[e, q]]
            assert float(found.confidence[e, q]) == pytest.approx(max(weights) / sum(weights))
            assert bool(found.right[e, q]) == (weights.index(max(weights)) == q // 2)
            assert float(found.likelihood[e, q]) == pytest.approx(math.log(weights[q // 2] / sum(weights)))


def test_bins_and_their_intervals_equal_loops() -> None:
    answers = Answers.of(sound_logits(30, 3, 4), 0.7)
    answers.confidence[0, 0] = 1.0
    found, error = reliability(answers), 0.0
    for k in range(BINS):
        inside = [
            (e, q) for e in range(30) for q in range(12)
            if k / BINS <= answers.confidence[e, q] < (k + 1) / BINS or (k == BINS - 1 and answers.confidence[e, q] == 1)
        ]  # fmt: skip
        assert float(found.share[k]) == pytest.approx(len(inside) / 360)
        if inside:
            accuracy = np.mean([float(answers.right[at]) for at in inside])
            confidence = np.mean([float(answers.confidence[at]) for at in inside])
            residuals = [sum(float(answers.right[at]) - accuracy for at in inside if at[0] == e) for e in range(30)]
            assert float(found.accuracy[k]) == pytest.approx(accuracy)
            assert float(found.confidence[k]) == pytest.approx(confidence)
            assert float(found.ci95[k]) == pytest.approx(1.96 * math.sqrt(sum(r * r for r in residuals)) / len(inside))
            error += len(inside) / 360 * abs(accuracy - confidence)
    assert found.error == pytest.approx(error)


def test_what_is_as_sure_as_right_has_no_error_and_keeps_its_temperature() -> None:
    logits = sound_logits(200, 5, 15)
    assert reliability(Answers.of(logits, 1.0)).error < 0.02
    assert best_temperature(logits) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("factor", [0.2, 6.0])
def test_a_known_temperature_is_found(factor: float) -> None:
    logits = sound_logits(200, 5, 15)
    assert reliability(Answers.of(factor * logits, 1.0)).error > 0.1
    assert best_temperature(factor * logits) == pytest.approx(factor, rel=0.03)


def test_coverage_equals_loops_and_shares_ties() -> None:
    answers = Answers.of(sound_logits(4, 3, 3), 1.0)
    answers.confidence[:] = (answers.confidence * 10).round() / 10
    pairs = sorted(zip(answers.confidence.flatten().tolist(), answers.right.flatten().tolist()), reverse=True)
    found = coverage(answers)
    for k in range(1, len(pairs) + 1):
        total = 0.0
        for sure, _ in pairs[:k]:
            equal = [right for other, right in pairs if other == sure]
            total += sum(equal) / len(equal)
        assert float(found[k - 1]) == pytest.approx(total / k)
    assert float(found[-1]) == pytest.approx(float(answers.right.double().mean()))


def test_the_part_states_its_figures_and_protocol(material: Material) -> None:
    text = str(section(material))
    assert "chosen on 20 such episodes of the validation split" in text
    assert "20 3-way, 1-shot episodes of the test split" in text
    assert text.count("as trained</td>") == text.count("<td>temperature ") == 2
    assert text.count("<figure>") == 3


def test_no_temperature_is_chosen_where_there_is_nothing_to_choose_it_on(material: Material) -> None:
    only = {"test": material.store}
    text = str(section(replace(material, stores=only, features={"test": material.measured})))
    assert "No temperature was chosen: there is no validation split" in text
    assert "<td>temperature " not in text
    on_val = replace(material, protocol=replace(material.protocol, split="val"))
    assert "the validation split is what is measured" in str(section(on_val))
    narrow = replace(material, stores=material.stores | {"val": material.stores["val"]})
    narrow = replace(narrow, protocol=replace(narrow.protocol, query=8))
    assert "does not allow such episodes" in str(section(narrow))
