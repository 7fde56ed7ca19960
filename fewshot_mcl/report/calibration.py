"""A part of the report: whether answers are right as often as they are sure, and how far doubt picks out wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from markupsafe import Markup
from torch import Tensor

from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import episode_logits
from fewshot_mcl.evaluation.session import drawn
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.pages.charts import INK, chart, new_figure
from fewshot_mcl.pages.page import fragment
from fewshot_mcl.report.material import Material

HEADING = "Calibration: does it know when it does not know?"
ANCHOR = "calibration"
BINS = 15  # of equal width
BATCH = 8  # episodes at a time
EPISODES = 2000  # at most, to be looked at
VALIDATION_EPISODES = 600  # at most, that choose the temperature
SHARES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.25)


@dataclass(frozen=True)
class Answers:
    """What a network answers to the Q queries of each of E episodes.

    Attributes:
        confidence: (E, Q) float64 probability of the answer.
        right: (E, Q) whether it is right.
        likelihood: (E, Q) float64 log of the probability of the right class.
    """

    confidence: Tensor
    right: Tensor
    likelihood: Tensor

    @classmethod
    def of(cls, logits: Tensor, temperature: float) -> Answers:
        """From logits (E, way * query, way), queries class by class, over a temperature."""
        targets = _targets(logits)
        logs = (logits.double() / temperature).log_softmax(-1)
        best, answer = logs.max(-1)
        return cls(best.exp(), answer == targets, logs.gather(-1, targets.expand(len(logits), -1)[..., None])[..., 0])

    @property
    def accuracy(self) -> Result:
        return Result(self.right.double().mean(1))


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in BINS bins of confidence.

    Attributes:
        share: (BINS,) of all queries that fall into the bin.
        confidence, accuracy: (BINS,) means within it; 0 where it is empty.
        ci95: (BINS,) half-width of the accuracy's 95% interval, over episodes: queries of one are not independent.
        error: the expected calibration error (Guo et al. 2017), sum of share * |accuracy - confidence|.
    """

    share: Tensor
    confidence: Tensor
    accuracy: Tensor
    ci95: Tensor
    error: float


def reliability(answers: Answers) -> Reliability:
    """Answers by confidence; the last bin includes 1."""
    count = len(answers.confidence)
    place = (answers.confidence * BINS).long().clamp_max(BINS - 1)
    flat = (place + BINS * torch.arange(count)[:, None]).flatten()

    def by_bin(weights: Tensor) -> Tensor:  # (E, BINS)
        return torch.bincount(flat, weights.double().flatten(), count * BINS).view(count, BINS)

    queries, right, sure = (by_bin(x) for x in (torch.ones_like(place), answers.right, answers.confidence))
    total = queries.sum(0).clamp_min(1)
    accuracy, confidence = right.sum(0) / total, sure.sum(0) / total
    spread = (right - accuracy * queries).square().sum(0).sqrt() / total  # of a ratio of sums over episodes
    share = queries.sum(0) / queries.sum()
    error = float((share * (accuracy - confidence).abs()).sum())
    return Reliability(share, confidence, accuracy, 1.96 * spread, error)


def best_temperature(logits: Tensor) -> float:
    """The temperature, 1/1000 to 1000, that makes the right classes of logits (E, way * query, way) likeliest."""
    from scipy.optimize import minimize_scalar

    wide = logits.double()

    def loss(exponent: float) -> float:
        return -float(Answers.of(wide, 10**exponent).likelihood.mean())

    return float(10 ** minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-5}).x)


def coverage(answers: Answers) -> Tensor:
    """(E * Q,) accuracy among the 1, 2, 3, ... surest answers; among equally sure ones, their mean."""
    confidence, order = answers.confidence.flatten().sort(descending=True, stable=True)
    right = answers.right.flatten()[order].double()
    _, ties, sizes = confidence.unique_consecutive(return_inverse=True, return_counts=True)
    mean = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, ties, right) / sizes
    return mean[ties].cumsum(0) / torch.arange(1, len(right) + 1)


def section(material: Material) -> Markup:
    """Reliability before and after one temperature, and accuracy against the share that is answered."""
    chosen, why = _validation(material)
    episodes = material.episodes[:EPISODES]
    before, after = {}, {}
    temperatures: dict[str, float] = {}
    for name in [material.networks[-1], *(["ensemble"] if material.config.peers > 1 else [])]:
        logits = _logits(material, material.measured, episodes, name)
        before[name] = Answers.of(logits, 1.0)
        if chosen is not None:
            temperatures[name] = best_temperature(_logits(material, material.features["val"], chosen, name))
            after[name] = Answers.of(logits, temperatures[name])
    return fragment(
        "report/calibration.html",
        rows=_rows(before, after, temperatures, material.networks[-1]),
        charts=[
            *(_reliability_chart(name, before[name], after.get(name)) for name in before),
            _coverage_chart(after or before),
        ],
        coverage=_coverage_rows(after or before),
        networks=list(before),
        why=why,
        scaled=bool(after),
        chosen=chosen,
        protocol=replace(material.protocol, episodes=len(episodes)),
        bins=BINS,
    )


def _targets(logits: Tensor) -> Tensor:
    way = logits.shape[-1]
    return torch.arange(way).repeat_interleave(logits.shape[1] // way)


def _validation(material: Material) -> tuple[Episodes | None, str]:
    """Episodes to choose a temperature by, or why there are none."""
    if material.protocol.split == "val":
        return None, "the validation split is what is measured, and choosing on it would flatter"
    if "val" not in material.stores:
        return None, "there is no validation split beside the images that are measured"
    protocol = replace(material.protocol, split="val", episodes=min(material.protocol.episodes, VALIDATION_EPISODES))
    try:
        return drawn(material.stores["val"], protocol, protocol.shots[0]), ""
    except UserError as error:
        return None, f"the validation split does not allow such episodes: {error}"


@torch.inference_mode()
def _logits(material: Material, features: Tensor, episodes: Episodes, name: str) -> Tensor:
    """Logits of a peer, or of the ensemble, which sums those of all."""
    rows = range(len(features)) if name == "ensemble" else [material.networks.index(name)]
    config, parts = material.config, []
    for start in range(0, len(episodes), BATCH):
        part = episodes[start : start + BATCH]
        parts.append(sum(episode_logits(features[m], part, config.metric, config.scale) for m in rows))
    return torch.cat([torch.as_tensor(part) for part in parts])


def _rows(
    before: dict[str, Answers], after: dict[str, Answers], temperatures: dict[str, float], deployed: str
) -> list[list[str]]:
    rows = []
    for name in before:
        label = f"{name} (deployed)" if name == deployed else name
        rows.append([label, "as trained", *_figures(before[name])])
        if name in after:
            rows.append([label, f"temperature {temperatures[name]:.3g}", *_figures(after[name])])
    return rows


def _figures(answers: Answers) -> list[str]:
    surprise = Result(-answers.likelihood.mean(1))
    return [
        f"{100 * answers.accuracy.mean:.2f} ± {100 * answers.accuracy.ci95:.2f}",
        f"{100 * float(answers.confidence.mean()):.2f}",
        f"{100 * reliability(answers).error:.2f}",
        f"{surprise.mean:.3f} ± {surprise.ci95:.3f}",
    ]


def _coverage_rows(answers: dict[str, Answers]) -> list[list[str]]:
    curves = [coverage(each) for each in answers.values()]
    sure = [each.confidence.flatten().sort(descending=True).values for each in answers.values()]
    rows = []
    for share in SHARES:
        last = max(1, round(share * len(curves[0]))) - 1
        figures = [f"{100 * curve[last]:.2f} (from {100 * least[last]:.1f})" for curve, least in zip(curves, sure)]
        rows.append([f"{100 * share:.0f} %", *figures])
    return rows


def _reliability_chart(name: str, before: Answers, after: Answers | None) -> Markup:
    figure, axes = new_figure(3.7, 3.6)
    axes.plot([0, 1], [0, 1], linestyle=":", color="#7a7a7a", label="as sure as right")
    said = []
    for label, answers, marker in (("as trained", before, "o"), ("after temperature", after, "s")):
        if answers is None:
            continue
        found = reliability(answers)
        there = found.share > 0
        axes.errorbar(
            found.confidence[there], found.accuracy[there], found.ci95[there], marker=marker, capsize=2, label=label
        )
        said.append(f"{100 * found.error:.2f} % {label}")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
    axes.legend(loc="upper left", labelcolor=INK, frameon=False)
    return chart(
        figure,
        f"Reliability of {name}",
        f"Expected calibration error: {', '.join(said)}. Below the dotted line it is surer than right.",
    )


def _coverage_chart(answers: dict[str, Answers]) -> Markup:
    figure, axes = new_figure(3.7, 3.6)
    said = []
    for (name, each), style in zip(answers.items(), ("-", "--")):
        curve = coverage(each)
        count = len(curve)
        shown = torch.linspace(
            max(0, count // 100 - 1), count - 1, min(count, 200)
        ).long()  # the first are few, and noise
        axes.plot((shown + 1) / count, curve[shown], linestyle=style, label=name)
        said.append(
            f"{name} {100 * curve[-1]:.1f} % of all, {100 * curve[(count + 1) // 2 - 1]:.1f} % of the surer half"
        )
    axes.set(xlim=(0, 1.02), xlabel="share answered, the surest first", ylabel="accuracy")
    axes.legend(labelcolor=INK, frameon=False)
    return chart(figure, "Accuracy against share answered", f"Right are {'; '.join(said)}.")
