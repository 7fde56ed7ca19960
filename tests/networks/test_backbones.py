"""Every backbone: the published counts and fingerprints, and peers of it under every preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import BACKBONES, Backbone, PeerNetwork, create_backbone, peers
from fewshot_mcl.networks.counting import count
from fewshot_mcl.networks.resnet import Residual

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "open.json").read_text())["cases"]
PUBLISHED = {"densenet40-12": "densenetd40k12", "resnet32": "resnet32", "resnet34": "resnet34"}  # our name -> theirs
SMALL = ["resnet32", "resnet110", "vgg16", "densenet40-12", "hcgnet-a1"]
FEATURES = {"resnet12": 512, "resnet18": 512, "resnet32": 64, "resnet34": 512, "resnet110": 256}
FEATURES |= {"vgg16": 512, "densenet40-12": 132, "hcgnet-a1": 414, "efficientnet-lite0": 1280}
NEW = sorted(FEATURES)


def sizes(name: str) -> tuple[int, int]:
    """Side of the images and number of classes of the published figures."""
    return (224, 1000) if name in ("resnet18", "resnet34") else (32, 100)


# Counts


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_single_networks(name: str) -> None:
    side, classes = sizes(name)
    golden = GOLDEN["counts"][PUBLISHED[name]]["baseline"]
    counts = count(create_backbone(name, classes, image_size=side), side)
    assert counts.parameters == golden["params"]
    assert counts.multiply_adds == golden["multi_adds_exact_one_image"]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, key.replace("_", "-"))
        for name in PUBLISHED
        for key in GOLDEN["counts"][PUBLISHED[name]]
        if key != "baseline"
    ],
)
def test_counts_of_four_peers(name: str, method: str) -> None:
    golden = GOLDEN["counts"][PUBLISHED[name]][method.replace("-", "_")]
    side, classes = sizes(name)
    graph = PeerNetwork(name, 4, classes, "paper-code", method)
    parameters, multiply_adds = golden["params"], golden["multi_adds_exact_one_image"]
    if method == "one":  # a linear gate with bias reads the stem, and batch norm of its four outputs
        parameters -= 4 * graph.stem_dim + 4 + 2 * 4
        multiply_adds -= 4 * graph.stem_dim
    if method == "okddip":  # query and key, an eighth as wide as the feature, each used by three auxiliaries
        attention = 2 * graph.feature_dim * (graph.feature_dim // 8)
        parameters -= attention
        multiply_adds -= 3 * attention
    if (name, method) == ("densenet40-12", "cl-ilr"):
        parameters -= 14_880  # two transitions of the published graph that never run
        assert parameters == 467_344
    counts = count(graph, side)
    assert (counts.parameters, counts.multiply_adds) == (parameters, multiply_adds)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("resnet110", 1.17e6, 0.17e9),
        ("vgg16", 14.77e6, 0.31e9),
        ("hcgnet-a1", 1.10e6, 0.15e9),
        ("resnet18", 11_689_512, 1.81e9),  # the usual figures of ResNet-18
    ],
)
def test_rounded_counts(name: str, parameters: float, multiply_adds: float) -> None:
    side, classes = sizes(name)
    counts = count(create_backbone(name, classes), side)
    assert counts.parameters == pytest.approx(parameters, rel=0.003)
    assert counts.multiply_adds == pytest.approx(multiply_adds, rel=0.03)


def test_the_official_counter_overcounts_hcgnets_dilation() -> None:
    """It takes a dilated convolution's output for two pixels wider and higher: 0.26% more in all."""
    network, extra = create_backbone("hcgnet-a1", 100), 0

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal extra
        extra += ((output.shape[-1] + 2) ** 2 - output.shape[-1] ** 2) * module.weight.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.dilation == (2, 2):
            module.register_forward_hook(hook)
    counts = count(network, 32)
    assert round(100 * extra / counts.multiply_adds, 2) == 0.26


def test_counting_leaves_the_network_as_it_was() -> None:
    network = create_backbone("densenet40-12", 3)
    network.stages[0].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count(network, 16)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert network.training
    assert not network.stages[0].training
    assert not any(module._forward_hooks for module in network.modules())


def test_counting_by_hand() -> None:
    convolution, linear = nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Linear(6, 6)
    shared = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear, nn.ReLU(), linear)
    counts = count(shared, 9, in_channels=4)
    assert counts.parameters == (6 * 2 * 9 + 6) + (36 + 6)
    assert counts.multiply_adds == 4 * 4 * 6 * 2 * 9 + 2 * 36


# Fingerprints


@torch.no_grad()
def set_by_recipe(network: nn.Module) -> None:
    """The fingerprint's parameters: constants for each layer, so that nothing depends on names or channel order."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.fill_(1 / module.weight[0].numel())
            if module.bias is not None:
                module.bias.fill_(0.01)
        elif isinstance(module, nn.BatchNorm2d):
            module.bias.fill_(0.8)
        elif isinstance(module, nn.Linear):
            rows = torch.arange(1, module.out_features + 1, dtype=torch.float64)
            module.weight.copy_((rows / module.in_features)[:, None].expand_as(module.weight))
            module.bias.zero_()


def fingerprint_images(size: int) -> Tensor:
    b, c, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (4, 3, size, size)), indexing="ij")
    return torch.sin(0.11 * (b + 1) * h + 0.23 * w * (1 + 0.01 * w) + 0.7 * c) + 0.1 * c


def close(value: Tensor, reference: Any, tolerance: float) -> None:
    """The references' own measure: largest difference over largest value."""
    expected = torch.tensor(reference, dtype=torch.float64)
    assert value.shape == expected.shape
    error = (value.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, float(error)


def check_fingerprint(features: Tensor, logits: Tensor, golden: dict[str, Any], tolerance: float) -> None:
    close(features.mean(1), golden["feature_mean"], tolerance)
    close(features.min(1).values, golden["feature_min"], tolerance)
    close(features.max(1).values, golden["feature_max"], tolerance)
    close(features.square().sum(1), golden["feature_sumsq"], tolerance)
    close(logits[:, 0], golden["logit_0"], tolerance)
    close(logits[:, -1], golden["logit_last"], tolerance)


# The four peers of ResNet-34 are the heaviest thing here: in the one precision that says most.
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [(name, torch.float64, 1e-8) for name in PUBLISHED] + [(name, torch.float32, 1e-4) for name in PUBLISHED],
)
@torch.no_grad()
def test_fingerprints(name: str, dtype: torch.dtype, tolerance: float) -> None:
    golden = GOLDEN["fingerprint"][PUBLISHED[name]]
    images = fingerprint_images(golden["input_size"]).to(dtype)
    heavy = golden["input_size"] == 224
    if not (heavy and dtype == torch.float64):
        network = create_backbone(name, golden["num_classes"], image_size=golden["input_size"]).to(dtype).train()
        set_by_recipe(network)
        assert network.feature_dim == golden["feature_dim"]
        features = network.features(images)
        check_fingerprint(features, network.classifier(features), golden, tolerance)
    if not (heavy and dtype == torch.float32):
        graph = PeerNetwork(name, 4, golden["num_classes"], "paper-code").to(dtype).train()
        set_by_recipe(graph)
        out = graph(images)
        for features, logits in zip(out.features, out.logits):
            check_fingerprint(features, logits, golden, tolerance)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_trees_compute_what_the_single_network_does(name: str) -> None:
    """Also where no fingerprint is published: every path through the tree is the whole network."""
    network, images = create_backbone(name, 10).double().train(), fingerprint_images(32)
    tree = PeerNetwork(name, 3, 10, "paper-code", "cl-ilr").double().train()
    set_by_recipe(network)
    set_by_recipe(tree)
    logits = network(images)
    assert logits.isfinite().all()
    for each in tree(images).logits:
        torch.testing.assert_close(each, logits, rtol=1e-10, atol=0)


# Shapes, splits, the deployed network


@pytest.mark.parametrize("name", NEW)
@torch.no_grad()
def test_shapes_and_the_deployed_network(name: str) -> None:
    plain = create_backbone(name, 7, image_size=32)
    images = torch.randn(2, 3, 32, 32)
    assert plain.feature_dim == FEATURES[name] == plain.stage_channels[-1]
    maps = images
    for stage, channels in zip(plain.eval().stages, plain.stage_channels):
        maps = stage(maps)
        assert maps.shape[1] == channels
    assert plain.features(images).shape == (2, FEATURES[name])
    assert plain(images).shape == (2, 7)
    # ResNet-34 differs from ResNet-18 in its number of blocks alone, and most of the time is its initialisation.
    for share in ("paper-code",) if name == "resnet34" else ("last-two", "last-one", "none", "paper-code"):
        method = "cl-ilr" if share == "paper-code" else "mcl-okd"
        for number in (1, 3) if share == "paper-code" else (2,):
            graph = PeerNetwork(name, number, 7, share, method, image_size=32).eval()
            out = graph(images)
            assert out.features.shape == (number, 2, FEATURES[name])
            assert out.logits.shape == (number, 2, 7)
            assert (None if out.stem is None else out.stem.shape) == (
                None if share == "none" or number == 1 else (2, graph.stem_dim)
            )
            deployed = graph.deployed()
            assert torch.equal(deployed(images), out.logits[-1])
            assert torch.equal(deployed.features(images), out.features[-1])
            assert deployed.state_dict().keys() == plain.state_dict().keys()
            assert sum(p.numel() for p in deployed.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize(
    ("name", "method", "copies", "stem"),
    [
        ("resnet32", "mcl-okd", (1, 4, 4), 16),
        ("resnet32", "one", (1, 1, 4), 32),
        ("resnet110", "one", (1, 1, 4), 128),
        ("vgg16", "dml", (1, 1, 1, 4, 4), 256),
        ("vgg16", "one", (1, 1, 1, 1, 4), 512),
        ("vgg16", "cl-ilr", (1, 1, 1, 2, 4), 256),
        ("densenet40-12", "mcl-okd", (1, 4, 4), 48),
        ("densenet40-12", "okddip", (1, 1, 4), 60),
        ("densenet40-12", "one", (1, 1, 4), 60),
        ("hcgnet-a1", "one", (1, 1, 4), 126),
        ("hcgnet-a1", "cl-ilr", (1, 2, 4), 60),
        ("resnet18", "mcl-okd", (1, 1, 4, 4), 128),
        ("resnet34", "mcl-okd", (1, 1, 4, 4), 128),
        ("resnet12", "mcl-okd", (1, 1, 4, 4), 128),
    ],
)
@torch.no_grad()
def test_published_splits(name: str, method: str, copies: tuple[int, ...], stem: int) -> None:
    graph = PeerNetwork(name, 4, None, "paper-code", method).eval()
    assert tuple(len(level) for level in graph.stages) == copies
    assert graph.stem_dim == stem
    maps = torch.randn(1, 3, 32, 32)
    out = graph(maps)
    for level in graph.stages[: copies.count(1)]:
        maps = level[0](maps)
    assert torch.equal(out.stem, maps.mean((2, 3)))
    assert out.stem.shape == (1, stem)


def test_where_the_last_stages_begin() -> None:
    """What belongs to which peer: the pooling that closes a VGG group, DenseNet's transitions, its last batch norm."""
    vgg, dense = create_backbone("vgg16"), create_backbone("densenet40-12")
    assert all(isinstance(stage[-1], nn.MaxPool2d) for stage in vgg.stages)
    assert [stage[0].in_channels for stage in vgg.stages] == [3, 64, 128, 256, 512]
    assert all(isinstance(stage[-1], nn.AvgPool2d) for stage in dense.stages[:2])
    assert [type(m) for m in dense.stages[2][-2:]] == [nn.BatchNorm2d, nn.ReLU]
    assert [sum(isinstance(m, Residual) for m in s) for s in create_backbone("resnet34").stages] == [3, 4, 6, 3]


def test_few_shot_resnet() -> None:
    images = torch.randn(2, 1, 84, 84)
    for widths, length in (("64-128-256-512", 512), ("64-160-320-640", 640)):
        network = create_backbone("resnet12", in_channels=1, image_size=84, widths=widths).eval()
        with torch.no_grad():
            assert network(images).shape == (2, length)
    assert PeerNetwork("resnet12", 2, widths="64-160-320-640").feature_dim == 640
    weights = sum(m.weight.numel() for m in create_backbone("resnet12").modules() if isinstance(m, nn.Conv2d))
    pairs = [(3, 64), (64, 128), (128, 256), (256, 512)]
    assert weights == sum(9 * a * b + 2 * 9 * b * b + a * b for a, b in pairs)


@pytest.mark.parametrize("name", NEW)
def test_every_parameter_learns(name: str) -> None:
    """Also that no in-place ReLU overwrites what the backward needs."""
    network = create_backbone(name, 3, image_size=32)
    nn.functional.cross_entropy(network(torch.randn(3, 3, 32, 32)), torch.arange(3)).backward()
    gradients = {key: p.grad for key, p in network.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g.any() for key, g in gradients.items() if key.endswith("weight"))


# Initialisation


def spread(weight: Tensor, variance: float) -> float:
    return float(weight.detach().square().mean() / variance)


def test_initialisation() -> None:
    torch.manual_seed(0)
    wide = {
        "resnet32": lambda w: 2 / (w.shape[0] * 9),
        "vgg16": lambda w: 2 / (w.shape[0] * 9),
        "resnet12": lambda w: 2 / 1.01 / (w.shape[0] * 9),
        "densenet40-12": lambda w: 2 / (w.shape[1] * 9),
    }
    for name, variance in wide.items():
        network = create_backbone(name, 100)
        weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert all(spread(w, variance(w)) == pytest.approx(1, abs=0.25) for w in weights)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all((n.weight == 1).all() and not n.bias.any() and n.momentum == 0.1 and n.eps == 1e-5 for n in norms)
    vgg = create_backbone("vgg16", 100)
    assert spread(vgg.classifier.weight, 1e-4) == pytest.approx(1, abs=0.05)
    assert not any(m.bias.any() for m in vgg.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert not create_backbone("densenet40-12", 100).classifier.bias.any()
    assert create_backbone("resnet32", 100).classifier.bias.any()


def test_projections_only_where_the_shape_changes() -> None:
    def projections(name: str) -> list[list[bool]]:
        stages = create_backbone(name).stages
        return [[not isinstance(b.shortcut, nn.Identity) for b in s if isinstance(b, Residual)] for s in stages]

    assert projections("resnet32") == [[False] * 5, [True, *[False] * 4], [True, *[False] * 4]]
    assert projections("resnet110") == [[True, *[False] * 11]] * 3


# Image sizes and channels


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("resnet12", 16),
        ("resnet18", 17),
        ("resnet32", 3),
        ("vgg16", 32),
        ("densenet40-12", 4),
        ("hcgnet-a1", 3),
        ("efficientnet-lite0", 32),
    ],
)
@torch.no_grad()
def test_smallest_images(name: str, least: int) -> None:
    network = create_backbone(name, in_channels=1, image_size=least)
    assert network(torch.randn(4, 1, least, least)).shape == (4, FEATURES[name])
    with pytest.raises(UserError, match=f"{name} needs images at least {least} pixels wide, not {least - 1}"):
        create_backbone(name, image_size=least - 1)


def test_unknown_widths() -> None:
    with pytest.raises(UserError, match="unknown widths"):
        create_backbone("resnet12", widths="64-64-64-64")


def test_every_name_is_tested() -> None:
    assert {*NEW, "conv4"} == set(BACKBONES)


# CL-ILR's gradients


class Scale(nn.Module):
    """Multiplies channels by learned numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


def fake_backbone(name: str, num_classes: int | None = None, **options: Any) -> Backbone:
    """Three stages of which the last does nothing, for images (B, 4, 1, 1)."""
    stages = [Scale(4), Scale(4), nn.Identity()]
    return Backbone(stages, stage_channels=(4, 4, 4), feature_dim=4, num_classes=num_classes)


def cl_ilr_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Sum over peers of half cross-entropy and half KL to the mean logits of the others."""
    total = logits.new_zeros(())
    for number, own in enumerate(logits):
        others = torch.cat((logits[:number], logits[number + 1 :])).mean(0).detach()
        student, teacher = (own / temperature).log_softmax(1), (others / temperature).softmax(1)
        divergence = temperature**2 * (teacher * (teacher.log() - student)).sum(1).mean()
        total = total + 0.5 * nn.functional.cross_entropy(own, targets) + 0.5 * divergence
    return total


def test_gradient_rescaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "create_backbone", fake_backbone)
    golden = GOLDEN["cl_ilr_gradient_rescaling"]
    graph = PeerNetwork("fake", 4, 5, "paper-code", "cl-ilr").double()
    scales = [graph.stages[0][0], *graph.stages[1]]
    with torch.no_grad():
        for scale, value in zip(scales, [golden["a"], *golden["b"]]):
            scale.weight.copy_(torch.tensor(value, dtype=torch.float64))
        for classifier, value in zip(graph.classifiers, golden["W"]):
            classifier.weight.copy_(torch.tensor(value, dtype=torch.float64))
            classifier.bias.zero_()
    logits = graph(torch.tensor(golden["x"], dtype=torch.float64)[:, :, None, None]).logits
    loss = cl_ilr_loss(logits, torch.tensor(golden["target"]), golden["T"])
    loss.backward()
    pairs = [(logits, golden["logits"]), (loss, golden["loss"]), (scales[0].weight.grad, golden["grad_a"])]
    pairs += [(torch.stack([scale.weight.grad for scale in scales[1:]]), golden["grad_b"])]
    pairs += [(torch.stack([classifier.weight.grad for classifier in graph.classifiers]), golden["grad_W"])]
    for value, reference in pairs:
        close(value.detach(), reference, 1e-9)


@pytest.mark.parametrize(
    ("share", "number", "factors"),
    [
        # gradients of stem and middle copies over those without rescaling
        ("paper-code", 4, (1 / 4, [1 / 2, 1 / 2])),
        ("paper-code", 2, (1 / 2, [1 / 2])),  # one middle branch with both heads
        ("last-two", 4, (1 / 4, [1, 1, 1, 1])),
        ("last-one", 4, (1 / 4, [1 / 4])),
        ("none", 3, (1, [1, 1, 1])),
    ],
)
def test_each_fork_divides_by_its_branches(
    share: str, number: int, factors: tuple[float, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "create_backbone", fake_backbone)
    graph = PeerNetwork("fake", number, 5, share, "cl-ilr").double()
    images = torch.randn(3, 4, 1, 1, dtype=torch.float64, requires_grad=True)

    def gradients(rescale: bool) -> tuple[Tensor, ...]:
        graph.rescale_forks = rescale
        return torch.autograd.grad(graph(images).logits.square().sum(), [*graph.stages.parameters(), images])

    assert graph.rescale_forks
    stems = len(graph.stages[0])
    wanted = [factors[0]] * stems + factors[1]
    for scaled, plain, factor in zip(gradients(True), gradients(False), [*wanted, factors[0]]):
        torch.testing.assert_close(scaled, factor * plain)


def test_an_odd_tree_rescales_only_where_it_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three peers: the first middle branch has two heads, the second has one."""
    monkeypatch.setattr(peers, "create_backbone", fake_backbone)
    graph = PeerNetwork("fake", 3, 5, "paper-code", "cl-ilr").double()
    images = torch.randn(3, 4, 1, 1, dtype=torch.float64)
    middle = list(graph.stages[1].parameters())
    scaled = torch.autograd.grad(graph(images).logits.square().sum(), middle)
    graph.rescale_forks = False
    plain = torch.autograd.grad(graph(images).logits.square().sum(), middle)
    torch.testing.assert_close(scaled[0], plain[0] / 2)
    torch.testing.assert_close(scaled[1], plain[1])


def test_only_cl_ilr_rescales() -> None:
    for method in ("mcl-okd", "dml", "one", "baseline"):
        assert not PeerNetwork("conv4", 2, method=method, image_size=16).rescale_forks
    assert PeerNetwork("conv4", 2, method="cl-ilr", image_size=16).rescale_forks
