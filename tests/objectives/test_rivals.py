"""DML, CL-ILR, ONE, OKDDip and RKD: reference values, slow references, and what the gradient must and must not reach."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import METHODS, create_objective, options_of
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective

CASES = json.loads((Path(__file__).parents[1] / "golden" / "open.json").read_text())["cases"]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def close(value: Tensor, reference: Any, dtype: torch.dtype = torch.float64) -> None:
    """The references' own measure: largest difference over largest value."""
    expected = torch.as_tensor(reference).double()
    value = value.detach().double()
    assert value.shape == expected.shape
    error = (value - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= TOLERANCE[dtype], float(error)


def leaf(values: Any) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def build(method: str, logits: Tensor, feature_dim: int = 6, stem_dim: int | None = None, **options: Any) -> Objective:
    peers, _, classes = logits.shape
    return create_objective(
        method, num_peers=peers, num_classes=classes, feature_dim=feature_dim, stem_dim=stem_dim, **options
    )


def outputs(peers: int = 4, batch: int = 7, stem: int | None = None) -> tuple[PeerOutputs, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    out = PeerOutputs(random(peers, batch, 16), random(peers, batch, 5), random(batch, stem) if stem else None)
    return out, torch.randint(5, (batch,), generator=generator)


# --- reference values of the published implementations


@pytest.mark.parametrize("case", CASES["dml"])
def test_dml_reference(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits = leaf(case["logits"])
    objective, out = build("dml", logits, T=float(case["T"])), PeerOutputs(logits[..., :1], logits)
    terms = objective(out, torch.tensor(case["target"]))
    terms["total"].backward()
    close(terms["ce"], case["loss_ce"], dtype)
    close(terms["kl"], case["loss_kl"], dtype)
    close(terms["total"], case["loss"], dtype)
    close(logits.grad, case["grad_logits"], dtype)
    close(objective.ensemble(out), case["ensemble_logits"], dtype)


@pytest.mark.parametrize("case", CASES["cl_ilr"])
def test_cl_ilr_reference(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits = leaf(case["logits"])
    objective, out = build("cl-ilr", logits, T=float(case["T"])), PeerOutputs(logits[..., :1], logits)
    terms = objective(out, torch.tensor(case["target"]))
    terms["total"].backward()
    close(terms["ce"], case["loss_ce_weighted"], dtype)
    close(terms["kl"], case["loss_kl_weighted"], dtype)
    close(terms["total"], case["loss"], dtype)
    close(logits.grad, case["grad_logits"], dtype)
    close(objective.ensemble(out), case["ensemble_logits_all_peers"], dtype)
    published = build("cl-ilr", logits, ensemble="as-published")
    close(published.ensemble(out), case["ensemble_logits_as_official_code_scores"], dtype)


@pytest.mark.parametrize("case", CASES["one"])
def test_one_reference(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits, stem = leaf(case["logits"]), leaf(case["stem_gap"])
    objective = build("one", logits, stem_dim=stem.shape[1], T=float(case["T"]))
    linear, norm, _ = objective.gate
    linear.load_state_dict({"weight": torch.tensor(case["gate_weight"]), "bias": torch.tensor(case["gate_bias"])})
    norm.load_state_dict(
        {"weight": torch.tensor(case["gate_bn_gamma"]), "bias": torch.tensor(case["gate_bn_beta"])}, strict=False
    )
    assert norm.eps == case["bn_eps"]
    out = PeerOutputs(logits[..., :1], logits, stem)
    terms = objective(out, torch.tensor(case["target"]))
    terms["total"].backward()
    close(objective.weights(out), case["gate"], dtype)
    close(objective.ensemble(out), case["gated_logits"], dtype)
    close(terms["ce"] + terms["gated_ce"], case["loss_ce"], dtype)
    close(terms["kl"], case["loss_kl"], dtype)
    close(terms["total"], case["loss"], dtype)
    close(logits.grad, case["grad_logits"], dtype)
    close(stem.grad, case["grad_stem_gap"], dtype)
    close(linear.weight.grad, case["grad_gate_weight"], dtype)
    close(norm.weight.grad, case["grad_gate_bn_gamma"], dtype)
    close(norm.bias.grad, case["grad_gate_bn_beta"], dtype)


@pytest.mark.parametrize("case", CASES["okddip"])
def test_okddip_reference(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits, features = leaf(case["logits"]), leaf(case["features"])
    objective = build(
        "okddip", logits, features.shape[-1], T=float(case["T"]), kl_rampup_epochs=int(case["ramp_length"])
    )
    objective.query.load_state_dict({"weight": torch.tensor(case["W_query"])})  # refuses another width
    objective.key.load_state_dict({"weight": torch.tensor(case["W_key"])})
    out = PeerOutputs(features, logits)
    targets, weight = torch.tensor(case["target"]), case["consistency_weight"]
    terms = objective(out, targets, epoch=case["epoch"])
    terms["total"].backward()
    close(objective.attention(out), case["attention"], dtype)
    close(objective.peer_targets(out).transpose(0, 1), case["peer_targets"], dtype)
    close(F.cross_entropy(logits, targets)[:-1].sum(), case["loss_ce_aux"], dtype)
    close(terms["kl"] / weight, case["loss_kl_aux"], dtype)
    close(terms["total"], case["loss"], dtype)
    close(logits.grad, case["grad_logits"], dtype)
    close(features.grad, case["grad_features"], dtype)
    close(objective.query.weight.grad, case["grad_W_query"], dtype)
    close(objective.key.weight.grad, case["grad_W_key"], dtype)
    close(objective.ensemble(out) * len(logits), case["ensemble_logits_sum"], dtype)


@pytest.mark.parametrize("case", CASES["rkd"])
def test_rkd_reference(case: dict[str, Any], dtype: torch.dtype) -> None:
    teacher = leaf(case["teacher"])
    for loss, name in ((F.rkd_distance, "distance"), (F.rkd_angle, "angle")):
        student = leaf(case["student"])
        value = loss(student, teacher)
        value.backward()
        close(value, case[f"{name}_loss"], dtype)
        close(student.grad, case[f"grad_{name}"], dtype)
    assert teacher.grad is None


def test_rampup_reference() -> None:
    for epoch, weight in CASES["schedules"]["okddip_consistency_weight"].items():
        assert F.rampup(int(epoch), 80) == pytest.approx(weight, rel=1e-12)


# --- slow references, from the formulas


def slow_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    return temperature**2 * (q * (q / p).log()).sum() / len(student)


@pytest.mark.parametrize(("average", "detach"), [(True, True), (False, True), (True, False)])
def test_dml_is_the_sum_over_pairs(double: None, average: bool, detach: bool) -> None:
    out, targets = outputs()
    objective = build("dml", out.logits, average_partners=average, detach_teacher=detach)
    terms = objective(out, targets)
    (grad,) = torch.autograd.grad(terms["total"], out.logits)
    z = out.logits
    expected = sum(nnf.cross_entropy(each, targets) for each in z)
    for i, j in permutations(range(4), 2):
        expected = expected + slow_kl(z[i], z[j].detach() if detach else z[j], 2.0) / (3 if average else 1)
    close(terms["total"], expected)
    close(grad, torch.autograd.grad(expected, z)[0])


def test_cl_ilr_is_the_sum_over_peers(double: None) -> None:
    out, targets = outputs()
    terms = build("cl-ilr", out.logits, ce_weight=0.3, kl_weight=0.7, T=4.0)(out, targets)
    (grad,) = torch.autograd.grad(terms["total"], out.logits)
    expected = torch.zeros(())
    for i, student in enumerate(out.logits):
        others = torch.stack([z for j, z in enumerate(out.logits) if j != i]).mean(0).detach()
        expected = expected + 0.3 * nnf.cross_entropy(student, targets) + 0.7 * slow_kl(student, others, 4.0)
    close(terms["total"], expected)
    close(grad, torch.autograd.grad(expected, out.logits)[0])


def smooth(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, x * x / 2, x.abs() - 0.5)


def slow_cosines(f: Tensor) -> Tensor:
    """(n, n, n), one triplet at a time; a pair of coincident points has the direction 0, and it is a constant."""

    def direction(i: int, j: int) -> Tensor:
        d = f[j] - f[i]
        return d / d.norm() if bool((d != 0).any()) else torch.zeros_like(d)

    n = range(len(f))
    return torch.stack([direction(i, j) @ direction(i, k) for i in n for j in n for k in n])


def slow_distances(f: Tensor) -> Tensor:
    """(n * n,) over their mean; a distance below 1e-6 is the constant 1e-6, that of an image from itself 0."""

    def distance(i: int, j: int) -> Tensor:
        square = (f[i] - f[j]).square().sum()
        if i == j:
            return torch.zeros(())
        return square.sqrt() if square > 1e-12 else torch.tensor(1e-6)

    d = torch.stack([distance(i, j) for i in range(len(f)) for j in range(len(f))])
    return d / d[d > 0].mean()


SLOW = [(F.rkd_distance, slow_distances), (F.rkd_angle, slow_cosines)]


def points(*coincident: tuple[int, int], n: int = 7, dim: int = 5, seed: int = 0) -> Tensor:
    f = 3 * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 1
    for i, j in coincident:
        f[i] = f[j]
    return f.requires_grad_()


@pytest.mark.parametrize("relation", SLOW, ids=["distance", "angle"])
@pytest.mark.parametrize("same", [(), ((2, 5),), ((2, 5), (3, 5), (0, 1))], ids=["apart", "two", "many"])
@pytest.mark.parametrize("taught", [(), ((2, 5), (4, 6))], ids=["apart", "coincident"])
@pytest.mark.parametrize("dim", [3, 5])
def test_relations_are_the_obvious_ones(double: None, relation: Any, same: Any, taught: Any, dim: int) -> None:
    loss, slow = relation
    student, teacher = points(*same), points(*taught, dim=dim, seed=1)
    value, expected = loss(student, teacher), smooth(slow(student) - slow(teacher).detach()).mean()
    close(value, expected)
    close(torch.autograd.grad(3 * value, student)[0], torch.autograd.grad(3 * expected, student)[0])


def test_coincident_points_by_hand(double: None) -> None:
    """Two points in one place, a third at distance 1; the teacher has an equilateral triangle."""
    student = leaf([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    mu = (1 + 1 + 1e-6) / 3
    expected = 2 / 9 * ((1e-6 / mu - 1) ** 2 / 2 + 2 * (1 / mu - 1) ** 2 / 2)
    close(F.rkd_distance(student, teacher), torch.tensor(expected))
    # Cosines of student and teacher. At points 0, 1: 0 and 1 (jj, the coincident), 0 and 0.5 (jk twice); at 2: 1 and 0.5 twice.
    close(F.rkd_angle(student, teacher), torch.tensor((2 * (0.5 + 2 * 0.125) + 2 * 0.125) / 27))
    (grad,) = torch.autograd.grad(F.rkd_angle(student, teacher), student)
    assert grad.abs().max() < 1e-9  # all on one line: no angle turns to first order
    student = leaf([[1.0, 2.0]] * 3)
    for loss in (F.rkd_distance, F.rkd_angle):
        assert not torch.autograd.grad(loss(student, teacher), student)[0].any()


def test_no_gradient_through_distances_that_are_raised(double: None) -> None:
    student, teacher = points((2, 5)), points(seed=1)
    with torch.no_grad():
        student[2] += 1e-8
    value, expected = F.rkd_distance(student, teacher), slow_distances(student) - slow_distances(teacher).detach()
    close(value, smooth(expected).mean())
    close(torch.autograd.grad(value, student)[0], torch.autograd.grad(smooth(expected).mean(), student)[0])


@pytest.mark.parametrize("loss", [F.rkd_distance, F.rkd_angle])
def test_relations_do_not_depend_on_chunks(double: None, loss: Any) -> None:
    student, teacher = points(n=11, dim=6), points(n=11, dim=4, seed=1)
    whole, wholes = loss(student, teacher), torch.autograd.grad(loss(student, teacher), student)[0]
    for chunk_bytes in (1, 5000, 20000):
        part = loss(student, teacher, chunk_bytes)
        close(part, whole)
        close(torch.autograd.grad(part, student)[0], wholes)


@pytest.mark.parametrize("loss", [F.rkd_distance, F.rkd_angle])
def test_relations_far_from_the_origin_and_in_half_precision(loss: Any) -> None:
    student, teacher = points(), points(seed=1)
    expected = loss(student.double(), teacher.double())
    close(
        loss(student + 1000, teacher + 1000), loss((student + 1000).double(), (teacher + 1000).double()), torch.float32
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(loss(student, teacher), expected, torch.float32)
    assert loss(student.bfloat16(), teacher).dtype == torch.float32
    assert loss(student, teacher).requires_grad
    assert not loss(student.detach(), teacher).requires_grad


def test_one_image_has_no_relations() -> None:
    student = points(n=1)
    for loss in (F.rkd_distance, F.rkd_angle):
        value = loss(student, points(n=1, seed=1))
        assert value == 0
        assert not torch.autograd.grad(value, student)[0].any()


# --- where the gradient goes


def gradient(term: Tensor, *tensors: Tensor) -> list[bool]:
    """Whether each tensor gets one."""
    grads = torch.autograd.grad(term, tensors, retain_graph=True, allow_unused=True)
    return [g is not None and bool((g.abs() > 1e-7).any()) for g in grads]


@pytest.mark.parametrize("method", ["dml", "cl-ilr", "one", "okddip"])
@pytest.mark.parametrize("stem", [None, 3])
def test_every_parameter_learns(method: str, stem: int | None) -> None:
    out, targets = outputs(stem=stem)
    objective = build(method, out.logits, 16, stem)
    terms = objective(out, targets, epoch=3)
    total = terms.pop("total")
    torch.testing.assert_close(total, torch.stack(list(terms.values())).sum())
    total.backward()
    silent = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(silent) <= {"gate.0.bias"}  # batch norm takes its mean away: rounding errors at most
    assert all(p.grad is not None for p in objective.parameters())
    assert all(each.any() for each in out.logits.grad)
    assert objective.ensemble(out).shape == (7, 5)


def test_targets_of_dml_and_cl_ilr_are_constants(double: None) -> None:
    out, targets = outputs(peers=3)
    for method, weight in (("dml", 1.0), ("cl-ilr", 0.5)):
        terms = build(method, out.logits)(out, targets)
        (ours,) = torch.autograd.grad(terms["kl"], out.logits)
        z, fixed = out.logits[0], out.logits.detach()
        if method == "dml":
            expected = (slow_kl(z, fixed[1], 2.0) + slow_kl(z, fixed[2], 2.0)) / 2
        else:
            expected = weight * slow_kl(z, fixed[1:].mean(0), 2.0)
        close(ours[0], torch.autograd.grad(expected, out.logits)[0][0])
    free = build("dml", out.logits, detach_teacher=False)(out, targets)["kl"]
    detached = build("dml", out.logits)(out, targets)["kl"]
    assert torch.equal(free, detached)
    assert not torch.allclose(*(torch.autograd.grad(kl, out.logits)[0] for kl in (free, detached)))


@pytest.mark.parametrize("stem", [None, 3])
def test_the_gate_of_one_learns_from_the_gated_logits_alone(stem: int | None) -> None:
    out, targets = outputs(stem=stem)
    objective = build("one", out.logits, 16, stem)
    terms = objective(out, targets)
    gate = [objective.gate[0].weight, objective.gate[1].weight, objective.gate[1].bias]
    assert gradient(terms["gated_ce"], *gate, out.logits) == [True] * 4
    assert gradient(terms["ce"], *gate) == gradient(terms["kl"], *gate) == [False] * 3
    assert gradient(terms["kl"], out.logits) == [True]
    if stem:
        assert gradient(terms["gated_ce"], out.stem) == [True]
        assert gradient(terms["kl"], out.stem) == [False]
    assert gradient(terms["total"], out.features) == [False]  # constants to the gate, and no other term reads them


def test_the_gate_of_one_in_eval_mode() -> None:
    """Running statistics: an image's weights do not depend on the others, and looking changes nothing."""
    out, targets = outputs(stem=3)
    objective = build("one", out.logits, 16, 3)
    objective(out, targets)
    before = {name: value.clone() for name, value in objective.eval().state_dict().items()}
    weights = objective.weights(out)
    torch.testing.assert_close(weights.sum(1), torch.ones(7))
    one = PeerOutputs(out.features[:, :1], out.logits[:, :1], out.stem[:1])
    torch.testing.assert_close(objective.weights(one), weights[:1])
    slow = torch.stack([sum(weights[b, m] * out.logits[m, b] for m in range(4)) for b in range(7)])
    torch.testing.assert_close(objective.ensemble(out), slow)
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


def test_okddip_gradients() -> None:
    out, targets = outputs()
    published = build("okddip", out.logits, 16)
    maps = [published.query.weight, published.key.weight]
    assert maps[0].shape == maps[1].shape == (2, 16)
    terms = published(out, targets, epoch=80)
    assert gradient(terms["kl"], *maps, out.features) == [True] * 3
    assert gradient(terms["ce"], *maps) == gradient(terms["leader_kl"], *maps) == [False] * 2
    for name, peers in (("kl", [True, True, True, False]), ("leader_kl", [True] * 4)):
        (grad,) = torch.autograd.grad(terms[name], out.logits, retain_graph=True)
        assert [bool(each.any()) for each in grad] == peers
    assert not torch.autograd.grad(terms["kl"], out.features)[0][-1].any()  # the leader is not attended to


def test_okddip_with_constant_targets_still_trains_its_attention(double: None) -> None:
    out, targets = outputs()
    published, halfway = build("okddip", out.logits, 16), build("okddip", out.logits, 16, detach_targets="logits")
    halfway.load_state_dict(published.state_dict())
    both = [objective(out, targets, epoch=80)["kl"] for objective in (published, halfway)]
    assert torch.equal(*both)
    grads = [torch.autograd.grad(kl, [out.logits, o.query.weight]) for kl, o in zip(both, (published, halfway))]
    close(grads[1][1], grads[0][1])
    fixed = published.peer_targets(out).detach()  # in the logits' gradient only the students' side is left
    expected = sum(slow_kl(z, target, 3.0) for z, target in zip(out.logits, fixed))
    close(grads[1][0], torch.autograd.grad(expected, out.logits)[0])
    assert not torch.allclose(grads[0][0], grads[1][0])
    constant = build("okddip", out.logits, 16, detach_leader_target=True)(out, targets, epoch=80)["leader_kl"]
    (grad,) = torch.autograd.grad(constant, out.logits)
    assert [bool(each.any()) for each in grad] == [False, False, False, True]


def test_rampups() -> None:
    out, targets = outputs()
    for method, names in (("one", ["kl"]), ("okddip", ["kl", "leader_kl"])):
        objective = build(method, out.logits, 16, kl_rampup_epochs=40)
        start, full = objective(out, targets, epoch=10), objective(out, targets, epoch=40)
        for name in names:
            torch.testing.assert_close(start[name], full[name] * F.rampup(10, 40))
        torch.testing.assert_close(start["ce"], full["ce"])
    one = build("one", out.logits, 16)
    torch.testing.assert_close(one(out, targets, epoch=0)["kl"], one(out, targets, epoch=300)["kl"])


# --- RKD as a method


def rkd(method: str, peers: int = 1, **options: Any) -> tuple[Objective, PeerOutputs, Tensor, Tensor, Tensor]:
    out, targets = outputs(peers)
    labels = torch.arange(30) % 5
    objective = create_objective(method, num_peers=peers, num_classes=5, feature_dim=16, labels=labels, **options)
    table = torch.randn(30, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return objective, out, targets, table, torch.tensor([3, 8, 29, 0, 11, 4, 17])


@pytest.mark.parametrize("peers", [1, 3])
@pytest.mark.parametrize("given", ["table", "function"])
def test_rkd_terms(peers: int, given: str) -> None:
    for method, share in (("rkd-d", 1.0), ("rkd-da", 0.5)):
        objective, out, targets, table, indices = rkd(method, peers)
        objective.set_teacher(table if given == "table" else lambda i, table=table: table[i])
        terms = objective(out, targets, indices=indices)
        expected = {
            "ce": F.cross_entropy(out.logits, targets).sum(),
            "distance": 50 * share * sum(F.rkd_distance(f, table[indices]) for f in out.features),
        }
        if method == "rkd-da":
            expected["angle"] = 100 * share * sum(F.rkd_angle(f, table[indices]) for f in out.features)
        expected["total"] = sum(expected.values())
        assert terms.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(terms[name], value)
        terms["total"].backward()
        assert all(each.any() for each in out.features.grad)
        assert table.grad is None
        assert objective.state_dict() == {}


def test_rkd_reads_features_and_indices_not_logits() -> None:
    """On an episode there are fewer logits than images."""
    objective, out, targets, table, indices = rkd("rkd-da", distance_weight=2.0, angle_weight=4.0)
    objective.set_teacher(table)
    terms = objective(PeerOutputs(out.features, out.logits[:, :3]), targets[:3], indices=indices)
    torch.testing.assert_close(terms["distance"], F.rkd_distance(out.features[0], table[indices]))
    torch.testing.assert_close(terms["angle"], 2 * F.rkd_angle(out.features[0], table[indices]))


def test_rkd_without_its_teacher() -> None:
    objective, out, targets, table, indices = rkd("rkd-d")
    with pytest.raises(UserError, match="set_teacher"):
        objective(out, targets, indices=indices)
    for wrong in (table[:29], table[0]):
        with pytest.raises(ValueError, match="each of the 30 training images"):
            objective.set_teacher(wrong)


# --- names, options, refusals

OPTIONS = {
    "baseline": set(),
    "dml": {"T", "average_partners", "detach_teacher"},
    "cl-ilr": {"T", "ce_weight", "kl_weight", "ensemble"},
    "one": {"T", "kl_rampup_epochs"},
    "okddip": {"T", "kl_rampup_epochs", "detach_targets", "detach_leader_target"},
    "rkd-d": {"distance_weight"},
    "rkd-da": {"distance_weight", "angle_weight"},
}


def test_methods_in_the_order_of_the_tables() -> None:
    assert list(METHODS)[:-1] == ["baseline", "dml", "cl-ilr", "one", "okddip", "mcl", "mcl-okd", "rkd-d", "rkd-da"]
    assert list(METHODS)[-1] == "metric-learning", "which is in no table"


@pytest.mark.parametrize("method", OPTIONS)
def test_options(method: str) -> None:
    parameters = options_of(method)
    assert set(parameters) == OPTIONS[method]
    assert all(p.default is not p.empty and p.annotation is not p.empty for p in parameters.values())


@pytest.mark.parametrize(
    ("method", "least"), [("dml", 2), ("cl-ilr", 3), ("one", 2), ("okddip", 3), ("rkd-d", 1), ("rkd-da", 1)]
)
def test_fewest_peers(method: str, least: int) -> None:
    assert create_objective(method, num_peers=least, num_classes=5, feature_dim=16) is not None
    if least > 1:
        with pytest.raises(UserError, match=f"at least {least} peers, not {least - 1}: use --peers {least} or more"):
            create_objective(method, num_peers=least - 1, num_classes=5, feature_dim=16)


@pytest.mark.parametrize("method", ["one", "okddip"])
def test_logits_of_other_images_than_the_features_are_refused(method: str) -> None:
    out, targets = outputs()
    queries = PeerOutputs(out.features, out.logits[:, :4])
    with pytest.raises(UserError, match="logits of 4 images and features of 7: on episodes use --set kl_source=aux"):
        build(method, out.logits, 16)(queries, targets[:4])


@pytest.mark.parametrize("method", ["dml", "cl-ilr"])
def test_logits_of_other_images_than_the_features_are_fine(method: str) -> None:
    out, targets = outputs()
    queries = PeerOutputs(out.features, out.logits[:, :4])
    assert build(method, out.logits, 16)(queries, targets[:4])["total"].isfinite()
