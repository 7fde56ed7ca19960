"""Help and version answer at once, and name what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib

import pytest

import fewshot_mcl
from fewshot_mcl import __version__
from fewshot_mcl.config import TASKS
from fewshot_mcl.keys import config_keys, option_names
from fewshot_mcl.layers import recipes
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS, options_of
from fewshot_mcl.options import CLASS_RECIPE, CLASS_RECIPES, RECIPE, RECIPES
from fewshot_mcl.resources import program

HEAVY = ("torch", "torchvision", "numpy", "scipy", "PIL")
OPTIONS = shlex.split(
    "--data --image-size --method --backbone --peers --episodes --way --shot --query --lr --seed --config --set --out --resume"
)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def about(option: str, text: str) -> str:
    """What a help text says of an option, in one line."""
    parts = re.split(r" --(?=[a-z-]+ <)", " ".join(text.split()))  # where the next option with a value begins
    return next(part for part in parts if part.startswith(f"{option} "))


def light(arguments: str, *also: str) -> subprocess.CompletedProcess[str]:
    """The answer of a process that must have imported nothing heavy, nor `also`."""
    command = [sys.executable, "-X", "importtime", "-m", "fewshot_mcl", *arguments.split()]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "fewshot_mcl.cli" in imported
    assert imported.isdisjoint({*HEAVY, *also})
    return answer


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, fewshot_mcl; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "train --help", "classify --help", "evaluate --help", "data check --help"]
)
def test_help_and_version_import_no_torch(arguments: str) -> None:
    answer = light(arguments, "pydantic")
    assert answer.returncode == 0
    assert answer.stdout


def test_version(cli) -> None:
    answer = cli("--version")
    assert (answer.code, answer.out, answer.err) == (0, f"fewshot-mcl {__version__}\n", "")


def test_nothing_asked_is_answered_with_help(cli) -> None:
    answer = cli()
    assert "train" in answer.out
    assert "evaluate" in answer.out
    assert (answer.code, answer.err) == (2, "")


def test_train_help_names_all_that_there_is(cli) -> None:
    text = cli("train", "--help").out
    for name in (*OPTIONS, *METHODS, *BACKBONES, *RECIPES, "Data", "Method", "Training", "Run"):
        assert name in text
    for name in ("data", "method", "backbone", "peers", "episodes", "way", "shot", "query", "lr", "seed"):
        assert f"[default: ({RECIPE[name]}" in about(name, text).replace("- ", "-")


def test_classify_help_names_all_that_there_is(cli) -> None:
    text = cli("classify", "--help").out
    data = ("glyphs", "cifar100", "fashion-mnist", "imagenet", "--root")
    for name in ("--epochs", "--batch", "--teacher", "--resume", *data, *METHODS, *BACKBONES, *CLASS_RECIPES):
        assert name in text
    for name in ("data", "method", "backbone", "epochs"):
        assert f"[default: ({CLASS_RECIPE[name]}" in about(name, text).replace("- ", "-")  # a line may end in a hyphen


def test_every_recipe_is_of_one_command() -> None:
    assert {*RECIPES, *CLASS_RECIPES} == set(recipes())
    assert not set(RECIPES) & set(CLASS_RECIPES)


@pytest.mark.parametrize(("recipe", "task"), [("default", "few-shot"), ("classify", "classify")])
def test_the_default_recipe_names_every_key(recipe: str, task: str) -> None:
    saved = tomllib.loads(recipes()[recipe].read_text(encoding="utf-8"))
    optional = {"root", "image_size", "aux_weight", "teacher", "out", "images_per_class", "weights"}
    assert set(TASKS[task].model_fields) - optional == set(saved) - optional


def test_evaluate_help(cli) -> None:
    text = cli("evaluate", "--help").out
    for name in ["--episodes", "--way", "--shot", "--query", "--seed", "--data", "--json", "--peers", "--checkpoint"]:
        assert name in text
    assert "[default: (600)]" in text
    assert "[default: (1 and 5)]" in text


def test_the_next_command_is_one_that_works_where_this_one_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    assert program() == "fewshot-mcl"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert program() == "uv run fewshot-mcl"


def test_public_names_are_found_in_the_package_itself() -> None:
    assert set(fewshot_mcl.__all__) <= set(dir(fewshot_mcl))
    for name in fewshot_mcl.__all__:
        assert getattr(fewshot_mcl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = fewshot_mcl.nonsense


@pytest.mark.parametrize("arguments", ["evaluate", "data check"])
def test_a_missing_value_imports_nothing_heavy(arguments: str) -> None:
    assert light(arguments).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("trian", "train"),
        ("data chekc", "check"),
        ("train --bogus", "--bogus"),
        ("train --method mcl-okdd", "mcl-okd"),
        ("reproduce table1 --set method=x --bogus", "--bogus"),
        ("classify --backbone resnet33", "resnet32"),
        ("train --set nope=1", "nope"),
        ("train --set wya=3", "'way'"),
        ("train --way x", "--way x: a whole number"),
        ("train --lr fast", "--lr fast: a number"),
        ("classify --epochs 1.5", "--epochs 1.5: a whole number"),
        ("evaluate nowhere --shot 1 --shot many", "--shot many: a whole number"),
        ("classify --method dml --set T=1", "objective.T"),
        ("evaluate nowhere", "nowhere does not exist"),
    ],
)
def test_a_wrong_name_needs_no_pydantic_either(arguments: str, named: str) -> None:
    answer = light(arguments, "pydantic")
    assert answer.returncode == 2
    assert named in answer.stderr.splitlines()[-1]


def test_help_is_given_whatever_is_wrong_beside_it(cli) -> None:
    assert cli("train", "--method", "nonsense", "--help").out == cli("train", "--help").out


def test_a_file_may_name_the_method_of_a_wrong_key(cli, tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('method = "baseline"\npeers = 1\n')
    assert "Did you mean 'objective.T'" in cli("train", "--set", "T=1").err
    assert "objective.T" not in cli("train", "--config", file, "--set", "T=1").err


@pytest.mark.parametrize("task", TASKS)
def test_keys_are_found_without_importing_them(task: str) -> None:
    assert set(config_keys(task)) | {"objective"} == set(TASKS[task].model_fields)


@pytest.mark.parametrize("method", METHODS)
def test_options_are_found_without_importing_them(method: str) -> None:
    assert set(option_names(method)) == set(options_of(method))
