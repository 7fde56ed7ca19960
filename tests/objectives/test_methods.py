"""What must hold of each method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import METHODS, create_objective
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective

LABELS = torch.arange(30) % 5


def build(method: str, peers: int = 3, **options: object) -> Objective:
    return create_objective(method, num_peers=peers, num_classes=4, feature_dim=6, labels=LABELS, **options)


def outputs(peers: int = 3, batch: int = 8, queries: int = 5) -> tuple[PeerOutputs, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(peers, queries, 4, requires_grad=True)
    features = torch.randn(peers, batch, 6, requires_grad=True)
    return PeerOutputs(features, logits), torch.randint(4, (queries,)), torch.randperm(30)[:batch]


WEIGHS_BY_FEATURES = ("one", "okddip")  # logits and features must be of the same images


@pytest.mark.parametrize("method", METHODS)
def test_total_is_the_sum_of_the_terms_and_reaches_every_peer(method: str) -> None:
    objective = build(method)
    if objective.needs_teacher:
        objective.set_teacher(torch.randn(30, 5))
    out, targets, indices = outputs(queries=8 if method in WEIGHS_BY_FEATURES else 5)
    terms = objective(out, targets, indices=indices, epoch=3)
    total = terms.pop("total")
    torch.testing.assert_close(total, torch.stack(list(terms.values())).sum())
    total.backward()
    assert all(out.logits.grad[m].abs().sum() > 0 for m in range(3))
    assert all(p.grad is not None for p in objective.parameters())
    assert objective.ensemble(out).shape == out.logits.shape[1:]


def test_the_kl_teaches_the_last_peer_alone() -> None:
    out, targets, _ = outputs()
    terms = build("mcl-okd", beta=0.0)(out, targets)
    terms["kl"].backward()
    assert not out.logits.grad[:-1].any()
    assert out.logits.grad[-1].any()


def test_without_detaching_the_teacher_learns_too() -> None:
    out, targets, _ = outputs()
    build("mcl-okd", beta=0.0, detach_teacher=False)(out, targets)["kl"].backward()
    assert out.logits.grad[0].any()


def test_without_kl_and_contrast_mcl_okd_is_the_baseline() -> None:
    out, targets, indices = outputs()
    ours = build("mcl-okd", beta=0.0, kl_weight=0.0)(out, targets, indices=indices)["total"]
    baseline = build("baseline")(out, targets, indices=indices)["total"]
    torch.testing.assert_close(ours, baseline)
    independent = sum(torch.nn.functional.cross_entropy(z, targets) for z in out.logits)
    torch.testing.assert_close(baseline, independent)


def test_mcl_is_mcl_okd_without_the_kl() -> None:
    out, targets, indices = outputs()
    mcl, both = build("mcl", num_negatives=4), build("mcl-okd", num_negatives=4)
    both.load_state_dict(mcl.state_dict())
    terms = both(out, targets, indices=indices)
    torch.testing.assert_close(mcl(out, targets, indices=indices)["total"], terms["total"] - terms["kl"])


def test_distillation_is_torchs_kl() -> None:
    student, teacher = torch.randn(2, 7, 4, dtype=torch.float64)
    p, q = (student / 3).log_softmax(-1), (teacher / 3).softmax(-1)
    expected = 9 * torch.nn.functional.kl_div(p, q, reduction="batchmean")
    torch.testing.assert_close(F.distillation(student, teacher, 3.0), expected)


def test_rampup() -> None:
    assert F.rampup(0, 80) == pytest.approx(0.006737946999085467)
    assert F.rampup(50, 80) == pytest.approx(0.4950358969261986)
    assert F.rampup(80, 80) == F.rampup(500, 80) == F.rampup(0, 0) == 1
    out, targets, _ = outputs()
    early = build("mcl-okd", beta=0.0, kl_rampup_epochs=80)(out, targets, epoch=0)["kl"]
    late = build("mcl-okd", beta=0.0)(out, targets, epoch=0)["kl"]
    torch.testing.assert_close(early, late * F.rampup(0, 80))


def test_prototypical_logits_are_the_obvious_distances() -> None:
    query, centres = torch.randn(2, 9, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    slow = -(query[:, :, None] - centres[:, None]).square().sum(-1)
    torch.testing.assert_close(F.prototypical_logits(query, centres), slow)
    far = F.prototypical_logits((query + 1000).float(), (centres + 1000).float())
    torch.testing.assert_close(far.double(), slow, rtol=0, atol=2e-2)
    cosine = torch.nn.functional.cosine_similarity(query[:, :, None], centres[:, None], dim=-1)
    torch.testing.assert_close(F.prototypical_logits(query, centres, "cosine", 10.0), 10 * cosine)


@pytest.mark.parametrize("method", ["mcl", "mcl-okd"])
def test_one_peer_is_refused(method: str) -> None:
    with pytest.raises(UserError, match="at least 2 peers"):
        build(method, peers=1)
    assert build("baseline", peers=1) is not None


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'mcl-okd'"):
        build("mclokd")
    with pytest.raises(UserError, match="Did you mean 'temperature'"):
        build("mcl-okd", temprature=0.1)
    with pytest.raises(UserError, match="has no options"):
        build("baseline", beta=1.0)
