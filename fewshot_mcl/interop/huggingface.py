"""The deployed network as a model of the Hugging Face hub. Importing this module takes huggingface-hub (the extra `hub`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from torch import Tensor, nn

from fewshot_mcl.data.names import markdown
from fewshot_mcl.errors import UserError
from fewshot_mcl.interop import missing
from fewshot_mcl.interop.deployed import FromPixels, deployed, figure_line
from fewshot_mcl.interop.exported import refuse_existing
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.runs import Run

try:  # here, because a class's bases are needed where it is defined
    from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
except ImportError as error:
    raise missing("huggingface-hub", "hub", error) from error

FILES = ("config.json", "model.safetensors", "README.md")
_TEMPLATES = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
_TEMPLATES.filters["markdown"] = markdown
README = _TEMPLATES.from_string(
    """---
{{ data }}
---

# {{ c.backbone }}, trained by {{ c.method }}

{% if c.task == "few-shot" %}
It makes a vector of {{ c.feature_dim }} numbers of an image. Classes that it has never seen are told apart by the nearest mean of
the vectors of a few examples each ({{ c.metric }} distance).
{% else %}
It tells {{ c.num_classes }} classes apart.
{% endif %}
{% if c.peers > 1 %}
It is the last of {{ c.peers }} peers that learned together.
{% endif %}
Written by fewshot-mcl {{ c.fewshot_mcl }}.

- Images: {{ c.image_size }}x{{ c.image_size }} pixels, {{ c.color }}, uint8 from 0 to 255.
  {{ c.resize | markdown }}. Normalisation is inside.
- Trained on: {{ c.trained_on | markdown }}, {{ c.classes | length }} classes, seed {{ c.seed }}.

    from fewshot_mcl.interop.huggingface import DeployedPeer

    network = DeployedPeer.from_pretrained("THIS REPOSITORY")
    vectors = network.features(images)  # (B, {{ c.in_channels }}, {{ c.image_size }}, {{ c.image_size }}) uint8
{% if figures %}

## How well

{% for line in figures %}
- {{ line }}
{% endfor %}
{% endif %}
"""
)


class DeployedPeer(nn.Module, PyTorchModelHubMixin, library_name="fewshot-mcl", tags=["few-shot-learning"]):
    """The network that a run deploys, with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    It takes images (B, C, H, W) from 0 to 255. What `config.json` says is all that it is built from.

    Args:
        config: as `interop.deployed.deployed` makes it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        try:
            network = create_backbone(
                config["backbone"],
                config.get("num_classes"),
                in_channels=config["in_channels"],
                image_size=config["image_size"],
            )
            self.card, self.peer = config, FromPixels(network, config["mean"], config["std"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"this config.json describes no network of fewshot-mcl ({error!r:.200}).") from error

    @classmethod
    def of_run(cls, run: Run) -> DeployedPeer:
        """That of a finished run.

        Raises:
            UserError: if the run is not finished, or a file is damaged.
        """
        module, card = deployed(run)
        made = cls(config=card)
        made.peer.load_state_dict(module.state_dict())
        return made.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, D), or logits (B, classes) where it was trained to classify."""
        found = self.peer(images)
        return found[1] if isinstance(found, tuple) else found

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, D)."""
        found = self.peer(images)
        return found[0] if isinstance(found, tuple) else found

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """The mixin's, but that nothing is overwritten.

        Raises:
            UserError: where one of its files is there already.
        """
        refuse_existing(*(Path(save_directory) / name for name in FILES))
        pushed: str | None = super().save_pretrained(save_directory, **options)
        return pushed

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """README.md: what the network is, what it takes, and its figures with their protocols."""
        about: dict[str, Any] = {"library_name": "fewshot-mcl", "pipeline_tag": "image-feature-extraction"}
        if self.card["task"] == "classify":
            about["pipeline_tag"] = "image-classification"
        data = ModelCardData(**about, tags=self._hub_mixin_info.model_card_data.tags).to_yaml()
        return ModelCard(README.render(data=data, c=self.card, figures=list(map(figure_line, self.card["figures"]))))
