"""What the paper prints. These figures are published ones, never mixed with what is measured here.

Tables 1 to 3 and the ablation are top-1 errors in % (the lower the better), Table 4 accuracies in %; with each, where there
is one, what the paper gives after the ±: in Table 1 the deviation over three runs, in Table 4 its interval.
"""

from __future__ import annotations

from dataclasses import dataclass

Figure = tuple[float, float | None]
NETWORKS = ("densenet40-12", "resnet32", "vgg16", "resnet110", "hcgnet-a1")
RIVALS = ("dml", "cl-ilr", "one", "okddip")
LABELS = {
    "baseline": "Baseline", "dml": "DML", "cl-ilr": "CL-ILR", "one": "ONE", "okddip": "OKDDip", "mcl": "MCL (no KL)",
    "mcl-okd": "MCL-OKD", "rkd-d": "RKD-D", "rkd-da": "RKD-DA", "mcl-okd-aux": "MCL-OKD, kl_source=aux",
    "mcl-okd-none": "MCL-OKD, kl_source=none", "mcl-okd ensemble": "MCL-OKD, ensemble", "densenet40-12": "DenseNet-40-12",
    "resnet32": "ResNet-32", "vgg16": "VGG-16", "resnet110": "ResNet-110", "hcgnet-a1": "HCGNet-A1", "resnet34": "ResNet-34",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        task: which command its cells are runs of.
        data: what the paper has it on.
        rows, columns: the names that cells are chosen by; the first of each kind of method is the baseline.
        figures: row -> column -> figure; a cell that the paper lacks is missing.
        network: which network of a run the cell is of, "deployed" or "ensemble".
    """

    title: str
    task: str
    data: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    figures: dict[str, dict[str, Figure]]
    network: str = "deployed"


def _grid(rows: tuple[str, ...], columns: tuple[str, ...], text: str) -> dict[str, dict[str, Figure]]:
    """Figures written line by line, "mean" or "mean/deviation"; "-" where there is none."""
    parsed = [[_figure(cell) for cell in line.split()] for line in text.strip().splitlines()]
    return {row: {c: f for c, f in zip(columns, line) if f is not None} for row, line in zip(rows, parsed)}


def _figure(cell: str) -> Figure | None:
    mean, _, deviation = cell.partition("/")
    return None if cell == "-" else (float(mean), float(deviation) if deviation else None)


METHODS_1 = ("baseline", *RIVALS, "mcl-okd")
METHODS_3 = (*RIVALS, "mcl-okd")
METHODS_4 = ("baseline", "rkd-d", "rkd-da", "dml", "cl-ilr", "one", "okddip", "mcl-okd", "mcl-okd-aux", "mcl-okd-none")
ABLATION = ("baseline", "mcl", "mcl-okd")
SHOTS = ("1-shot", "5-shot")

TABLES = {
    "table1": Table(
        "Table 1: top-1 error of the deployed network", "classify", "cifar100", NETWORKS, METHODS_1,
        _grid(NETWORKS, METHODS_1, """
            29.17/.15 27.34/.36 27.38/.47 29.01/.08 28.75/.63 26.04/.25
            28.91/.31 24.92/.12 25.40/.06 25.74/.19 25.76/.29 24.52/.26
            25.18/.25 24.14/.36 23.58/.14 25.22/.11 24.86/.30 23.11/.25
            23.62/.73 21.51/.74 21.16/.29 22.19/.56 21.05/.17 20.39/.59
            22.46/.28 18.98/.20 19.04/.17 22.30/.57 21.54/.11 18.72/.21"""),
    ),
    "table2": Table(
        "Table 2: top-1 error on ImageNet", "classify", "imagenet", ("resnet34",), ("baseline", "mcl-okd", "mcl-okd ensemble"),
        _grid(("resnet34",), ("baseline", "mcl-okd", "mcl-okd ensemble"), "25.43 24.64 23.26"),
    ),
    "table3": Table(
        "Table 3: top-1 error of the ensemble of all peers", "classify", "cifar100", NETWORKS, METHODS_3,
        _grid(NETWORKS, METHODS_3, """
            26.02 26.19 28.67 27.51 23.55
            22.97 24.03 24.03 23.73 22.00
            23.27 22.96 25.12 24.52 22.36
            19.12 18.66 20.23 19.40 18.29
            17.86 18.35 21.64 20.97 17.54"""),
        network="ensemble",
    ),
    "table4": Table(
        "Table 4: accuracy on 5-way episodes of new classes", "few-shot", "mini-imagenet", METHODS_4, SHOTS,
        _grid(METHODS_4, SHOTS, """
            49.10/.41 66.87/.33
            49.66/.84 67.07/.67
            50.02/.83 68.16/.67
            - -
            50.75/.40 67.75/.32
            50.67/.41 67.58/.33
            50.60/.42 67.41/.33
            51.58/.41 69.49/.33"""),
    ),
    "ablation": Table(
        "Ablation, as in the published README: top-1 error of the deployed network", "classify", "cifar100", NETWORKS, ABLATION,
        _grid(NETWORKS, ABLATION, """
            29.17 28.07 26.04
            28.91 27.29 24.52
            25.18 23.86 23.11
            23.62 21.65 20.39
            22.46 20.76 18.72"""),
    ),
}  # fmt: skip
