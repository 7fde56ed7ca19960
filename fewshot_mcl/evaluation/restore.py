"""Networks from a configuration, from a checkpoint, and from the deployed file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_mcl import draws, parallel
from fewshot_mcl.config import Config
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import DamagedError, UserError
from fewshot_mcl.networks import PRETRAINED, create_backbone
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.networks.batch_norm import set_batch_norm
from fewshot_mcl.networks.peers import LAYOUTS, PeerNetwork
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.objectives.base import Objective
from fewshot_mcl.runs import Run, StoredTensors, Tensors
from fewshot_mcl.spread import Spread, spread

LARGEST_SCALE = 1e6  # of a mean or deviation of pixels
LARGEST_IMAGE = 4096  # channels or pixels a side: more than any network here takes
AGAIN = "Put the file back from a copy, or start a new run."
IMAGENET_SEEN = (
    "the peers start from weights that have seen all classes of ImageNet: classes of miniImageNet, tieredImageNet, or any that "
    "ImageNet has too, are not new to them, and figures on those do not measure learning of new classes"
)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or the CPU.

    Raises:
        UserError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        first = next(iter(str(error).splitlines()), "")[:120]
        raise UserError(f"device '{name}' cannot be used here ({first}). Use cpu, or auto.") from error
    return device


def weights_notes(config: Config) -> tuple[str, ...]:
    """What is to be said of every figure of a run that started from published weights; nothing of any other."""
    return (IMAGENET_SEEN,) if config.weights == "imagenet" else ()


@contextmanager
def deterministic(config: Config) -> Iterator[None]:
    """Where the configuration asks for it: arithmetic that gives the same bytes on the same machine, whatever else it does.

    Sums depend on how they are divided among threads, so the processor has one; of a GPU's kernels only those are used that
    always add in one order.
    """
    if not config.deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads, before, benchmark = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


def build_peers(
    config: Config, channels: int, image_size: int, num_classes: int, *, pretrained: bool = True
) -> PeerNetwork:
    """The peers of a configuration, initialised from its seed.

    Args:
        config: of the run.
        channels, image_size: of the images.
        num_classes: the training classes.
        pretrained: start from `config.weights`, where it names any; no need to where a checkpoint follows.

    Raises:
        UserError: where backbone, images, sharing and weights do not go together.
    """
    options: dict[str, Any] = {"weights": config.weights} if config.weights and pretrained else {}
    if options and "/" not in config.backbone and config.backbone not in PRETRAINED:
        raise UserError(
            f"weights = {config.weights} belong to {', '.join(PRETRAINED)} or a library's backbone (torchvision/NAME, "
            f"timm/NAME), not to {config.backbone}: leave them out."
        )
    with draws.seeded(config.seed, "peers"):
        peers = PeerNetwork(
            config.backbone,
            config.peers,
            num_classes if config.has_classifier else None,
            config.share,
            config.method,
            config.form,
            in_channels=channels,
            image_size=image_size,
            **options,
        )
        if config.bn_init == "uniform":
            for module in peers.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight)
    set_batch_norm(peers, config.batch_norm)
    if parallel.split_peers():
        peers.keep_own()
    return peers.to(memory_format=LAYOUTS[config.layout])


def build_objective(config: Config, peers: PeerNetwork, num_classes: int, labels: Tensor | None) -> Objective:
    """The objective of a configuration, initialised from its seed.

    Args:
        config, peers: of the run.
        num_classes: of the logits it will see.
        labels: (N,) of the training images; None for an objective that will not learn, only form the method's ensemble.
    """
    options = dict(config.objective)
    if labels is None and "beta" in options:
        options["beta"] = 0.0  # no contrast: its memory banks are of no use in an ensemble
    with draws.seeded(config.seed, "objective"):
        return create_objective(
            config.method,
            num_peers=config.peers,
            num_classes=num_classes,
            feature_dim=peers.feature_dim,
            stem_dim=peers.stem_dim,
            labels=labels,
            seed=config.seed,
            feature_channels=peers.stage_channels[-1],
            **options,
        )


def load_peers(run: Run, checkpoint: str, device: torch.device) -> tuple[PeerNetwork, dict[str, Any]]:
    """The peers of a run as a checkpoint left them, and the checkpoint's state.

    Raises:
        UserError: if the checkpoint is missing, damaged, or of another network than the run's configuration names.
    """
    tensors, state = run.load_checkpoint(checkpoint)
    channels, size, classes = _trained_on(run)
    peers = build_peers(run.config, channels, size, classes, pretrained=False)
    own = {name.removeprefix("peers."): value for name, value in tensors.items() if name.startswith("peers.")}
    load_state(peers, own, str(run.path))
    return peers.to(device), state


def _trained_on(run: Run) -> tuple[int, int, int]:
    """Channels and side of the training images, and how many classes they have.

    Raises:
        DamagedError: if data.json does not say.
    """
    data, classes = run.data("train"), _classes(run)
    sides = data.get("image_size")
    numbers = [data.get("channels"), *(sides if isinstance(sides, list) and sides else [None])]
    if not all(type(number) is int and 0 < number <= LARGEST_IMAGE for number in numbers):
        raise DamagedError(f"{run.path / 'data.json'} is damaged (its images have no size)", AGAIN)
    return numbers[0], numbers[1], len(classes)


def _classes(run: Run) -> list[str]:
    data = run.data("train")
    classes = data.get("classes") if isinstance(data, dict) else None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DamagedError(f"{run.path / 'data.json'} is damaged (it does not name the classes)", AGAIN)
    return classes


def _require_card(run: Run, card: dict[str, Any]) -> None:
    """Raise `DamagedError` where model.json does not describe a network."""
    numbers = [card["in_channels"], card["image_size"], card.get("num_classes", 1) or 1]
    scales = [card["mean"], card["std"]]
    sound = (
        isinstance(card["backbone"], str)
        and all(type(number) is int and number > 0 for number in numbers)
        and max(numbers[:2]) <= LARGEST_IMAGE
        and all(isinstance(each, list) and len(each) == numbers[0] for each in scales)
        and all(
            isinstance(number, float | int) and -LARGEST_SCALE < number < LARGEST_SCALE
            for each in scales
            for number in each
        )
    )
    if not sound:
        raise DamagedError(f"{run.path / 'model.json'} is damaged (it describes no network)", AGAIN)


def load_deployed(run: Run) -> tuple[Backbone, dict[str, Any]]:
    """The deployed network of a finished run, in evaluation mode, and what model.json says of it.

    It takes images (B, C, H, W) as `evaluation.fewshot.normalise` makes them with the card's `mean` and `std`, and gives
    features, or logits where it was trained to classify.

    Raises:
        UserError: if the run is not finished, or a file is damaged.
    """
    tensors, card = run.load_model()
    _require_card(run, card)
    network = create_backbone(
        card["backbone"], card.get("num_classes"), in_channels=card["in_channels"], image_size=card["image_size"]
    )
    load_state(network, tensors, str(run.path))
    return network.eval().to(memory_format=torch.channels_last), card


def load_teacher(config: Config, store: ImageStore, size: int) -> tuple[Backbone, Tensor, Tensor]:
    """The deployed network of the run `config.teacher`, up to its features, and the (C,) mean and deviation it wants.

    Args:
        config: names the teacher.
        store: the training images.
        size: side of the images that the student sees.

    Raises:
        UserError: if no teacher is named, or it was trained on other classes or images of another shape.
    """
    if config.teacher is None:
        raise UserError(
            f"method '{config.method}' learns from a trained network: name its run directory, --teacher RUN."
        )
    run, channels = Run.open(Path(config.teacher)), store.shape[0]
    network, card = load_deployed(run)
    if (card["in_channels"], card["image_size"]) != (channels, size):
        own, planes = card["image_size"], card["in_channels"]
        raise UserError(
            f"the teacher {run.path} takes images of {own}x{own}x{planes}, not {size}x{size}x{channels}: use --image-size {own} "
            f"--color {'grey' if planes == 1 else 'rgb'}, or another teacher."
        )
    if foreign := sorted(set(_classes(run)) - set(store.class_names)):
        raise UserError(
            f"the teacher {run.path} was trained on {len(foreign)} classes that are not training classes here ({foreign[0]}, "
            "...): what it knows of them would leak. Use a teacher trained on the same data."
        )
    network.classifier = None
    return network, torch.tensor(card["mean"]), torch.tensor(card["std"])


def load_state(module: nn.Module, tensors: Tensors, where: str) -> None:
    """Load tensors into a module, all of them or none.

    Raises:
        UserError: if they belong to another network.
    """
    own, shards = module.state_dict(), spread(module)
    for name in tensors:
        if name not in own:
            raise UserError(
                f"the checkpoint of {where} has '{name}' in excess: it belongs to another network or method."
            )
    for name, value in own.items():
        if name not in tensors:
            raise UserError(f"the checkpoint of {where} has no '{name}': it belongs to another network or method.")
        shape = Spread(value, shards[name]).shape if name in shards else value.shape
        if tensors[name].shape != shape:
            raise UserError(
                f"the checkpoint of {where} has '{name}' of shape {tuple(tensors[name].shape)}, this network "
                f"{tuple(shape)}: it belongs to another network, number of classes or image size."
            )
    with torch.no_grad():
        for name, value in own.items():
            if value.is_meta:  # another process has it
                continue
            if isinstance(tensors, StoredTensors):
                tensors.copy_into(value, name, shards[name].part if name in shards else None)
            else:
                value.copy_(tensors[name])
