"""The fast contrast beside a slow, obvious one; the draw of negatives; the banks."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl.errors import UserError
from fewshot_mcl.objectives import closed_form, contrast_plan, create_objective
from fewshot_mcl.objectives.candidates import other_classes
from fewshot_mcl.objectives.contrast import MultiViewContrast, draw_ranks
from fewshot_mcl.objectives.multi_view import contrast_pairs, expected


def slow_pair(
    anchor: Tensor, positive: Tensor, bank: Tensor, ids: Tensor, tau: float, eps: float, z: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One ordered pair as eq. 8 is written, by autograd, an image and a negative at a time."""
    rows, count = len(bank), ids.shape[1]
    scores = torch.stack(
        [torch.stack([v @ p, *(v @ bank[i] for i in own)]) for v, p, own in zip(anchor, positive, ids)]
    )
    x = (scores / tau).exp()
    if z is None:
        z = rows * x.detach().mean()
    p, c = x / z, count / rows
    loss = -(p[:, 0] / (p[:, 0] + c + eps)).log() - (c / (p[:, 1:] + c + eps)).log().sum(1)
    return loss.mean(), z


def example(peers: int = 3, rows: int = 24, batch: int = 4, dim: int = 5, count: int = 6) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(peers * rows + count)
    embeddings = nnf.normalize(torch.randn(peers, batch, dim, generator=generator, dtype=torch.float64), dim=-1)
    banks = torch.randn(peers, rows, dim, generator=generator, dtype=torch.float64) / dim**0.5
    positives = torch.randperm(rows, generator=generator)[:batch]
    negatives = torch.randint(rows, (batch, count), generator=generator)
    return embeddings.requires_grad_(), banks, positives, negatives


@pytest.mark.parametrize("positive", ["bank", "live", "live-grad"])
@pytest.mark.parametrize("normaliser", ["batch", "full", "fixed"])
@pytest.mark.parametrize(
    "count", [1, 6, 30]
)  # few beside the 400 rows (gathered) and many (picked from the whole product)
@pytest.mark.parametrize("rows", [24, 400])
@pytest.mark.parametrize("chunk", [1, 500, 1 << 20])
def test_equals_the_slow_form(
    positive: str, normaliser: str, count: int, rows: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(contrast_plan.PIECE_BYTES, "cpu", chunk)
    monkeypatch.setitem(contrast_plan.FETCH_BYTES, "cpu", chunk)
    monkeypatch.setattr(contrast_plan, "KEEP_BYTES", chunk)
    embeddings, banks, positives, negatives = example(rows=rows, count=count)
    fixed = torch.rand(3, 3, dtype=torch.float64) * rows + rows if normaliser == "fixed" else None
    upstream = torch.rand(3, 3, dtype=torch.float64)
    slow = torch.zeros(())
    for a, b in itertools.permutations(range(3), 2):
        shown = {"bank": banks[b][positives], "live": embeddings[b].detach(), "live-grad": embeddings[b]}[positive]
        z = None if fixed is None else fixed[a, b]
        if normaliser == "full":
            z = (embeddings[a].detach() @ banks[b].T / 0.2).exp().sum(1, keepdim=True)
        loss, _ = slow_pair(embeddings[a], shown, banks[b], negatives, 0.2, 1e-3, z)
        slow = slow + upstream[a, b] * loss
    (expected,) = torch.autograd.grad(slow, embeddings)
    pairs, _ = contrast_pairs(
        embeddings, banks, positives, negatives, 0.2, 1e-3, positive=positive, normaliser=normaliser, fixed=fixed
    )  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad((pairs * upstream).sum(), embeddings)
    torch.testing.assert_close((pairs * upstream).sum(), slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_the_exact_expectation_is_the_mean_over_every_draw() -> None:
    embeddings, banks, positives, _ = example(peers=2, rows=6, batch=2)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    allowed = labels[positives][:, None] != labels
    others = [torch.nonzero(row).flatten().tolist() for row in allowed]
    fixed = torch.full((2, 2), 7.0, dtype=torch.float64)  # the batch's own Z would make the loss nonlinear in the draw
    draws_of_two = [list(itertools.product(own, repeat=2)) for own in others]
    every = [
        contrast_pairs(embeddings, banks, positives, torch.tensor([a, b]), 0.3, fixed=fixed)[0]
        for a, b in itertools.product(*draws_of_two)
    ]
    exact, _ = contrast_pairs(embeddings, banks, positives, None, 0.3, fixed=fixed, allowed=allowed, count=2)
    torch.testing.assert_close(exact, torch.stack(every).mean(0), rtol=1e-12, atol=0)


def test_the_exact_normaliser_is_the_expected_one() -> None:
    embeddings, banks, positives, _ = example(peers=2, rows=6, batch=2)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    allowed = labels[positives][:, None] != labels
    others = [torch.nonzero(row).flatten().tolist() for row in allowed]
    every = [
        contrast_pairs(embeddings, banks, positives, torch.tensor([[a], [b]]), 0.3)[1]
        for a, b in itertools.product(*others)
    ]
    _, exact = contrast_pairs(embeddings, banks, positives, None, 0.3, allowed=allowed, count=1)
    torch.testing.assert_close(exact, torch.stack(every).mean(0), rtol=1e-12, atol=0)


def test_the_shared_draw_is_unbiased() -> None:
    """The mean over every set of rows that may be drawn is the expectation over independent draws."""
    embeddings, banks, positives, _ = example(peers=2, rows=7, batch=3)
    labels = torch.tensor([0, 1, 0, 2, 1, 2, 2])
    own, fixed = labels[positives], torch.full((2, 2), 7.0, dtype=torch.float64)

    def loss(rows: Tensor, chosen: Tensor | None) -> Tensor:
        allowed = other_classes(own, labels[rows], torch.float64)
        usable = allowed(slice(None)).sum(1)
        negatives = expected(banks, allowed, usable, 5, chosen)
        return contrast_pairs(embeddings, banks, positives, negatives, 0.3, fixed=fixed)[0]

    every = [torch.tensor(rows) for rows in itertools.combinations(range(7), 4)]  # at most three rows are of one class
    mean = torch.stack([loss(rows, rows) for rows in every]).mean(0)
    torch.testing.assert_close(mean, loss(torch.arange(7), None), rtol=1e-12, atol=0)


@pytest.mark.parametrize("keep", [1, 1 << 26])
@pytest.mark.parametrize("kind", ["shared", "all"])
def test_rows_that_images_share_equal_the_slow_form(kind: str, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast_plan, "KEEP_BYTES", keep)
    monkeypatch.setitem(contrast_plan.PIECE_BYTES, "cpu", 2000)
    labels = torch.arange(60) % 4
    contrast = module(labels, negatives=kind, shared_rows=21, num_negatives=9).double()
    features, indices = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True), torch.tensor([1, 7, 30, 44, 59])
    rows = contrast.draw_shared().long() if kind == "shared" else torch.arange(60)
    usable = (labels[indices][:, None] != labels[rows]).double()
    weights = 9 * usable / usable.sum(1, keepdim=True)
    embeddings, slow = contrast.embed(features), torch.zeros(())
    for a, b in ((0, 1), (1, 0)):
        bank = contrast.banks[b].clone()
        positive = (embeddings[a] * bank[indices]).sum(1).div(0.1).exp()
        x = (embeddings[a] @ bank[rows].T / 0.1).exp()
        z = 60 * ((positive.sum() + (weights * x).sum()) / (5 * (9 + 1))).detach()
        c = 9 / 60
        slow = slow + (1 + (c + 1e-7) / (positive / z)).log().mean()
        slow = slow + (weights * (1 + (x / z + 1e-7) / c).log()).sum(1).mean()
    (wanted,) = torch.autograd.grad(slow, features)
    fast = contrast(features, indices)
    (found,) = torch.autograd.grad(fast, features)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_shared_rows_are_distinct_and_new_in_every_step() -> None:
    contrast = module(torch.arange(40) % 4, negatives="shared", shared_rows=12)
    first, again = contrast.draw_shared(), contrast.draw_shared()
    assert torch.equal(first, again), "a draw depends on seed and step alone"
    contrast(torch.randn(2, 3, 6), torch.tensor([1, 2, 3]))
    second = contrast.draw_shared()
    assert set(first.tolist()) != set(second.tolist())
    assert len(set(second.tolist())) == 12
    assert set(second.tolist()) <= set(range(40))
    small = module(torch.arange(6) % 2, negatives="shared", shared_rows=100)
    assert sorted(small.draw_shared().tolist()) == list(range(6)), "there are no more rows than that"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_negatives": 2}, r"gather \(K = 2 is less than 1/13.5 of 400 rows\), 8 images at a time"),
        ({"num_negatives": 200}, r"dense \(K = 200 is at least 1/13.5 of 400 rows\), 400 bank rows at a time"),
        ({"negatives": "all"}, r"dense \(all 400 rows count\), 400 bank rows"),
        ({"negatives": "shared", "shared_rows": 50}, r"dense \(50 shared rows\), 50 bank rows"),
    ],
)
def test_the_plan_is_what_is_done(options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contrast = module(torch.arange(400) % 4, **options)
    plan, done = contrast.plan(8), []
    assert re.match(words, str(plan))
    assert str(plan).endswith("MiB of working memory")
    real = closed_form.Contrast.apply
    monkeypatch.setattr(
        closed_form.Contrast, "apply", lambda *given: done.append(given[2].negatives.plan) or real(*given)
    )
    contrast(torch.randn(2, 8, 6), torch.arange(8))
    assert done == [plan]


def test_methods_without_a_contrast_have_no_plan() -> None:
    setting: dict[str, Any] = {"num_peers": 3, "num_classes": 2, "feature_dim": 6, "stem_dim": 6, "seed": 0}
    labels = torch.arange(40) % 4
    assert create_objective("dml", **setting).plan(8) is None
    assert create_objective("mcl", labels=labels, beta=0.0, **setting).plan(8) is None
    plan = create_objective("mcl-okd", labels=labels, num_negatives=20, **setting).plan(8)
    assert plan is not None
    assert plan.form == "dense"


@pytest.mark.parametrize("count", [64, 4096])  # gathered, and dense
def test_float32_stays_within_1e_6_of_float64(count: int) -> None:
    embeddings, banks, positives, _ = example(peers=2, rows=5000, batch=8, dim=64)
    negatives = torch.randint(5000, (8, count), generator=torch.Generator().manual_seed(0))
    double, _ = contrast_pairs(embeddings, banks, positives, negatives, 0.1)
    single, _ = contrast_pairs(embeddings.float(), banks.float(), positives, negatives, 0.1)
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


def test_half_precision_never_reaches_the_scores() -> None:
    """exp(1 / 0.07) is beyond float16: under autocast the loss must stay what it was."""
    embeddings, banks, positives, negatives = (x.float() if x.is_floating_point() else x for x in example())
    banks = nnf.normalize(banks, dim=-1)
    banks[:, positives] = embeddings.detach()
    expected, _ = contrast_pairs(embeddings, banks, positives, negatives, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = contrast_pairs(embeddings, banks, positives, negatives, 0.07)
    assert torch.equal(found, expected)


def module(labels: Tensor, peers: int = 2, **options: object) -> MultiViewContrast:
    contrast = create_objective(
        "mcl", num_peers=peers, num_classes=2, feature_dim=6, labels=labels, seed=3, embedding_dim=4, **options
    ).contrast
    assert isinstance(contrast, MultiViewContrast)
    return contrast


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), count=st.integers(1, 40), shuffle=st.randoms(use_true_random=False)
)  # fmt: skip
def test_negatives_are_of_other_classes_and_distinct_where_they_can_be(sizes: list[int], count: int, shuffle) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    shuffle.shuffle(labels)
    labels = torch.tensor(labels)
    contrast = module(labels, num_negatives=count)
    indices = torch.arange(len(labels))
    negatives = contrast.draw(indices)
    assert negatives.shape == (len(labels), count)
    assert bool((labels[negatives] != labels[:, None]).all())
    if count <= len(labels) - max(sizes):
        ordered = negatives.sort(1).values
        assert bool((ordered[:, 1:] != ordered[:, :-1]).all())
    assert torch.equal(negatives, contrast.draw(indices)), "a draw depends on seed and step alone"


def test_any_draws_from_every_class() -> None:
    labels = torch.tensor([0] * 5 + [1] * 5)
    drawn = module(labels, negatives="any", num_negatives=10).draw(torch.tensor([0]))
    assert sorted(drawn[0].tolist()) == list(range(10))


@pytest.mark.parametrize(("size", "count"), [(7, 2), (7, 5), (12, 10)])  # by redrawing repeats, and a row at a time
def test_every_subset_is_equally_likely(size: int, count: int) -> None:
    repeats = 30_000
    ranks = np.sort(draw_ranks(np.full(repeats, size), count, False, np.random.default_rng(0)), axis=1)
    _, counts = np.unique(ranks, axis=0, return_counts=True)
    subsets = math.comb(size, count)
    expected = repeats / subsets
    assert len(counts) == subsets
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.isf(1e-4, subsets - 1)


def test_only_rows_of_the_batch_move_and_they_have_unit_norm() -> None:
    contrast = module(torch.arange(20) % 4, num_negatives=3)
    before, indices = contrast.banks.clone(), torch.tensor([3, 11, 7])
    contrast(torch.randn(2, 3, 6), indices)
    others = [row for row in range(20) if row not in indices]
    assert torch.equal(contrast.banks[:, others], before[:, others])
    torch.testing.assert_close(contrast.banks[:, indices].norm(dim=-1), torch.ones(2, 3))
    assert int(contrast.step) == 1
    contrast.eval()
    moved = contrast.banks.clone()
    contrast(torch.randn(2, 3, 6), indices)
    assert torch.equal(contrast.banks, moved), "evaluation leaves the banks alone"


def test_of_a_repeated_image_the_last_occurrence_counts() -> None:
    features = torch.randn(2, 3, 6)
    one, other = (module(torch.arange(20) % 4, num_negatives=3) for _ in range(2))
    other.load_state_dict(one.state_dict())
    one(features, torch.tensor([5, 8, 5]))
    other(features[:, 1:], torch.tensor([8, 5]))
    torch.testing.assert_close(one.banks, other.banks)


def test_fixed_normalisers_are_those_of_the_first_batch() -> None:
    contrast = module(torch.arange(20) % 4, num_negatives=3, normaliser="fixed")
    features, indices = torch.randn(2, 3, 6), torch.tensor([1, 2, 3])
    contrast(features, indices)
    first = contrast.normalisers.clone()
    assert bool((first[0, 1] > 0) & (first[1, 0] > 0))
    contrast(features, indices)
    assert torch.equal(contrast.normalisers, first)


def test_bank_init() -> None:
    labels = torch.arange(4000) % 4
    assert float(module(labels).banks.square().sum(-1).mean()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(module(labels, bank_init="unit").banks.norm(dim=-1), torch.ones(2, 4000))


def test_the_contrast_may_read_the_average_of_a_map() -> None:
    maps = torch.randn(2, 3, 6, 5, 5)  # six channels
    options = {"num_peers": 2, "num_classes": 2, "labels": torch.arange(20) % 4, "seed": 3, "num_negatives": 3}
    flat = create_objective("mcl", feature_dim=6, **options).contrast
    gap = create_objective("mcl", feature_dim=150, feature_channels=6, contrast_feature="gap", **options).contrast
    gap.load_state_dict(flat.state_dict())
    indices = torch.tensor([1, 5, 9])
    torch.testing.assert_close(gap(maps.flatten(2), indices), flat(maps.mean((3, 4)), indices))


def test_loss_at_initialisation_is_what_theory_says() -> None:
    """ln K + 1 + 1 / (2 * 128 * tau^2) for each ordered pair (algorithms section 3.4)."""
    contrast = create_objective(
        "mcl", num_peers=4, num_classes=2, feature_dim=64, labels=torch.arange(5000) % 50, seed=0
    ).contrast
    loss = contrast(torch.randn(4, 64, 64), torch.randperm(5000)[:64]).item() / 12
    assert loss == pytest.approx(6.94, abs=0.15)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_negatives": 99, "replacement": "no"}, "num_negatives=15"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"num_negatives": 0}, "num_negatives >= 1"),
        ({"negatives": "shared", "shared_rows": 0}, "shared_rows >= 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        module(torch.arange(20) % 4, **options)


def test_one_class_has_no_negatives() -> None:
    with pytest.raises(UserError, match="at least two classes"):
        module(torch.zeros(5, dtype=torch.int64))
