"""Distances and angles between images, compared between two networks (RKD, arXiv 1904.05068), in bounded memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as nnf

RELATION_CHUNK_BYTES = 1 << 26  # working memory


def rkd_distance(student: Tensor, teacher: Tensor, chunk_bytes: int = RELATION_CHUNK_BYTES) -> Tensor:
    """Distances between all images, relative to their mean, as the teacher has them (RKD, arXiv 1904.05068).

    Args:
        student: (n, D) features.
        teacher: (n, Dt) features, a constant.
        chunk_bytes: about how much memory may be used at a time, instead of that of n^2 differences.

    Returns:
        The mean over all n^2 pairs, an image with itself included, of the smooth L1 difference.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (_relative_distances(features, chunk_bytes) for features in _same_precision(student, teacher))
        return nnf.smooth_l1_loss(ours, theirs)


def rkd_angle(student: Tensor, teacher: Tensor, chunk_bytes: int = RELATION_CHUNK_BYTES) -> Tensor:
    """Cosines of the angles of all triangles of images, as the teacher has them (RKD, arXiv 1904.05068).

    Args:
        student: (n, D) features.
        teacher: (n, Dt) features, a constant.
        chunk_bytes: about how much memory may be used at a time, instead of that of n^3 cosines.

    Returns:
        The mean over all n^3 triplets, those with an image twice included, of the smooth L1 difference.
    """
    with torch.autocast(student.device.type, enabled=False):
        return _Angle.apply(*_same_precision(student, teacher), chunk_bytes)


def _same_precision(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in at least float32; the teacher detached."""
    student = student if student.dtype == torch.float64 else student.float()
    return student, teacher.detach().to(student)


def _relative_distances(features: Tensor, chunk_bytes: int) -> Tensor:
    """(n, D) -> (n, n) distances over their mean between different images, which takes part in the gradient."""
    n, distances = len(features), _Distances.apply(features, chunk_bytes)
    return distances / (distances.sum() / max(n * (n - 1), 1)).clamp_min(1e-12)


class _Distances(torch.autograd.Function):
    """(n, D) -> (n, n) distances, of different images at least 1e-6; no gradient goes through those that are raised to it.

    All from differences: in |a|^2 - 2ab + |b|^2 the rounding error would be larger than the distances that are raised.
    The gradient of torch.cdist may take memory for (n, n, D); this one takes some rows at a time.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, chunk_bytes: int) -> Tensor:
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(features, distances)
        ctx.rows = max(1, chunk_bytes // (features.nbytes * 2))
        return distances.clamp_min(1e-6).fill_diagonal_(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        features, distances = ctx.saved_tensors
        slopes = (upstream + upstream.mT) / distances.masked_fill(distances < 1e-6, math.inf)
        parts = zip(slopes.split(ctx.rows), features.split(ctx.rows))
        return torch.cat([torch.einsum("vn,vnd->vd", w, f[:, None] - features) for w, f in parts]), None


def _directions(features: Tensor, vertices: slice) -> tuple[Tensor, Tensor]:
    """(n, D) -> unit vectors (v, n, D) from each of v vertices to every image, and their lengths (v, n, 1)."""
    differences = features - features[vertices, None]
    lengths = differences.norm(dim=-1, keepdim=True)
    return differences.div_(lengths.clamp_min(1e-12)), lengths


class _Angle(torch.autograd.Function):
    """The loss of `rkd_angle`, some vertices at a time; its gradient is worked out in the forward pass.

    With u_ij the direction from i to j and x_ijk = u_ij . u_ik - (the teacher's), symmetric in j and k:
    d loss / d u_ij = 2 / n^3 * sum over k of clamp(x_ijk, -1, 1) u_ik.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, chunk_bytes: int) -> Tensor:
        n, dim = student.shape
        step = max(1, chunk_bytes // (n * (3 * dim + 2 * teacher.shape[1] + 3 * n) * student.element_size()))
        ctx.gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        total = student.new_zeros(())
        for start in range(0, n, step):
            vertices = slice(start, start + step)
            u, lengths = _directions(student, vertices)
            v, _ = _directions(teacher, vertices)
            x = torch.baddbmm(u @ u.mT, v, v.mT, alpha=-1)
            total += nnf.smooth_l1_loss(x, torch.zeros_like(x), reduction="sum")
            if ctx.gradient is not None:
                g = x.clamp_(-1, 1) @ u
                g -= (g * u).sum(-1, keepdim=True) * u
                # Coincident points have no direction to turn: 1 / 1e-12 times rounding errors is no gradient.
                g /= lengths.masked_fill(lengths < 1e-12, math.inf)
                ctx.gradient += g.sum(0)
                ctx.gradient[vertices] -= g.sum(1)
        if ctx.gradient is not None:
            ctx.gradient *= 2 / n**3
        return total / n**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.gradient, None, None
