"""What the deployed network answers, query by query."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.evaluation.fewshot import episode_logits
from fewshot_mcl.report.material import Material

BATCH = 64  # episodes at a time


@torch.inference_mode()
def deployed_logits(material: Material, episodes: Episodes) -> Tensor:
    """Episode logits of the deployed network: (E, way, query, way), by class, query and prototype."""
    config = material.config
    logits = episode_logits(material.measured[-1], episodes, config.metric, config.scale)
    return logits.unflatten(1, episodes.query.shape[1:])


def deployed_answers(material: Material) -> Tensor:
    """Which class of the episode each query is taken for: (E, way, query) positions in [0, way)."""
    episodes = material.episodes
    parts = (episodes[start : start + BATCH] for start in range(0, len(episodes), BATCH))
    return torch.cat([deployed_logits(material, part).argmax(-1) for part in parts])


def protocol_text(material: Material) -> str:
    """The protocol of the report's episodes in words."""
    p = material.protocol
    return (
        f"{p.way}-way {p.shots[0]}-shot, {p.query} queries a class, {p.episodes:,} episodes, seed {p.seed}, {p.split} "
        f"split, deployed network (peer {material.config.peers - 1})"
    )
