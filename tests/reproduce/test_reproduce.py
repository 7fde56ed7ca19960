"""`reproduce`: the paper's figures, the runs that a table needs, and the page that compares."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Answer, bad, class_folders, good, tree
from safetensors.torch import load_file, save_file

from fewshot_mcl.config import ClassifyConfig, FewShotConfig, resolve
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation import session as evaluation_session
from fewshot_mcl.evaluation.session import Protocol
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.reproduce import session as reproduce_session
from fewshot_mcl.reproduce.cells import Cell, Choice, cells_of
from fewshot_mcl.reproduce.paper import TABLES
from fewshot_mcl.reproduce.report import Report
from fewshot_mcl.reproduce.results import Found, is_papers_data
from fewshot_mcl.runs.files import read_json, sha256, write_json
from fewshot_mcl.training import estimate
from fewshot_mcl.training.supervised import SupervisedTask

# The paper's figures, copied row by row in the form it prints them.

NAMES = {
    "DenseNet-40-12": "densenet40-12", "ResNet-32": "resnet32", "VGG-16": "vgg16", "ResNet-110": "resnet110",
    "HCGNet-A1": "hcgnet-a1", "ResNet-34": "resnet34", "Baseline": "baseline", "DML": "dml", "CL-ILR": "cl-ilr",
    "ONE": "one", "OKDDip": "okddip", "MCL-OKD": "mcl-okd", "MCL-OKD ensemble": "mcl-okd ensemble", "+MCL": "mcl",
    "+MCL+KL": "mcl-okd", "RKD-D": "rkd-d", "RKD-DA": "rkd-da", "1-shot": "1-shot", "5-shot": "5-shot",
}  # fmt: skip
PRINTED = {
    "table1": """
        | network | Baseline | DML | CL-ILR | ONE | OKDDip | MCL-OKD |
        | DenseNet-40-12 | 29.17 (.15) | 27.34 (.36) | 27.38 (.47) | 29.01 (.08) | 28.75 (.63) | 26.04 (.25) |
        | ResNet-32 | 28.91 (.31) | 24.92 (.12) | 25.40 (.06) | 25.74 (.19) | 25.76 (.29) | 24.52 (.26) |
        | VGG-16 | 25.18 (.25) | 24.14 (.36) | 23.58 (.14) | 25.22 (.11) | 24.86 (.30) | 23.11 (.25) |
        | ResNet-110 | 23.62 (.73) | 21.51 (.74) | 21.16 (.29) | 22.19 (.56) | 21.05 (.17) | 20.39 (.59) |
        | HCGNet-A1 | 22.46 (.28) | 18.98 (.20) | 19.04 (.17) | 22.30 (.57) | 21.54 (.11) | 18.72 (.21) |""",
    "table2": """
        | network | Baseline | MCL-OKD | MCL-OKD ensemble |
        | ResNet-34 | 25.43 | 24.64 | 23.26 |""",
    "table3": """
        | network | DML | CL-ILR | ONE | OKDDip | MCL-OKD |
        | DenseNet-40-12 | 26.02 | 26.19 | 28.67 | 27.51 | 23.55 |
        | ResNet-32 | 22.97 | 24.03 | 24.03 | 23.73 | 22.00 |
        | VGG-16 | 23.27 | 22.96 | 25.12 | 24.52 | 22.36 |
        | ResNet-110 | 19.12 | 18.66 | 20.23 | 19.40 | 18.29 |
        | HCGNet-A1 | 17.86 | 18.35 | 21.64 | 20.97 | 17.54 |""",
    "table4": """
        | method | 1-shot | 5-shot |
        | Baseline | 49.10 (.41) | 66.87 (.33) |
        | RKD-D | 49.66 (.84) | 67.07 (.67) |
        | RKD-DA | 50.02 (.83) | 68.16 (.67) |
        | CL-ILR | 50.75 (.40) | 67.75 (.32) |
        | ONE | 50.67 (.41) | 67.58 (.33) |
        | OKDDip | 50.60 (.42) | 67.41 (.33) |
        | MCL-OKD | 51.58 (.41) | 69.49 (.33) |""",
    "ablation": """
        | network | Baseline | +MCL | +MCL+KL |
        | DenseNet-40-12 | 29.17 | 28.07 | 26.04 |
        | ResNet-32 | 28.91 | 27.29 | 24.52 |
        | VGG-16 | 25.18 | 23.86 | 23.11 |
        | ResNet-110 | 23.62 | 21.65 | 20.39 |
        | HCGNet-A1 | 22.46 | 20.76 | 18.72 |""",
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d*\.\d+", text)]


@pytest.mark.parametrize("name", PRINTED)
def test_every_figure_is_the_papers(name: str) -> None:
    head, *rows = map(cells, PRINTED[name].strip().splitlines())
    printed = {
        (NAMES[row[0]], NAMES[column]): (*numbers(figure), None)[:2]
        for row in rows
        for column, figure in zip(head[1:], row[1:])
    }
    table = TABLES[name]
    assert {(row, c): figure for row, figures in table.figures.items() for c, figure in figures.items()} == printed
    assert {row for row, _ in printed} <= set(table.rows)
    assert {column for _, column in printed} == set(table.columns)
    assert set(TABLES) == set(PRINTED)


def test_the_papers_figures_agree_with_what_it_says_of_them() -> None:
    def column(table: str, name: str) -> list[float]:
        return [TABLES[table].figures[row][name][0] for row in TABLES[table].rows]

    gains = [a - b for a, b in zip(column("table1", "okddip"), column("table1", "mcl-okd"))]
    assert sum(gains) / 5 == pytest.approx(1.836)
    for method in ("baseline", "mcl-okd"):
        assert column("ablation", method) == column("table1", method)
    for method in TABLES["table3"].columns:  # an ensemble beats its network
        assert all(a < b for a, b in zip(column("table3", method), column("table1", method)))
    worse = [a > b for a, b in zip(column("ablation", "mcl"), column("table1", "dml"))]
    assert worse == [True, True, False, True, True]  # all but VGG-16


# Which runs a table needs.


def chosen(
    *rows: str, columns: tuple[str, ...] = (), seeds: int = 1, config: str | None = None, **options: Any
) -> Choice:
    settings = tuple(options.pop("settings", ()))
    return Choice(rows, columns, seeds, config, options, settings)


def test_all_cells_of_a_table_baselines_first(tmp_path: Path) -> None:
    found = cells_of(TABLES["table1"], chosen(seeds=3), tmp_path)
    assert len(found) == 5 * 6 * 3
    assert len({cell.path for cell in found}) == len(found)
    for seed in range(3):
        of_seed = [cell.config.method for cell in found if cell.seed == seed]
        assert set(of_seed[:5]) == {"baseline"}
        assert "baseline" not in of_seed[5:]
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)
    for cell in found:
        assert (cell.config.backbone, cell.config.method, cell.config.seed) == (cell.row, cell.column, cell.seed)
        assert cell.path == tmp_path / f"{cell.row}-{cell.column}-seed{cell.seed}"
        assert not cell.done


def test_rows_and_columns_are_chosen_by_name(tmp_path: Path) -> None:
    choice = chosen("vgg16", "resnet32", columns=("mcl-okd", "baseline"), data="cifar100")
    names = [(cell.row, cell.column) for cell in cells_of(TABLES["table1"], choice, tmp_path)]
    assert names == [("resnet32", "baseline"), ("vgg16", "baseline"), ("resnet32", "mcl-okd"), ("vgg16", "mcl-okd")]


def test_the_budget_is_the_recipes_of_the_tables_data(tmp_path: Path) -> None:
    config: Any
    for cell in cells_of(TABLES["table1"], chosen("resnet32", "vgg16"), tmp_path):
        config = cell.config
        assert isinstance(config, ClassifyConfig)
        half = 2 if config.method == "mcl-okd" else 1
        assert (config.data, config.epochs, config.batch, config.lr) == ("cifar100", 300, 128 // half, 0.1 / half)
        if half == 2:
            assert config.objective["num_negatives"] == {"resnet32": 256, "vgg16": 16384}[cell.row]
    [config] = [
        c.config for c in cells_of(TABLES["table1"], chosen("vgg16", columns=("dml",), config="matched"), tmp_path)
    ]
    assert (config.batch, config.lr) == (128, 0.1)


def test_a_network_and_its_ensemble_are_one_run(tmp_path: Path) -> None:
    found = cells_of(TABLES["table2"], chosen(seeds=2), tmp_path)
    assert [cell.path.name for cell in found] == [
        f"resnet34-{method}-seed{seed}" for seed in (0, 1) for method in ("baseline", "mcl-okd")
    ]
    [alone] = cells_of(TABLES["table2"], chosen(columns=("mcl-okd ensemble",)), tmp_path)
    assert alone.path.name == "resnet34-mcl-okd-seed0"
    config = alone.config
    assert isinstance(config, ClassifyConfig)
    assert (config.data, config.epochs, config.batch, config.peers) == ("imagenet", 100, 128, 4)


def test_few_shot_cells_train_at_their_own_shot(tmp_path: Path) -> None:
    found = {cell.path.name: cell for cell in cells_of(TABLES["table4"], chosen(seeds=2), tmp_path)}
    assert len(found) == 10 * 2 * 2
    for name, cell in found.items():
        config = cell.config
        assert isinstance(config, FewShotConfig)
        shot = int(cell.column[0])
        assert (config.shot, config.val_shot, config.seed) == (shot, shot, cell.seed)
        assert name == f"{cell.row}-{shot}shot-seed{cell.seed}"
        recipe = resolve({1: "paper", 5: "paper-5shot"}[shot], {"method": config.method})
        assert (config.episodes, config.way) == (recipe.flat()["episodes"], recipe.flat()["way"])
        if cell.row.startswith("mcl-okd"):
            source = {"mcl-okd": "episode", "mcl-okd-aux": "aux", "mcl-okd-none": "none"}[cell.row]
            assert (config.method, config.kl_source) == ("mcl-okd", source)
        if cell.row.startswith("rkd"):
            assert config.teacher == str(tmp_path / f"baseline-{shot}shot-seed{cell.seed}")
    [other] = cells_of(TABLES["table4"], chosen("mcl-okd", columns=("5-shot",), data="glyphs"), tmp_path)
    assert other.config.flat()["episodes"] == resolve("default").flat()["episodes"]


def test_rkd_needs_its_baseline(tmp_path: Path) -> None:
    for row in ("rkd-d", "rkd-da"):
        with pytest.raises(UserError, match=r"learns from the baseline: add it, --rows baseline"):
            cells_of(TABLES["table4"], chosen(row, "mcl-okd"), tmp_path)
    found = cells_of(TABLES["table4"], chosen("rkd-d", "baseline", columns=("1-shot",)), tmp_path)
    assert [cell.row for cell in found] == ["baseline", "rkd-d"]


# Training them.


@pytest.fixture
def out(ablation: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of `ablation`'s folder."""
    return Path(shutil.copytree(ablation[0], tmp_path / "out"))


@pytest.fixture
def out_4(table_4: Path, tmp_path: Path) -> Path:
    """A copy of `table_4`, whose students know their teachers by the old path."""
    return Path(shutil.copytree(table_4, tmp_path / "out4"))


RUNS = [f"resnet32-{method}-seed{seed}" for seed in (0, 1) for method in ("baseline", "mcl", "mcl-okd")]


def test_what_it_leaves_and_says(ablation: tuple[Path, str]) -> None:
    folder, text = ablation
    assert {path.name for path in folder.iterdir()} == {
        "ablation.md", *(f"{name}{end}" for name in RUNS for end in ("", ".toml", ".log"))
    }  # fmt: skip
    lines = text.splitlines()
    assert lines[0] == "6 runs, 0 of them done already"
    assert next(line for line in lines if "left" in line) == "resnet32-baseline-seed0: done; 5 runs left"
    assert lines[-1] == f"written {folder / 'ablation.md'}"
    page = (folder / "ablation.md").read_text(encoding="utf-8")
    assert page.rstrip("\n") in text
    for name in RUNS:
        assert (folder / name / "model.json").exists()
        assert "last epoch:" in (folder / f"{name}.log").read_text(encoding="utf-8")
        with (folder / name / "metrics.csv").open(newline="") as file:
            assert list(csv.DictReader(file))[-1]["step"] == "2"


def test_the_second_time_nothing_is_trained_or_tested(reproduce, commands: list[list[str]], out: Path) -> None:
    before = tree(out)
    good(reproduce("--out", out), "6 runs, 6 of them done already", f"written {out / 'ablation.md'}")
    assert commands == []
    assert tree(out) == before


def test_tables_share_their_runs(cli, pictures: Path, commands: list[list[str]], out: Path) -> None:
    table_1 = ("table1", "--rows", "resnet32", "--columns", "baseline", "--columns", "mcl-okd", "--columns", "one")
    same = ("--data", pictures, "--epochs", 1, "--set", "image_size=16", "--set", "batch=16", "--out", out)
    good(cli("reproduce", *table_1, "--seeds", 1, *same), "3 runs, 2 of them done already", "written")
    assert [command[:1] + command[3:4] for command in commands] == [["classify", "--config"]]
    assert (out / "resnet32-one-seed0/model.json").exists()
    assert (out / "table1.md").exists()
    good(cli("reproduce", "table3", *table_1[1:3], "--columns", "mcl-okd", "--columns", "one", "--seeds", 1, *same),
         "2 runs, 2 of them done already")  # fmt: skip


def test_each_cell_is_the_run_that_its_own_command_makes(cli, out: Path, tmp_path: Path) -> None:
    name = "resnet32-mcl-okd-seed1"
    good(cli("classify", "--config", out / f"{name}.toml", "--out", tmp_path / "alone"))
    for file in (
        "model.safetensors",
        "metrics.csv",
        "config.toml",
        "evaluations/evaluation-001-predictions.safetensors",
    ):
        assert (tmp_path / "alone" / file).read_bytes() == (out / name / file).read_bytes()
    assert resolve(str(out / name / "config.toml")).seed == 1


Breaking = Callable[[Callable[[str], Exception | None]], None]


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Breaking:
    """`breaking(f)`: the second step of a run ends with the exception that `f(METHOD-SEED)` gives, if any."""
    step = SupervisedTask.step

    def begin(error: Callable[[str], Exception | None]) -> None:
        def broken(self: SupervisedTask, number: int):
            failure = error(f"{self.config.method}-{self.config.seed}") if number == 1 else None
            if failure:
                raise failure
            return step(self, number)

        monkeypatch.setattr(SupervisedTask, "step", broken)

    return begin


def test_an_interrupted_cell_is_resumed(
    reproduce, commands: list[list[str]], breaking: Breaking, ablation: tuple[Path, str], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", ablation[0]
    columns = ("--columns", "baseline", "--columns", "mcl", "--seeds", 1, "--set", "save_every=1", "--out", out)
    breaking(lambda run: KeyboardInterrupt() if run == "mcl-0" else None)  # type: ignore[arg-type,return-value]
    answer = reproduce(*columns)
    bad(answer, "resnet32-mcl-seed0: stopped after step 1", "the checkpoint of step 1 is safe", "What is done is kept")
    assert "resnet32-baseline-seed0: done; 1 runs left" in answer.out
    assert not (out / "ablation.md").exists()
    breaking(lambda run: None)
    commands.clear()
    good(reproduce(*columns), "2 runs, 1 of them done already", "resnet32-mcl-seed0: done; 0 runs left")
    assert commands == [["classify", "--out", str(out / "resnet32-mcl-seed0"), "--resume"]]
    for name in ("resnet32-mcl-seed0", "resnet32-baseline-seed0"):
        for file in ("model.safetensors", "evaluations/evaluation-001-predictions.safetensors"):
            assert (out / name / file).read_bytes() == (whole / name / file).read_bytes()
    assert "step 1 is safe" in (out / "resnet32-mcl-seed0.log").read_text(encoding="utf-8")


def test_a_cell_that_fails_says_why_and_the_others_are_kept(
    reproduce, commands: list[list[str]], breaking: Breaking, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    breaking(lambda run: UserError("the sun went down.") if run.startswith("mcl-") and "okd" not in run else None)
    answer = reproduce("--out", out)
    bad(answer, "resnet32-mcl-seed0: the sun went down.", "(and 1 more)", "give the command again")
    assert {name for name in RUNS if (out / name / "model.json").exists()} == {n for n in RUNS if "-mcl-seed" not in n}
    assert not (out / "ablation.md").exists()
    breaking(lambda run: None)
    commands.clear()
    good(reproduce("--out", out), "6 runs, 4 of them done already")  # those without a checkpoint start afresh
    assert [command[3] for command in commands] == ["--config", "--config"]
    assert (out / "ablation.md").exists()


def test_a_run_of_other_settings_is_refused_by_name(reproduce, reproduce_4, out: Path, out_4: Path) -> None:
    before, before_4 = tree(out), tree(out_4)
    name = out / "resnet32-baseline-seed0"
    bad(reproduce("--epochs", 2, "--out", out), f"{name} was made with epochs = 1, not 2", "another --out")
    bad(reproduce("--set", "weight_decay=0", "--out", out), "was made with weight_decay = 0.0005, not 0")
    bad(
        reproduce("--seeds", 1, "--columns", "mcl", "--set", "objective.beta=1", "--out", out),
        "objective.beta",
        "not 1.0",
    )
    bad(reproduce_4("--set", "way=2", "--out", out_4), "was made with way = 3, not 2")
    assert tree(out) == before
    assert tree(out_4) == before_4
    good(reproduce("--set", "device=cpu", "--out", out), "6 of them done already")


def test_a_path_that_is_no_run_is_refused_and_left_alone(reproduce, commands: list[list[str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "resnet32-mcl-seed0").mkdir(parents=True)
    (out / "resnet32-mcl-seed0/diary.txt").write_text("dear diary")
    (out / "resnet32-mcl-okd-seed0").mkdir()
    before = tree(out)
    bad(reproduce("--out", out), "resnet32-mcl-seed0 is not a run directory", "config.toml")
    assert tree(out) == before
    assert commands == []


# The page.


def pages(text: str) -> Iterator[list[list[str]]]:
    """The tables of a Markdown page, each a list of rows."""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            rows = [cells(line) for line in block.splitlines()]
            assert all(cell == "---" for cell in rows[1])
            assert len({len(row) for row in rows}) == 1
            yield [rows[0], *rows[2:]]


def column_of(table: list[list[str]], head: str) -> dict[str, str]:
    """Cells by line of the column whose heading is `head`."""
    place = table[0].index(head)
    return {row[0]: row[place] for row in table[1:]}


def interval(values: np.ndarray) -> float:
    return 1.96 * values.std(ddof=1) / len(values) ** 0.5


def figure(by_seed: list[np.ndarray]) -> list[float]:
    """Mean, interval and deviation over seeds, in %, of (N,) values a seed."""
    seeds = [values.mean() for values in by_seed]
    found = [np.mean(seeds), interval(np.mean(by_seed, 0)), *([np.std(seeds, ddof=1)] if len(seeds) > 1 else [])]
    return [100 * value for value in found]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[float]:
    """Mean and interval of the paired difference, and each seed's, in %."""
    by_seed = [a - b for a, b in zip(ours, theirs)]
    found = [np.mean(by_seed), interval(np.mean(by_seed, 0)), *(values.mean() for values in by_seed)]
    return [100 * value for value in found]


def same(text: str, values: list[float]) -> None:
    assert numbers(text) == pytest.approx(values, abs=0.00501), text


def test_figures_and_differences_are_those_of_the_saved_evaluations(reproduce, out: Path) -> None:
    wrong: dict[str, list[np.ndarray]] = {}  # method -> (N,) errors a seed
    for i, name in enumerate(RUNS):  # answers of which nothing is certain
        file = out / name / "evaluations/evaluation-001-predictions.safetensors"
        said = load_file(file)
        generator = torch.Generator().manual_seed(i)
        for each in said:
            if each != "labels":
                said[each] = torch.randint(3, said["labels"].shape, generator=generator, dtype=torch.int32)
        save_file(said, file)
        bad(reproduce("--out", out), f"{file} is damaged", "evaluation-001.json")
        saved = file.with_name("evaluation-001.json")
        content = read_json(saved, "attachments")
        content["attachments"]["predictions.safetensors"] = sha256(file)
        write_json(saved, content)
        deployed = "peer 0" if "baseline" in name else "peer 3"
        method = name.split("-", 1)[1].rpartition("-")[0]
        wrong.setdefault(method, []).append((said[f"last/{deployed}"] != said["labels"]).double().numpy())
    good(reproduce("--out", out), "6 of them done already")
    page = (out / "ablation.md").read_text(encoding="utf-8")
    figures, differences = pages(page)

    here = column_of(figures, "ResNet-32, here")
    labels = {"baseline": "Baseline", "mcl": "MCL (no KL)", "mcl-okd": "MCL-OKD"}
    assert list(here) == list(labels.values())
    for method, label in labels.items():
        same(here[label], figure(wrong[method]))
        if method != "baseline":
            same(column_of(differences, "ResNet-32")[label], difference(wrong[method], wrong["baseline"]))
    assert column_of(figures, "ResNet-32, paper, on cifar100") == {
        "Baseline": "28.91", "MCL (no KL)": "27.29", "MCL-OKD": "24.52",
    }  # fmt: skip
    without = page
    for published in ("28.91", "27.29", "24.52"):  # each stands once, under "paper"
        assert without.count(published) == 1
        without = without.replace(published, "")
    assert "This is not the data of the paper's table" in page
    assert (
        "Data: pictures (a quarter of each class is the test split, by seed 0 (no split was given)), test split" in page
    )
    assert "3 classes, 9 images of 16 pixels" in page
    assert "1 training epochs, 2 seeds" in page
    assert "batch 16" in page
    assert "best rival" not in page


def test_few_shot_figures_and_differences_are_paired_by_episode(reproduce_4, out_4: Path) -> None:
    right: dict[tuple[str, str], list[np.ndarray]] = {}  # (line, shot) -> (E,) accuracies a seed
    rows = {"baseline": "Baseline", "rkd-d": "RKD-D", "mcl-okd": "MCL-OKD"}
    for i, (seed, row, shot) in enumerate((s, r, k) for s in (0, 1) for r in rows for k in (1, 5)):
        path = out_4 / f"{row}-{shot}shot-seed{seed}/evaluations/evaluation-001.json"
        content = json.loads(path.read_text())
        assert {(r["way"], r["shot"], r["query"], r["episodes"]) for r in content["results"]} == {(5, shot, 3, 6)}
        for j, result in enumerate(content["results"]):
            result["accuracies"] = np.random.default_rng((i, j)).random(6).tolist()
            if result["network"] == content["deployed"]:
                right.setdefault((rows[row], f"{shot}-shot"), []).append(np.array(result["accuracies"]))
            elif result["network"] == "ensemble":
                right.setdefault((f"{rows[row]}, ensemble", f"{shot}-shot"), []).append(np.array(result["accuracies"]))
        write_json(path, content)
    answer = reproduce_4("--out", out_4)
    good(answer, "12 runs, 12 of them done already")
    page = (out_4 / "table4.md").read_text(encoding="utf-8")
    figures, differences = pages(page)
    assert [row[0] for row in figures[1:]] == ["Baseline", "RKD-D", "MCL-OKD", "MCL-OKD, ensemble"]
    for (label, shot), values in right.items():
        same(column_of(figures, f"{shot}, here")[label], figure(values))
        if label != "Baseline":
            same(column_of(differences, shot)[label], difference(values, right["Baseline", shot]))
    assert column_of(figures, "5-shot, paper, on mini-imagenet") == {
        "Baseline": "66.87 (0.33)", "RKD-D": "67.07 (0.67)", "MCL-OKD": "69.49 (0.33)", "MCL-OKD, ensemble": "-",
    }  # fmt: skip
    for shot in ("1-shot", "5-shot"):
        [line] = [
            line for line in page.splitlines() if line.startswith(f"* {shot}: MCL-OKD minus RKD-D, the best rival")
        ]
        same(line.partition("figures:")[2], difference(right["MCL-OKD", shot], right["RKD-D", shot]))
    assert "Accuracy in % on 6 episodes (seed 0), 5-way, 3 queries a class" in page
    assert "This is not the data of the paper's table" in page


def test_students_learn_from_the_baseline_of_their_own_seed_and_shot(table_4: Path) -> None:
    for seed in (0, 1):
        for shot in (1, 5):
            config = resolve(str(table_4 / f"rkd-d-{shot}shot-seed{seed}/config.toml"))
            assert config.teacher == str((table_4 / f"baseline-{shot}shot-seed{seed}").resolve())
            assert config.flat()["shot"] == config.flat()["val_shot"] == shot


def test_the_other_protocol_evaluates_anew_and_trains_nothing(
    reproduce_4, commands: list[list[str]], out_4: Path
) -> None:
    good(reproduce_4("--out", out_4, "--protocol", "baseline-repo"), "12 runs, 12 of them done already", "4 episodes")
    assert commands == []
    content = json.loads((out_4 / "mcl-okd-5shot-seed1/evaluations/evaluation-002.json").read_text())
    assert {(r["way"], r["shot"], r["query"], r["episodes"], r["seed"]) for r in content["results"]} == {
        (5, 5, 2, 4, 0)
    }
    assert content["checkpoint"] == "best"
    before = tree(out_4)
    good(reproduce_4("--out", out_4, "--protocol", "baseline-repo"))
    assert tree(out_4) == before
    good(reproduce_4("--out", out_4), "6 episodes")  # whose evaluations are still there
    assert {name for name in tree(out_4) if "evaluations/" in name} == {
        name for name in before if "evaluations/" in name
    }


@pytest.mark.parametrize(
    "other",
    [
        {"data": "glyphs"}, {"checkpoint": "last"}, {"split": "val"}, {"seed": 1}, {"query": 4}, {"way": 4},
        {"episodes": 7}, {"shot": 2},
    ],
    ids=str,
)  # fmt: skip
def test_evaluations_of_other_things_are_not_taken(other: dict[str, Any], reproduce_4, out_4: Path) -> None:
    page = (out_4 / "table4.md").read_text(encoding="utf-8")
    folder = out_4 / "mcl-okd-1shot-seed0/evaluations"
    content = json.loads((folder / "evaluation-001.json").read_text())
    results = [each | {"accuracies": [0.0] * 6} for each in content["results"]]
    [(name, value)] = other.items()
    if name in content:
        content[name] = value
    else:
        results = [each | other for each in results]
    write_json(folder / "evaluation-002.json", content | {"results": results})
    good(reproduce_4("--out", out_4))
    assert (out_4 / "table4.md").read_text(encoding="utf-8") == page
    assert len(list(folder.glob("*.json"))) == 2


def test_protocols_are_those_that_the_sources_give() -> None:
    assert evaluation_session.PROTOCOLS == {"paper-text": (600, 15), "baseline-repo": (2000, 30)}


# The page by itself, of results made by hand.


def found(seed: int, networks: tuple[str, ...] = ("deployed",), size: int = 50, **content: Any) -> Found:
    generator = torch.Generator().manual_seed(seed)
    results = {name: Result((torch.rand(size, generator=generator) < 0.7).double()) for name in networks}
    usual = {"data": "cifar100", "classes": 3, "images": size, "image_size": 32, "class_accuracy": {}, "notes": []}
    return Found(results, usual | content, 1.5)


def report(name: str, by_cell: dict[tuple[str, str, int], Found], protocol: Protocol | None = None) -> str:
    table, made = TABLES[name], []
    for row, column, seed in by_cell:
        method = column.partition(" ")[0] if table.task == "classify" else row
        config = resolve("paper-code" if table.task == "classify" else "paper", {"method": method, "seed": seed})
        made.append(Cell(row, column, seed, config, Path(f"{row}-{column}-{seed}")))
    return Report(table, made, list(by_cell.values()), protocol).text()


def errors_of(by_cell: dict[tuple[str, str, int], Found], row: str, column: str, network: str) -> list[np.ndarray]:
    chosen = [each for (r, c, _), each in by_cell.items() if (r, c) == (row, column)]
    return [1 - each.networks[network].accuracies.numpy() for each in chosen]


def test_the_best_rival_is_found_by_our_own_figures() -> None:
    rates = {"baseline": 0.9, "dml": 0.3, "cl-ilr": 0.5, "one": 0.7, "okddip": 0.4, "mcl-okd": 0.6}
    by_cell = {}
    for seed in (0, 1, 2):
        for method, rate in rates.items():  # the paper's best rival on this network is DML
            values = torch.zeros(100)
            values[torch.randperm(100, generator=torch.Generator().manual_seed(seed))[: int(100 * rate) + seed]] = 1
            by_cell["resnet32", method, seed] = Found({"deployed": Result(values.double())}, found(0).content, 1)
    page = report("table1", by_cell)
    [line] = [line for line in page.splitlines() if "best rival" in line]
    assert line.startswith("* ResNet-32: MCL-OKD minus ONE, the best rival by these very figures: ")
    ours, theirs = (errors_of(by_cell, "resnet32", method, "deployed") for method in ("mcl-okd", "one"))
    same(line.partition("figures: ")[2], difference(ours, theirs))
    same(line.partition("figures: ")[2][:6], [10.0])  # of errors: ours has ten more in a hundred
    figures, differences = pages(page)
    assert column_of(figures, "ResNet-32, paper, on cifar100")["DML"] == "24.92 (0.12)"
    same(column_of(figures, "ResNet-32, here")["ONE"], figure(theirs))
    assert list(column_of(differences, "ResNet-32")) == ["DML", "CL-ILR", "ONE", "OKDDip", "MCL-OKD"]


def test_one_seed_has_no_deviation_and_a_cell_that_is_not_there_a_dash() -> None:
    by_cell = {
        ("resnet32", "baseline", 0): found(1), ("vgg16", "baseline", 0): found(2), ("vgg16", "mcl-okd", 0): found(3),
    }  # fmt: skip
    figures, differences = pages(report("table1", by_cell))
    here = column_of(figures, "ResNet-32, here")
    assert here["MCL-OKD"] == column_of(differences, "ResNet-32")["MCL-OKD"] == "-"
    same(here["Baseline"], figure(errors_of(by_cell, "resnet32", "baseline", "deployed")))
    assert "(" not in here["Baseline"]
    assert column_of(figures, "ResNet-32, paper, on cifar100")["MCL-OKD"] == "24.52 (0.26)"


def test_without_a_baseline_nothing_is_subtracted() -> None:
    page = report("table1", {("resnet32", "mcl-okd", 0): found(1)})
    assert len(list(pages(page))) == 1
    assert "Minus" not in page


def test_a_network_and_its_ensemble_are_two_lines_of_one_run() -> None:
    both = ("deployed", "ensemble")
    by_cell = {("resnet34", "baseline", 0): found(1), ("resnet34", "mcl-okd ensemble", 0): found(2, both)}
    figures, differences = pages(report("table2", by_cell))
    assert column_of(figures, "ResNet-34, paper, on imagenet") == {
        "Baseline": "25.43", "MCL-OKD": "24.64", "MCL-OKD, ensemble": "23.26",
    }  # fmt: skip
    base = errors_of(by_cell, "resnet34", "baseline", "deployed")
    for label, network in (("MCL-OKD", "deployed"), ("MCL-OKD, ensemble", "ensemble")):
        values = errors_of(by_cell, "resnet34", "mcl-okd ensemble", network)
        same(column_of(figures, "ResNet-34, here")[label], figure(values))
        same(column_of(differences, "ResNet-34")[label], difference(values, base))


def test_the_published_ensemble_of_cl_ilr_stands_beside_that_of_all_peers() -> None:
    by_cell = {
        ("vgg16", "cl-ilr", 0): found(1, ("deployed", "ensemble", "ensemble as published")),
        ("vgg16", "mcl-okd", 0): found(2, ("deployed", "ensemble")),
    }
    [figures] = pages(report("table3", by_cell))
    here, paper = (column_of(figures, f"VGG-16, {kind}") for kind in ("here", "paper, on cifar100"))
    published = "CL-ILR, last peer left out as published"
    assert list(here) == ["CL-ILR", published, "MCL-OKD"]
    same(here["CL-ILR"], figure(errors_of(by_cell, "vgg16", "cl-ilr", "ensemble")))
    same(here[published], figure(errors_of(by_cell, "vgg16", "cl-ilr", "ensemble as published")))
    assert paper == {"CL-ILR": "-", published: "22.96", "MCL-OKD": "22.36"}


def test_only_the_papers_own_data_are_taken_for_it() -> None:
    names = [name for split in ("train", "val", "test") for name in split_list("cifar_fs", split)]
    own = {"data": "cifar100", "class_accuracy": dict.fromkeys(names, 1.0), "images": 10_000, "classes": 100}
    assert is_papers_data(own, "cifar100")
    assert not is_papers_data(own | {"images": 9_999}, "cifar100")
    assert not is_papers_data(own | {"data": "pictures"}, "cifar100")
    assert not is_papers_data(own | {"class_accuracy": dict.fromkeys(names[1:], 1.0)}, "cifar100")
    assert is_papers_data({"data": "imagenet", "classes": 1000, "images": 50_000}, "imagenet")
    assert not is_papers_data({"data": "imagenet", "classes": 100, "images": 5_000}, "imagenet")
    sentence = "This is not the data of the paper's table"
    assert sentence not in report("table1", {("vgg16", "mcl-okd", 0): found(1, **own)})
    assert sentence in report("table1", {("vgg16", "mcl-okd", 0): found(1)})
    mixed = {("vgg16", "baseline", 0): found(1, **own), ("vgg16", "mcl-okd", 0): found(1)}
    assert sentence in report("table1", mixed)


# Looking before leaping.

GOLDEN = {"cl_ilr": "cl-ilr", "mcl_okd": "mcl-okd"}
# What the reference counts too and is the objective's here: ONE's gate of four with its batch norm, OKDDip's two maps.
NOT_OF_PEERS = {"one": (32 + 1) * 4 + 2 * 4, "okddip": 2 * 64 * 8}


@pytest.fixture
def measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are timed in this process, and only one of them."""

    def here(config: Any) -> estimate.Estimate:
        answer = estimate.measure(config)
        if isinstance(answer, str):
            raise UserError(answer)
        return answer

    monkeypatch.setattr(reproduce_session, "estimate", here)
    monkeypatch.setattr(estimate, "WARM_UP", 0)
    monkeypatch.setattr(estimate, "TIMED", 1)
    monkeypatch.setattr(estimate, "SECONDS", 0)


def listed(answer: Answer) -> dict[str, list[str]]:
    """The table of a dry run by run: state, parameters, multiply-adds, minutes, memory."""
    lines = [line.split() for line in answer.out.splitlines() if re.match(r" +\S+-seed\d ", line)]
    return {name: [" ".join(rest[:-4]), *rest[-4:]] for name, *rest in lines}


@pytest.mark.usefixtures("measured_here")
def test_a_dry_run_counts_what_the_reference_counts_and_trains_nothing(
    cli, commands: list[list[str]], tmp_path: Path
) -> None:
    reference = Path(__file__).parents[1] / "golden/open.json"
    golden = json.loads(reference.read_text(encoding="utf-8"))["cases"]["counts"]["resnet32"]
    hundred = class_folders(tmp_path / "hundred", side=32, **{f"class{i:02}": 2 for i in range(100)})
    small = ("--set", "image_size=32", "--set", "batch=4", "--set", "val_share=0", "--out", tmp_path / "out")
    answer = cli("reproduce", "table1", "--rows", "resnet32", "--data", hundred, *small, "--jobs", 2, "--dry-run")
    good(answer, "18 runs, 2 at a time")
    runs = listed(answer)
    assert set(runs) == {f"resnet32-{GOLDEN.get(name, name)}-seed0" for name in golden}
    for name, counts in golden.items():
        state, parameters, multiply_adds, minutes, memory = runs[f"resnet32-{GOLDEN.get(name, name)}-seed0"]
        assert (state, parameters) == ("to do", f"{counts['params'] - NOT_OF_PEERS.get(name, 0):,}")
        assert multiply_adds == f"{counts['multi_adds_exact_one_image'] / 1e6:,.1f}"
        assert float(minutes.replace(",", "")) > 0
        assert int(memory.replace(",", "")) > 50
    assert commands == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("measured_here")
def test_a_dry_run_needs_no_teacher_and_knows_what_is_done(cli, episodes: Path, reproduce_4, out_4: Path) -> None:
    shutil.rmtree(out_4 / "baseline-1shot-seed0")
    before = tree(out_4)
    answer = reproduce_4("--columns", "1-shot", "--out", out_4, "--dry-run")
    good(answer, "6 runs, 1 at a time")
    assert {name: row[0] for name, row in listed(answer).items()} == {
        "baseline-1shot-seed0": "to do", "rkd-d-1shot-seed0": "done", "mcl-okd-1shot-seed0": "done",
    }  # fmt: skip
    assert tree(out_4) == before
    bad(reproduce_4("--set", "way=9", "--out", out_4.parent / "new", "--dry-run"), "training episodes", "there are 3")


# As a shell sees it: processes of their own, and Ctrl-C.


def test_cells_in_processes_of_their_own_are_stopped_and_go_on(pictures: Path, tmp_path: Path) -> None:
    arguments = ["reproduce", "ablation", "--rows", "resnet32", "--columns", "baseline"]
    arguments += ["--data", str(pictures), "--epochs", "15", "--seeds", "1", "--set", "image_size=16", "--out", "out"]
    command = [sys.executable, "-m", "fewshot_mcl", *arguments]
    last = tmp_path / "out/resnet32-baseline-seed0/checkpoints/last.json"
    with subprocess.Popen(
        [*command, "--columns", "mcl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + 120
        while not last.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=120)
    said = [line for line in err.splitlines() if not line.startswith("training runs: ")]  # how far it was
    assert (process.returncode, said) == (130, ["interrupted."])
    assert not (tmp_path / "out/resnet32-mcl-seed0").exists()
    assert "is safe. Continue with: " in (tmp_path / "out/resnet32-baseline-seed0.log").read_text(encoding="utf-8")

    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("1 runs, 0 of them done already\nresnet32-baseline-seed0: done; 0 runs left\n")
    assert str(Path("out/ablation.md")) in again.stdout.splitlines()[-1]
    noted = (tmp_path / "out/resnet32-baseline-seed0/command.txt").read_text().splitlines()
    assert noted[1] == "fewshot-mcl classify --out out/resnet32-baseline-seed0 --resume"


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table5"], ["unknown table 'table5'", "did you mean 'table", "ablation"]),
        ([], ["table", "reproduce --help"]),
        (["table1", "--rows", "resnet33"], ["unknown row 'resnet33'", "did you mean 'resnet32'", "vgg16"]),
        (["table1", "--columns", "mcl-kod"], ["unknown column 'mcl-kod'", "did you mean 'mcl-okd'"]),
        (["table4", "--rows", "rkd"], ["unknown row 'rkd'", "did you mean 'rkd-d"]),
        (["table4", "--columns", "2-shot"], ["unknown column '2-shot'", "5-shot"]),
        (["table4", "--rows", "rkd-d"], ["learns from the baseline", "--rows baseline"]),
        (["table4", "--protocol", "paper"], ["unknown protocol 'paper'", "did you mean 'paper-text'", "baseline-repo"]),
        (["table4", "--epochs", "2"], ["--epochs means nothing for table4", "--episodes"]),
        (["table1", "--episodes", "2"], ["--episodes means nothing for table1", "--epochs"]),
        (["ablation", "--seeds", "0"], ["--seeds 0", "at least one"]),
        (["ablation", "--jobs", "-1"], ["--jobs -1", "at least one"]),
        (["ablation", "--epochs", "0"], ["epochs = 0", "greater than or equal to 1"]),
        (["table1", "--config", "paper"], ["paper is a configuration for 'fewshot-mcl train'"]),
        (["table4", "--config", "matched"], ["matched is a configuration for 'fewshot-mcl classify'"]),
        (["table1", "--set", "way=3"], ["unknown config key 'way'"]),
        (["table4", "--set", "val_query"], ["--set val_query", "key=value"]),
        (["table1"], ["cifar100 needs the folder", "--root DIR"]),
        (
            ["table1", "--set", "objective.TT=3"],
            ["unknown option of the table's methods: objective 'TT'", "did you mean 'T'"],
        ),
    ],
    ids=lambda value: " ".join(value) if not value or value[0].startswith(("table", "ablation")) else "",
)
def test_bad_commands(arguments: list[str], words: list[str], cli, commands: list[list[str]], tmp_path: Path) -> None:
    bad(cli("reproduce", *arguments), *words)
    assert commands == []
    assert list(tmp_path.glob("here/*")) == []


def test_an_option_of_a_method_goes_to_the_cells_whose_method_has_it(tmp_path: Path) -> None:
    options = {"data": "glyphs"}
    choice = Choice(("resnet32",), (), 1, "classify", options, ("objective.beta=0.5", "objective.T=4", "lr=0.1"))
    found = {cell.config.method: cell.config for cell in cells_of(TABLES["ablation"], choice, tmp_path)}
    assert found["baseline"].objective == {}
    assert (found["mcl"].objective["beta"], "T" in found["mcl"].objective) == (0.5, False)
    assert (found["mcl-okd"].objective["beta"], found["mcl-okd"].objective["T"]) == (0.5, 4)
    assert {config.lr for config in found.values()} == {0.1}
