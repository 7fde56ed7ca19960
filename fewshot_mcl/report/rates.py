"""How often something happens, with an interval that counts what is not independent once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

Z = 1.96


@dataclass(frozen=True)
class Rates:
    """Shares of answers in K groups, with 95% intervals.

    Attributes:
        share, low, high: (K,) float64 fractions; NaN where a group is empty.
        count: (K,) answers in each group.
        clusters: (K,) episodes that they come from, or answers where each is on its own.
    """

    share: Tensor
    low: Tensor
    high: Tensor
    count: Tensor
    clusters: Tensor


def wilson(share: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Wilson's interval (1927) of shares (K,) among `count` (K,) independent draws."""
    centre = share + Z**2 / (2 * count)
    half = Z * (share * (1 - share) / count + Z**2 / (4 * count**2)).sqrt()
    return (centre - half) / (1 + Z**2 / count), (centre + half) / (1 + Z**2 / count)


def of_images(right: Tensor, groups: Tensor, number: int) -> Rates:
    """Rates over independent answers.

    Args:
        right: (N,) whether it happened.
        groups: (N,) integers in [0, K).
        number: K.
    """
    count = torch.bincount(groups, minlength=number)
    share = torch.bincount(groups, right.double(), minlength=number) / count
    return Rates(share, *wilson(share, count), count, count)


def of_episodes(shares: Tensor, groups: Tensor, number: int, size: int) -> Rates:
    """Rates over answers that come `size` at a time from one episode, and are more alike than others.

    The interval is Wilson's with the effective number of draws (Korn and Graubard 1998): as many independent ones as would
    vary like the episodes do, fewer where few episodes tell how they vary (Student's t), and never fewer than there are
    episodes, since a share in [0, 1] varies no more than a single answer does.

    Args:
        shares: (N,) in an episode, of its `size` answers of a group.
        groups: (N,) integers in [0, K).
        number: K.
        size: answers behind each share.
    """
    shares = shares.double()
    clusters = torch.bincount(groups, minlength=number)
    share = torch.bincount(groups, shares, minlength=number) / clusters
    squares = torch.bincount(groups, (shares - share[groups]).square(), minlength=number)
    variance = squares / (clusters - 1) / clusters  # of the mean; 0 / 0 for a single episode
    quantile = torch.from_numpy(stdtrit((clusters - 1).clamp_min(1).numpy(), 0.975))
    effective = share * (1 - share) / variance * (Z / quantile) ** 2
    effective = torch.where(effective.isnan(), clusters, torch.minimum(effective, size * clusters))
    effective = torch.maximum(effective, clusters.double())
    return Rates(share, *wilson(share, effective), clusters * size, clusters)
