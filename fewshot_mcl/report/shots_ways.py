"""A part of the report: accuracy against the number of support images, and against the number of classes."""

from __future__ import annotations

from dataclasses import replace

from markupsafe import Markup

from fewshot_mcl.evaluation.fewshot import evaluate_peers
from fewshot_mcl.evaluation.session import Protocol, drawn
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.pages.charts import INK, chart, new_figure
from fewshot_mcl.pages.page import fragment
from fewshot_mcl.report.material import Material

HEADING = "Accuracy against shots and ways"
ANCHOR = "shots-and-ways"
SHOTS = (1, 2, 5, 10, 20, 50)
WAYS = (2, 5, 10, 20, 50)
EPISODES = 600  # at most, for each point

Points = dict[int, dict[str, Result]]


def section(material: Material) -> Markup:
    """Charts and tables of the deployed peer and the ensemble; empty where the images allow one point of each only."""
    protocol = replace(material.protocol, episodes=min(material.protocol.episodes, EPISODES))
    shots, ways = shots_possible(material), ways_possible(material)
    if len(shots) == len(ways) == 1:
        return Markup()
    shot = protocol.shots[0]
    by_shot = {each: measure(material, protocol, each) for each in shots}
    by_way = {each: measure(material, replace(protocol, way=each), shot) for each in ways}
    parts = [
        _part("Support images a class", f"{protocol.way}-way", "shot", by_shot, material),
        _part("Classes to choose from", f"{shot}-shot", "way", by_way, material, chance=True),
    ]
    return fragment("report/shots_ways.html", parts=parts, protocol=protocol, deployed=material.networks[-1])


def shots_possible(material: Material) -> list[int]:
    """Those of SHOTS, and the protocol's own, that leave every class its queries."""
    sizes = material.store.class_sizes
    room = int(sizes[sizes > 0].min()) - material.protocol.query
    own = material.protocol.shots[0]
    return sorted({own, *(shot for shot in SHOTS if shot <= room)})


def ways_possible(material: Material) -> list[int]:
    """Those of WAYS, and the protocol's own, for which there are classes."""
    classes = int((material.store.class_sizes > 0).sum())
    return sorted({material.protocol.way, *(way for way in WAYS if way <= classes)})


def measure(material: Material, protocol: Protocol, shot: int) -> dict[str, Result]:
    """Results of every peer and the ensemble on the protocol's episodes with `shot` support images a class."""
    config, episodes = material.config, drawn(material.store, protocol, shot)
    return evaluate_peers(material.measured, episodes, metric=config.metric, scale=config.scale)


def _part(
    title: str, held: str, unit: str, points: Points, material: Material, chance: bool = False
) -> dict[str, object]:
    """What the template shows of one series of points."""
    networks = [name for name in (material.networks[-1], "ensemble") if name in next(iter(points.values()))]
    rows = [
        [
            f"{at}\u2011{unit}",
            *(_percent(results[name]) for name in networks),
            *([f"{100 / at:.1f} %"] if chance else []),
        ]
        for at, results in points.items()
    ]
    labels = {name: f"{name} (deployed)" if name == material.networks[-1] else name for name in networks}
    columns = ["", *labels.values(), *(["chance"] if chance else [])]
    return {
        "title": title,
        "held": held,
        "chart": _chart(title, held, points, labels, chance),
        "columns": columns,
        "rows": rows,
    }


def _chart(title: str, held: str, points: Points, labels: dict[str, str], chance: bool) -> Markup:
    figure, axes = new_figure(5.2, 3.4)
    places = list(points)
    for (name, label), marker in zip(labels.items(), "os"):
        results = [points[at][name] for at in places]
        axes.errorbar(
            places, [100 * r.mean for r in results], [100 * r.ci95 for r in results], label=label, marker=marker, capsize=3,
            linestyle="--" if name == "ensemble" else "-",
        )  # fmt: skip
    if chance:
        axes.plot(places, [100 / at for at in places], label="chance", color="#7a7a7a", linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(places, [str(at) for at in places], minor=False)
    axes.minorticks_off()
    axes.set(xlabel=title.lower(), ylabel="accuracy, %")
    axes.legend(labelcolor=INK, frameon=False)
    first, last = places[0], places[-1]
    said = "; ".join(f"{label} {_ends(points, name, first, last)}" for name, label in labels.items())
    return chart(figure, f"{title}, {held}", f"Bars are 95 % intervals. From {first} to {last}: {said}.")


def _ends(points: Points, name: str, *places: int) -> str:
    return " to ".join(f"{100 * points[at][name].mean:.1f} %" for at in places)


def _percent(result: Result) -> str:
    return f"{100 * result.mean:.2f} ± {100 * result.ci95:.2f} %"
