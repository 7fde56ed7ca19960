"""Agreement of peers: every share against loops, likeness of features against its formula, paired intervals."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_mcl.data.episodes import Episodes, EpisodeSampler
from fewshot_mcl.report.agreement import compare, linear_cka, section
from fewshot_mcl.report.material import Material


def answers_by_loops(features: np.ndarray, episodes: Episodes) -> np.ndarray:
    """(M, E, Q) answers of nearest prototypes, and (E, Q, way) logits summed over peers give the last row's."""
    result = []
    total: dict[tuple[int, int], np.ndarray] = {}
    for each in features:
        rows = []
        for e in range(len(episodes)):
            centres = [each[s].mean(0) for s in episodes.support[e].numpy()]
            row = []
            for q, image in enumerate(episodes.query[e].flatten().tolist()):
                logits = np.array([-((each[image] - centre) ** 2).sum() for centre in centres])
                total[e, q] = total.get((e, q), 0) + logits
                row.append(int(logits.argmax()))
            rows.append(row)
        result.append(rows)
    queries = len(result[0][0])
    summed = [[int(total[e, q].argmax()) for q in range(queries)] for e in range(len(episodes))]
    return np.array([*result, summed])


def test_every_share_equals_loops() -> None:
    labels = torch.arange(6).repeat_interleave(9)
    features = torch.randn(3, len(labels), 4, generator=torch.Generator().manual_seed(0))
    features += torch.nn.functional.one_hot(labels, 6)[:, :4]
    episodes = EpisodeSampler(labels, way=4, shot=2, query=3).sample(19)
    found = compare(features, episodes, "euclidean", 1.0)
    *answers, summed = answers_by_loops(features.double().numpy(), episodes)
    right = [[each[e][q] == q // 3 for e in range(19) for q in range(12)] for each in answers]
    for a in range(3):
        for b in range(3):
            same = np.mean([x == y for x, y in zip(answers[a].flat, answers[b].flat)])
            assert float(found.same[a, b]) == pytest.approx(same)
            outcomes = [
                np.mean([x and y for x, y in zip(right[a], right[b])]),
                np.mean([x != y for x, y in zip(right[a], right[b])]),
                np.mean([not x and not y for x, y in zip(right[a], right[b])]),
            ]
            assert found.outcomes(a, b) == pytest.approx(outcomes)
        by_episode = np.reshape(right[a], (19, 12)).mean(1)
        assert found.peers[a].accuracies.numpy() == pytest.approx(by_episode)
    targets = np.arange(12) // 3
    assert found.ensemble.accuracies.numpy() == pytest.approx((summed == targets).mean(1))
    some = np.any([each == targets for each in answers], axis=0)
    assert found.oracle.accuracies.numpy() == pytest.approx(some.mean(1))


def cka_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    """From the unbiased estimator of HSIC as Song et al. write it (equation 5)."""

    def kernel(z: np.ndarray) -> np.ndarray:
        return np.array([[0.0 if i == j else float(z[i] @ z[j]) for j in range(len(z))] for i in range(len(z))])

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        trace = sum(k[i, j] * m[j, i] for i in range(n) for j in range(n))
        sums = sum(k[i, j] for i in range(n) for j in range(n)) * sum(m[i, j] for i in range(n) for j in range(n))
        mixed = sum(k[i, j] * m[j, h] for i in range(n) for j in range(n) for h in range(n))
        return (trace + sums / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)) / (n * (n - 3))

    k, m = kernel(x), kernel(y)
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def test_likeness_of_features_equals_its_formula() -> None:
    features = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(1)) + 3
    features[1] += 2 * features[0]
    found = linear_cka(features)
    for a in range(3):
        for b in range(3):
            expected = cka_by_loops(features[a].double().numpy(), features[b].double().numpy())
            assert float(found[a, b]) == pytest.approx(expected, abs=1e-9)


def test_likeness_knows_rotation_scale_chance_and_constants() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(300, 200, generator=generator)
    turn: Tensor = torch.linalg.qr(torch.randn(200, 200, generator=generator))[0]
    found = linear_cka(
        torch.stack([x, 7 * x @ turn + 1, torch.randn(300, 200, generator=generator), torch.ones(300, 200)])
    )
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-4)
    assert abs(float(found[0, 2])) < 0.02  # which the biased form puts at 0.4
    assert float(found[0, 3]) == 0


def test_the_part_states_paired_intervals(material: Material) -> None:
    text = str(section(material))
    found = compare(material.measured, material.episodes, "euclidean", 1.0)
    for other in (found.peers[1].accuracies, (found.peers[0].accuracies + found.peers[1].accuracies) / 2):
        paired = (found.ensemble.accuracies - other).numpy()
        assert f"{100 * paired.mean():+.2f} ± {100 * 1.96 * paired.std(ddof=1) / math.sqrt(20):.2f}" in text
    assert "3-way, 1-shot, 2 queries a class, 20 episodes" in text
    assert re.search(r"peers\s0\sand\s1", text)


def test_a_single_network_has_no_such_part(material: Material) -> None:
    alone = replace(material, config=material.config.model_copy(update={"peers": 1}))
    assert not section(alone)
