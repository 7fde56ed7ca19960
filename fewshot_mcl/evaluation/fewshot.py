"""Accuracy on episodes: every image is embedded once, then an episode is a gather and a small matrix product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewshot_mcl import parallel
from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.data.store import ImageStore, copy_channels
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.networks.folding import batch_for, folded
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.progress import tracked


class Normaliser:
    """Images (B, C, H, W) from 0 to 255 -> (x / 255 - mean) / std of each channel, in channels-last layout.

    The result lies in a buffer that the next call writes over: a newly allocated one may cost more than the arithmetic.

    Args:
        mean, std: (C,), on the device of the images; the result is of their type.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self._channels = torch.stack([1 / (255 * std), mean / std])
        self._scale, self._offset = self._channels  # (W * C,) once the width is known
        self._result = std.new_empty(0, 0, 0, 0)

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) > len(self._result) or images.shape[1:] != self._result.shape[1:]:
            self._result = torch.empty(
                images.shape, dtype=self._scale.dtype, device=images.device, memory_format=torch.channels_last
            )
            # Over whole rows of pixels: an operand of one number a channel makes loops of C steps.
            self._scale, self._offset = self._channels.repeat(1, images.shape[3])
        result = self._result[: len(images)]
        copy_channels(result, images)
        result.permute(0, 2, 3, 1).view(-1, len(self._scale)).mul_(self._scale).sub_(self._offset)
        return result


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`Normaliser`, once: the result is the caller's own."""
    return Normaliser(mean, std)(images)


def channel_statistics(store: ImageStore, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over all pixels of a store (or of some rows), on the scale [0, 1]: (C,) and (C,)."""
    rows = torch.arange(len(store)) if rows is None else rows
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in rows.split(1024):
        pixels = store.images[part].transpose(0, 1).flatten(1).double() / 255
        count += pixels.shape[1]
        total, squares = total + pixels.sum(1), squares + pixels.square().sum(1)
    mean = total / count
    variance = squares / count - mean.square()
    return mean.float(), variance.clamp_min(1e-8).sqrt().float()


@torch.inference_mode()
def embed(
    network: nn.Module, store: ImageStore, mean: Tensor, std: Tensor, precision: torch.dtype | None = None
) -> Tensor:
    """Features of every image of a store, in evaluation mode whatever mode the network is in.

    Args:
        network: a backbone, or peers; it is left as it is.
        store: N images.
        mean, std: (C,) of the training images; their device is the network's.
        precision: to compute in, if not the network's own. bfloat16 is faster and rounds features to three digits.

    Returns:
        (N, D), or (M, N, D) for M peers, on the network's device, of the type of `mean`.

    Example:
        >>> from fewshot_mcl import create_backbone
        >>> store = ImageStore(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ["ant", "bee"])
        >>> network = create_backbone("conv4", in_channels=1, image_size=28)
        >>> embed(network, store, mean=torch.tensor([0.5]), std=torch.tensor([0.3])).shape
        torch.Size([4, 64])
    """
    precision = precision or mean.dtype
    network, parts = folded(network).to(precision), []
    batch = batch_for(mean.device)
    # Whole batches for each process, so that every product has the shape that it has in one process, and the same digits.
    split = len(store) >= batch * parallel.world()
    mine = parallel.part(len(store), batch) if split else slice(0, len(store))
    starts = range(mine.start, mine.stop, batch)
    for start in tracked(starts, "embedding images", len(starts)):
        images = normalise(store.images[start : start + batch].to(mean.device), mean, std)
        out = network(images.to(precision))
        parts.append((out.features if isinstance(out, PeerOutputs) else out).to(mean.dtype))
    features = torch.cat(parts, dim=-2)
    return parallel.gather(features, features.dim() - 2, len(store), batch) if split else features


def episode_logits(features: Tensor, episodes: Episodes, metric: str, scale: float) -> Tensor:
    """Features (N, D) -> logits (E, way * query, way) of the queries, class by class."""
    centres = F.prototypes(features[episodes.support])
    query = features[episodes.query].flatten(1, 2)
    return F.prototypical_logits(query, centres, metric, scale)


def _batches(episodes: Episodes, size: int) -> Iterator[Episodes]:
    return (episodes[start : start + size] for start in range(0, len(episodes), size))


def _accuracies(logits: Tensor, way: int) -> Tensor:
    """Logits (E, way * query, way), queries class by class -> (E,) float64 fractions."""
    query = logits.shape[1] // way
    targets = torch.arange(way, device=logits.device).repeat_interleave(query)
    return (logits.argmax(-1) == targets).sum(1).double().cpu() / logits.shape[1]


@torch.inference_mode()
def evaluate_peers(
    features: Tensor, episodes: Episodes, *, metric: str = "euclidean", scale: float = 1.0, batch: int | None = None
) -> dict[str, Result]:
    """Results of every peer, and of the ensemble that sums their episode logits.

    Args:
        features: (M, N, D).
        episodes: indices into the N images.
        metric, scale: see `functional.prototypical_logits`.
        batch: episodes at a time, by default those whose features stay in the cache of a processor or fill a GPU; the
            result does not depend on it.

    Returns:
        "peer 0" ... "peer M-1" and, for M > 1, "ensemble".

    Example:
        >>> from fewshot_mcl import EpisodeSampler
        >>> labels = torch.arange(10).repeat_interleave(8)
        >>> episodes = EpisodeSampler(labels, way=5, shot=1, query=5).sample(20)
        >>> perfect = torch.eye(10)[labels]
        >>> {name: result.mean for name, result in evaluate_peers(torch.stack([perfect, perfect]), episodes).items()}
        {'peer 0': 1.0, 'peer 1': 1.0, 'ensemble': 1.0}
    """
    peers, way, count = len(features), episodes.classes.shape[1], len(episodes)
    episodes = episodes[parallel.part(count)]
    batch = batch or (8 if features.device.type == "cpu" else 1024)
    accuracies: list[list[Tensor]] = [[] for _ in range(peers + 1)]
    batches = -(-len(episodes.support) // batch)
    for part in tracked(_batches(episodes, batch), "classifying episodes", batches):
        logits = torch.stack([episode_logits(f, part, metric, scale) for f in features])
        for kept, values in zip(accuracies, [*logits, logits.sum(0)]):
            kept.append(_accuracies(values, way))
    names = [*(f"peer {m}" for m in range(peers)), "ensemble"]
    found = parallel.gather(torch.stack([torch.cat(parts) for parts in accuracies]), 1, count)
    results = {name: Result(values) for name, values in zip(names, found)}
    if peers == 1:
        del results["ensemble"]
    return results


def evaluate_episodes(
    features: Tensor, episodes: Episodes, *, metric: str = "euclidean", scale: float = 1.0, batch: int | None = None
) -> Result:
    """Accuracy of nearest prototypes on given episodes: `evaluate_peers` for one network's features (N, D).

    Example:
        >>> from fewshot_mcl import EpisodeSampler
        >>> labels = torch.arange(10).repeat_interleave(8)
        >>> episodes = EpisodeSampler(labels, way=5, shot=1, query=5).sample(20)
        >>> result = evaluate_episodes(torch.eye(10)[labels], episodes)
        >>> result.mean, result.episodes
        (1.0, 20)
    """
    return evaluate_peers(features[None], episodes, metric=metric, scale=scale, batch=batch)["peer 0"]
