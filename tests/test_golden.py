"""Reference values of the published implementations (tests/golden/open.json): float64 to 1e-9, float32 to 1e-5."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_mcl.evaluation import Result
from fewshot_mcl.networks import PeerNetwork, PeerOutputs, create_backbone
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.objectives import functional as F

CASES = json.loads((Path(__file__).parent / "golden" / "open.json").read_text())["cases"]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def close(value: Tensor, reference: Any, dtype: torch.dtype, factor: float = 1) -> None:
    """The references' own measure: largest difference over largest value."""
    expected = torch.as_tensor(reference, dtype=torch.float64)
    value = value.detach().double()
    assert value.shape == expected.shape
    error = (value - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= TOLERANCE[dtype] * factor, float(error)


def bank_of(case: dict[str, Any]) -> Tensor:
    if isinstance(case["memory_before"], list):
        return torch.tensor(case["memory_before"])
    m, n, d = torch.meshgrid(*(torch.arange(case[k], dtype=torch.float64) for k in "MND"), indexing="ij")
    bank = 1.5 * torch.sin(1 + 0.37 * n + 1.3 * d + 2.1 * m) / math.sqrt(case["D"])
    return bank.to(torch.get_default_dtype())


@pytest.mark.parametrize("case", CASES["contrast"], ids=lambda case: case["name"])
def test_contrast(case: dict[str, Any], dtype: torch.dtype) -> None:
    embeddings = torch.tensor(case["embeddings"], requires_grad=True)
    ids = torch.tensor(case["contrast_idx"])
    pairs = F.multi_view_contrast(
        embeddings, bank_of(case), ids[:, 0], ids[:, 1:], case["tau"], case["eps"], return_pairs=True
    )
    for pair in case["pairs"]:
        close(pairs[pair["anchor"], pair["bank"]], pair["loss"], dtype)
    assert not pairs.diagonal().any()
    total = F.multi_view_contrast(embeddings, bank_of(case), ids[:, 0], ids[:, 1:], case["tau"], case["eps"])
    close(total, case["total"], dtype)
    total.backward()
    close(embeddings.grad, case["grad_embeddings"], dtype)


@pytest.mark.parametrize("case", CASES["mcl_okd_step"])
def test_mcl_okd_step(case: dict[str, Any], dtype: torch.dtype) -> None:
    options = {"beta": case["beta"], "temperature": case["tau"], "bank_momentum": case["momentum"]}
    options |= {"embedding_dim": case["D"], "num_negatives": case["K"], "T": float(case["T"])}
    logits = torch.tensor(case["logits"], requires_grad=True)
    features = torch.tensor(case["features"], requires_grad=True)
    peers, _, classes = logits.shape
    objective = create_objective(
        "mcl-okd",
        num_peers=peers,
        num_classes=classes,
        feature_dim=features.shape[-1],
        labels=torch.arange(case["N"]) % 4,
        **options,
    )
    contrast, ids = objective.contrast, torch.tensor(case["contrast_idx"])
    for head, weight, bias in zip(contrast.heads, case["head_weight"], case["head_bias"]):
        head.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    contrast.banks.copy_(torch.tensor(case["memory_before"]))
    contrast.draw = lambda indices: ids[:, 1:]
    index = torch.tensor(case["index"])
    out = PeerOutputs(features, logits)
    terms = objective(out, torch.tensor(case["target"]), indices=index)
    terms["total"].backward()
    close(terms["ce"], case["loss_ce"], dtype)
    close(terms["kl"], case["loss_kl_T2"], dtype)
    close(terms["contrast"], case["beta"] * case["loss_contrast"], dtype)
    close(terms["total"], case["loss"], dtype)
    close(terms["ce"] + terms["contrast"], case["loss_mcl_only"], dtype)
    close(objective.ensemble(out), case["ensemble_logits"], dtype)
    close(logits.grad, case["grad_logits"], dtype)
    close(features.grad, case["grad_features"], dtype)
    close(torch.stack([head.weight.grad for head in contrast.heads]), case["grad_head_weight"], dtype)
    close(contrast.banks[:, index], case["memory_after_at_index"], dtype)
    others = [row for row in range(case["N"]) if row not in case["index"]]
    assert torch.equal(contrast.banks[:, others], torch.tensor(case["memory_before"])[:, others])


@pytest.mark.parametrize("case", CASES["contrast"], ids=lambda case: case["name"])
def test_bank_update(case: dict[str, Any], dtype: torch.dtype) -> None:
    bank, index = bank_of(case), torch.tensor(case["index"])
    objective = create_objective(
        "mcl", num_peers=case["M"], num_classes=2, feature_dim=case["D"], labels=torch.arange(case["N"]) % 4,
        embedding_dim=case["D"], bank_momentum=case["momentum"], num_negatives=case["K"], replacement="yes",
    )  # fmt: skip
    objective.contrast.banks.copy_(bank)
    objective.contrast.embed = lambda features: features
    objective.contrast(torch.tensor(case["embeddings"]), index)
    close(objective.contrast.banks[:, index], case["memory_after_at_index"], dtype)


@pytest.mark.parametrize("case", CASES["proto"])
def test_prototypical_loss(case: dict[str, Any], dtype: torch.dtype) -> None:
    support = torch.tensor(case["support"], requires_grad=True)
    query = torch.tensor(case["query_emb"], requires_grad=True)
    centres = F.prototypes(support)
    logits = F.prototypical_logits(query.flatten(0, 1), centres)
    targets = torch.arange(case["way"]).repeat_interleave(case["query"])
    loss = F.cross_entropy(logits[None], targets)[0]
    loss.backward()
    close(centres, case["prototypes"], dtype)
    close(loss, case["loss"], dtype)
    assert (logits.argmax(1) == targets).double().mean().item() == pytest.approx(case["accuracy"])
    close(support.grad, case["grad_support"], dtype)
    close(query.grad, case["grad_query"], dtype)


def test_interval() -> None:
    case = CASES["ci95"]
    result = Result(torch.tensor(case["accuracies"], dtype=torch.float64))
    assert result.mean == pytest.approx(case["mean"], rel=1e-12)
    assert result.ci95 == pytest.approx(case["ci95"], rel=1e-12)


def set_by_recipe(network: nn.Module) -> None:
    """The fingerprint's parameters: constants for each layer, so that nothing depends on names or channel order."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            nn.init.constant_(module.bias, 0.01)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.8)


def fingerprint_images(size: int) -> Tensor:
    b, c, h, w = torch.meshgrid(*map(torch.arange, (4, 3, size, size)), indexing="ij")
    images = torch.sin(0.11 * (b + 1).double() * h + 0.23 * w * (1 + 0.01 * w) + 0.7 * c) + 0.1 * c
    return images.to(torch.get_default_dtype())


@pytest.mark.parametrize("build", ["single", "deployed"])
def test_conv4_fingerprint(build: str, dtype: torch.dtype) -> None:
    case = CASES["fingerprint"]["conv4_64"]
    network = create_backbone("conv4") if build == "single" else PeerNetwork("conv4", 4).deployed()
    assert sum(p.numel() for p in network.parameters()) == case["params"] == 113_088
    assert network.feature_dim == case["feature_dim"] == 1600
    set_by_recipe(network)
    features = network.train()(fingerprint_images(case["input_size"]))
    close(features.mean(1), case["feature_mean"], dtype, 10)
    close(features.min(1).values, case["feature_min"], dtype, 10)
    close(features.max(1).values, case["feature_max"], dtype, 10)
    close(features.square().sum(1), case["feature_sumsq"], dtype, 10)
