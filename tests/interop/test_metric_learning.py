"""Against the real pytorch-metric-learning: each of its losses, called directly, is our term."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

from fewshot_mcl.config import resolve
from fewshot_mcl.data import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.objectives.metric_learning import _kinds
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.supervised import SupervisedTask

LABELS = torch.arange(40) % 5
OF_PARAMETERS = ("ArcFaceLoss", "ProxyAnchorLoss", "SoftTripleLoss", "P2SGradLoss")
ARGUMENTS = {"RankedListLoss": {"margin": 0.4, "Tn": 1.0}}
CPU = torch.device("cpu")


def build(loss: str, peers: int = 2, **options):
    return create_objective(
        "metric-learning", num_peers=peers, num_classes=3, feature_dim=6, labels=LABELS, seed=4, loss=loss, **options
    )


def outputs(peers: int = 2):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(peers, 15, 6, generator=generator).requires_grad_()
    return PeerOutputs(features, torch.zeros(peers, 4, 3)), torch.randperm(15, generator=generator)


def library():
    from pytorch_metric_learning import losses

    return losses


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", sorted(set(_kinds()) - {"VICRegLoss", "ManifoldLoss"}))
def test_the_term_is_the_library_called_directly(name: str) -> None:
    given = ARGUMENTS.get(name, {})
    objective, (out, rows) = build(name, arguments=given, weight=0.3), outputs()
    kind = getattr(library(), name)
    parameters = {p.name for c in kind.__mro__ if "__init__" in vars(c) for p in _parameters(c)}
    sizes = {"num_classes": 5, "embedding_size": 6, "descriptors_dim": 6}
    expected = 0
    for features, learnt in zip(out.features, objective.losses):
        direct = kind(**{key: value for key, value in sizes.items() if key in parameters}, **given)
        direct.load_state_dict(learnt.state_dict())
        expected += 0.3 * direct(features, LABELS[rows])
    term = objective.feature_terms(out, rows)["metric"]
    torch.testing.assert_close(term, expected)
    term.backward()
    assert bool(out.features.grad.isfinite().all())
    assert all(bool(features.any()) for features in out.features.grad), "every peer learns from it"
    assert all(p.grad is not None for p in objective.parameters())


def _parameters(kind):
    import inspect

    return inspect.signature(kind.__init__).parameters.values()


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_peers_have_proxies_of_their_own_which_are_saved(name: str) -> None:
    objective = build(name)
    first, second = (list(loss.parameters()) for loss in objective.losses)
    assert first
    assert not torch.equal(first[0], second[0])
    again = build(name)
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters(), again.parameters(), strict=True)) is False
    again.load_state_dict(objective.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters(), again.parameters(), strict=True))


def test_a_loss_that_draws_does_so_from_seed_and_images() -> None:
    objective, (out, rows) = build("TripletMarginLoss", arguments={"triplets_per_anchor": 1, "margin": 1.0}), outputs()
    state = torch.get_rng_state()
    values = [float(objective.feature_terms(out, each)["metric"]) for each in (rows, rows, rows.flip(0))]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_head_is_between_features_and_loss() -> None:
    objective, (out, rows) = build("ContrastiveLoss", embedding_dim=3, weight=2.0), outputs()
    direct = library().ContrastiveLoss()
    expected = sum(2 * direct(head(f), LABELS[rows]) for head, f in zip(objective.heads, out.features))
    torch.testing.assert_close(objective.feature_terms(out, rows)["metric"], expected)
    assert [head.weight.shape for head in objective.heads] == [(3, 6)] * 2
    assert build("ArcFaceLoss", embedding_dim=3).losses[0].W.shape == (3, 5)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("SupKonLoss", {}, "unknown loss of pytorch-metric-learning 'SupKonLoss'. Did you mean 'SupConLoss'"),
        ("supconloss", {}, "Did you mean 'SupConLoss'"),
        ("CrossBatchMemory", {}, "unknown loss"),
        ("BaseMetricLossFunction", {}, "unknown loss"),
        ("VICRegLoss", {}, "VICRegLoss does not work on features and labels"),
        ("RankedListLoss", {}, "margin.*objective.arguments"),
        ("SupConLoss", {"arguments": {"temprature": 1.0}}, "temprature"),
        ("SupConLoss", {"embedding_dim": -1}, "embedding_dim = -1"),
    ],
)
def test_what_cannot_be_is_refused_before_training(loss, options, message) -> None:
    with pytest.raises(UserError, match=message):
        build(loss, **options)


def tasks(backbone: str, *settings: str):
    """A task of either kind on random images of six classes."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (48, 3, 16, 16), dtype=torch.uint8, generator=generator)
    store = ImageStore(images, torch.arange(6).repeat_interleave(8), list("abcdef"))
    options = {"method": "metric-learning", "backbone": backbone, "peers": 2}
    small = ["way=3", "query=2", "val_way=2", "val_query=2", "val_episodes=2"]
    yield EpisodicTask(resolve(None, options, [*settings, *small]), store, store, CPU)
    yield SupervisedTask(resolve(None, options, [*settings, "batch=16"], task="classify"), store, None, CPU)


@pytest.mark.parametrize(("backbone", "loss"), [("conv4", "ProxyAnchorLoss"), ("resnet32", "SupConLoss")])
def test_it_learns_in_both_tasks(backbone: str, loss: str) -> None:
    for task in tasks(backbone, f"objective.loss={loss}", "objective.weight=0.25", "objective.arguments={}"):
        terms, _ = task.step(0)
        assert set(terms) == {"ce", "metric", "total"}
        assert bool(terms["total"].isfinite())
        torch.testing.assert_close(terms["total"], terms["ce"] + terms["metric"])
        terms["total"].backward()
        assert all(p.grad is not None for p in task.modules().parameters())


def test_options_are_saved_and_read_back(tmp_path) -> None:
    settings = ["method=metric-learning", "objective.loss=NTXentLoss", "objective.arguments={temperature=0.2}"]
    config = resolve(None, {}, settings)
    assert config.objective == {
        "loss": "NTXentLoss",
        "weight": 0.5,
        "embedding_dim": 0,
        "arguments": {"temperature": 0.2},
    }
    for each in (config, resolve(None, {"method": "metric-learning"})):
        file = tmp_path / "run.toml"
        file.write_text(each.to_toml())
        assert resolve(str(file)) == each
    assert resolve(None, {"method": "metric-learning"}).peers == 1


def test_missing_library_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(UserError, match=r"fewshot-mcl\[metric-learning\]"):
        build("SupConLoss")
    without_labels = create_objective("metric-learning", num_peers=2, num_classes=3, feature_dim=6)
    assert without_labels.ensemble(outputs()[0]).shape == (4, 3), "an evaluation needs no library"


def test_a_step_that_a_loss_cannot_work_on_is_refused_in_a_sentence() -> None:
    out, _ = outputs()
    with pytest.raises(UserError, match="SmoothAPLoss cannot work on this step's images"):
        build("SmoothAPLoss").feature_terms(out, torch.tensor([0, *range(14)]))


def test_warnings_of_the_library_do_not_reach_a_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective, (out, rows) = build("SupConLoss"), outputs()
        objective.feature_terms(out, rows)
