"""A part of the report: how often peers give the same answer, how alike their features are, what the ensemble adds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from markupsafe import Markup
from torch import Tensor

from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.evaluation.fewshot import episode_logits
from fewshot_mcl.evaluation.statistics import Result, pooled
from fewshot_mcl.pages.page import fragment
from fewshot_mcl.report.material import Material

HEADING = "Agreement between peers, and what the ensemble adds"
ANCHOR = "agreement"
BATCH = 8  # episodes at a time: their features stay in the cache
IMAGES = 1000  # whose features are compared at most
PAIRS = 28  # that are listed at most: those of eight peers


@dataclass(frozen=True)
class Agreement:
    """What M peers answer to the queries of E episodes, as fractions of all queries.

    Attributes:
        same: (M, M) of equal answers.
        both: (M, M) of answers that are both right.
        peers: of each peer.
        ensemble, oracle: of the sum of logits, and of whoever knows which peer is right, if one is.
    """

    same: Tensor
    both: Tensor
    peers: list[Result]
    ensemble: Result
    oracle: Result

    def outcomes(self, a: int, b: int) -> tuple[float, float, float]:
        """Fractions of queries that both, exactly one, and none of two peers answer rightly."""
        both, right = float(self.both[a, b]), float(self.both[a, a] + self.both[b, b])
        return both, right - 2 * both, 1 - right + both


@torch.inference_mode()
def compare(features: Tensor, episodes: Episodes, metric: str, scale: float) -> Agreement:
    """Answers of peers with features (M, N, D) on the same episodes."""
    peers, way, query = len(features), *episodes.query.shape[1:]
    targets = torch.arange(way).repeat_interleave(query)
    same, both = torch.zeros(2, peers, peers, dtype=torch.float64)
    accuracies: list[Tensor] = []
    for start in range(0, len(episodes), BATCH):
        part = episodes[start : start + BATCH]
        logits = torch.stack([episode_logits(each, part, metric, scale) for each in features])
        answers = logits.argmax(-1)
        right = answers == targets
        same += torch.stack([(answers == each).sum((1, 2)) for each in answers])
        both += torch.stack([(right & each).sum((1, 2)) for each in right])
        added = torch.stack([logits.sum(0).argmax(-1) == targets, right.any(0)])
        accuracies.append(torch.cat([right, added]).double().mean(-1))
    *alone, ensemble, oracle = (Result(each) for each in torch.cat(accuracies, 1))
    queries = len(episodes) * way * query
    return Agreement(same / queries, both / queries, alone, ensemble, oracle)


def linear_cka(features: Tensor) -> Tensor:
    """Linear centred kernel alignment (Kornblith et al. 2019) of features (M, N, D), N >= 4 -> (M, M) float64.

    It is 1 where features are equal but for rotation and scale. It is the unbiased form (Song et al. 2012): about 0 between
    features that have nothing in common, however many they are, and 0 of a constant one.
    """
    count = features.shape[1]
    kernels = []
    for each in features.double():
        kernel = (each - each.mean(0)) @ (each - each.mean(0)).T
        kernel.fill_diagonal_(0)
        rows = kernel.sum(0) / (count - 2)
        kernel += rows.sum() / (count - 1) - rows - rows[:, None]
        kernel.fill_diagonal_(0)
        kernels.append((kernel / kernel.norm().clamp_min(1e-300)).flatten())
    return torch.stack([torch.stack([a @ b for b in kernels]) for a in kernels])


def section(material: Material) -> Markup:
    """Matrices, pairs, and paired differences; empty for a single network."""
    if material.config.peers == 1:
        return Markup()
    found = compare(material.measured, material.episodes, material.config.metric, material.config.scale)
    rows = torch.linspace(0, len(material.store) - 1, min(IMAGES, len(material.store))).long()
    alike = linear_cka(material.measured[:, rows])
    pairs = sorted(combinations(range(material.config.peers), 2), key=lambda pair: float(found.same[pair]))
    names = material.networks
    matrices = [
        {"caption": "Same answer, % of queries", "rows": _shaded(100 * found.same, "{:.1f}")},
        {
            "caption": "Likeness of features (linear CKA without bias: 1 equal but for rotation and scale, 0 nothing in common)",
            "rows": _shaded(alike, "{:.3f}"),
        },
    ]
    return fragment(
        "report/agreement.html",
        names=names,
        matrices=matrices,
        pairs=[_pair(found, a, b) for a, b in pairs[:PAIRS]],
        left_out=max(0, len(pairs) - PAIRS),
        accuracies=_accuracies(found, names[-1]),
        differences=_differences(found, names[-1]),
        images=len(rows),
        protocol=material.protocol,
    )


def _shaded(matrix: Tensor, form: str) -> list[list[tuple[str, float]]]:
    """Each figure in words, and how strongly its cell is shaded, 0 to 0.45 between the least and the most off the diagonal."""
    apart = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    low, high = float(apart.min()), float(apart.max())
    strength = (0.45 * (matrix - low) / max(high - low, 1e-9)).clamp(0, 0.45)
    return [[(form.format(v), round(s, 3)) for v, s in zip(*each)] for each in zip(matrix.tolist(), strength.tolist())]


def _pair(found: Agreement, a: int, b: int) -> list[str]:
    shares = (float(found.same[a, b]), *found.outcomes(a, b))
    return [f"peers\u00a0{a}\u00a0and\u00a0{b}", *(f"{100 * share:.1f}" for share in shares)]


def _accuracies(found: Agreement, deployed: str) -> list[list[str]]:
    results = {
        f"{deployed} (deployed)": found.peers[-1],
        "mean of the peers": pooled(found.peers),
        "ensemble (sum of logits)": found.ensemble,
        "oracle (some peer is right)": found.oracle,
    }
    return [[name, f"{100 * result.mean:.2f} ± {100 * result.ci95:.2f}"] for name, result in results.items()]


def _differences(found: Agreement, deployed: str) -> list[list[str]]:
    results = {
        f"ensemble minus {deployed} (deployed)": found.ensemble.minus(found.peers[-1]),
        "ensemble minus the mean of the peers": found.ensemble.minus(pooled(found.peers)),
        "oracle minus ensemble": found.oracle.minus(found.ensemble),
    }
    return [[name, f"{100 * each.mean:+.2f} ± {100 * each.ci95:.2f}", _verdict(each)] for name, each in results.items()]


def _verdict(difference: Result) -> str:
    if abs(difference.mean) <= difference.ci95:
        return "not to be told from none on these episodes"
    return "better" if difference.mean > 0 else "worse"
