"""Models of torchvision and timm as backbones: `torchvision/resnet50`, `timm/convnext_atto`. Neither library is required.

A ResNet of either library comes as four stages, so that peers can share its first ones. Any other model that ends in a linear
classifier comes as one piece: as a single network, or as peers that share nothing.
"""

from __future__ import annotations

import mmap
import pickletools
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.networks.backbone import Backbone

LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm"}
SAFE_TORCH = (2, 10)  # before it a file could break out of weights_only
FIRST_STAGE = (("conv1",), ("bn1",), ("relu", "act1"), ("maxpool",), ("layer1",))  # of a ResNet, in either library


def _build(library: str, model: str) -> nn.Module:
    """The library's model, with its classifier and freshly initialised: nothing is downloaded."""
    if library not in LIBRARIES:
        raise unknown("library of backbones", library, LIBRARIES)
    try:
        module: Any = import_module(LIBRARIES[library])
    except ImportError as error:
        raise UserError(f"'{library}/{model}' needs {library}: install it with `pip install {library}`.") from error
    names = module.list_models(module=module) if library == "torchvision" else module.list_models()
    if model not in names:
        raise unknown(f"{library} model", model, names)
    return module.get_model(model, weights=None) if library == "torchvision" else module.create_model(model)


def _cut_classifier(model: nn.Module, name: str) -> tuple[str, int]:
    """Makes the last linear layer an identity; returns that layer's name and the length of what it read."""
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear or getattr(model, "aux_logits", False):
        raise UserError(f"{name} does not end in one linear classifier: it cannot be a backbone.")
    path, classifier = linear[-1]
    model.set_submodule(path, nn.Identity())
    return path, classifier.in_features


def _take_channels(model: nn.Module, in_channels: int) -> None:
    """Replaces the first convolution by a new one for images of that many channels."""
    path, old = next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
    options: Any = {key: getattr(old, key) for key in ("out_channels", "kernel_size", "stride", "padding", "dilation")}
    model.set_submodule(path, nn.Conv2d(in_channels, bias=old.bias is not None, **options))


def _read_old(file: Path) -> Any:
    """What a file of torch's old form holds. Mapped, it gives no more than it has: readers make room for any length it names.

    Raises:
        ValueError: if it names more numbers than it has bytes, for which torch would make room.
    """
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        size = len(mapped)
        for part in range(4):  # a magic number, a version, the machine, and what was saved
            for _, value, _ in pickletools.genops(cast(IO[bytes], mapped)):
                if part == 3 and isinstance(value, int) and value > size:
                    raise ValueError(f"it names {value:,} numbers in {size:,} bytes")
        mapped.seek(0)
        return torch.load(cast(IO[bytes], mapped), "cpu", weights_only=True)


def _read(file: Path) -> Any:
    """What a file of weights holds: no pickled object but tensors is read."""
    with warnings.catch_warnings(action="ignore"):  # of torch, about what is damaged
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, "cpu", weights_only=True) if zipfile.is_zipfile(file) else _read_old(file)


def _load(model: nn.Module, file: Path, classifier: str, name: str) -> None:
    """Loads a local file of weights, whose classifier is left out."""
    if not file.is_file():
        raise UserError(f"there is no file of weights {file}.")
    if file.suffix != ".safetensors" and tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise UserError(
            f"{file} could harm this machine, read by torch {torch.__version__}: update torch, or use .safetensors."
        )
    try:
        state = _read(file)
        state = state.get("state_dict", state)
        model.load_state_dict({key: v for key, v in state.items() if not key.startswith(f"{classifier}.")})
    except Exception as error:  # damage shows as nearly every kind of exception
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file} does not hold weights of {name}: {reason}") from error


def _resnet_stages(model: nn.Module) -> list[nn.Module]:
    """A ResNet's four stages; none where the model has no such parts."""
    parts = [next((getattr(model, n) for n in names if hasattr(model, n)), None) for names in FIRST_STAGE]
    layers = [getattr(model, f"layer{n}", None) for n in (2, 3, 4)]
    found = [part for part in (*parts, *layers) if isinstance(part, nn.Module)]
    return [nn.Sequential(*found[:5]), *found[5:]] if len(found) == len(parts) + len(layers) else []


@torch.no_grad()
def _probe(model: nn.Module, image: Tensor, name: str) -> tuple[list[nn.Module], list[int]]:
    """The model's stages and the channels after each: four if they compute what the model does, else the model alone."""
    model.eval()
    try:
        expected, maps, channels = model(image), image, []
        for stage in (stages := _resnet_stages(model)):
            maps = stage(maps)
            channels.append(maps.shape[1])
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{name} does not take images of {image.shape[-1]} pixels: {error}") from error
    model.train()
    if expected.ndim != 2:
        raise UserError(f"{name} does not give one vector per image: it cannot be a backbone.")
    if stages and torch.allclose(maps.mean((2, 3)), expected, rtol=1e-3, atol=1e-5):
        return stages, channels
    return [model], [expected.shape[1]]


class External(Backbone):
    """A library's model up to its classifier.

    With `weights`, peers start equal but for their classifiers.

    Args:
        name: `torchvision/NAME` or `timm/NAME`.
        num_classes: outputs of a new classifier; None for none.
        in_channels: channels of the images; for other than three, the first convolution is a new one.
        image_size: side of the images.
        weights: a local file of the library's weights, `.safetensors`, `.pth` or `.pt`; None for a fresh start.

    Raises:
        UserError: if the library is not installed, has no such model, or the model, its weights and the images do not fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int | None = None,
        in_channels: int = 3,
        image_size: int = 224,
        weights: str | Path | None = None,
    ) -> None:
        model = _build(*name.split("/", 1))
        classifier, feature_dim = _cut_classifier(model, name)
        if in_channels != 3:
            _take_channels(model, in_channels)
        if weights is not None:
            _load(model, Path(weights), classifier, name)
        # A ramp, not noise: building a network must draw nothing but its parameters.
        image = torch.linspace(-1, 1, in_channels * image_size**2).view(1, in_channels, image_size, image_size)
        stages, channels = _probe(model, image, name)
        if channels[-1] != feature_dim:
            raise UserError(f"{name} does not end in one linear classifier: it cannot be a backbone.")
        super().__init__(
            stages,
            stage_channels=channels,
            feature_dim=feature_dim,
            num_classes=num_classes,
            pool="average" if len(stages) > 1 else "flatten",
        )
