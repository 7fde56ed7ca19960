"""Runs of earlier releases load for ever: golden directories of each schema are evaluated, resumed and taught from."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fewshot_mcl.config import resolve
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.restore import load_deployed
from fewshot_mcl.evaluation.session import Protocol, evaluate_run
from fewshot_mcl.runs import Run
from fewshot_mcl.runs.files import SCHEMA, write_json
from fewshot_mcl.training import episodic
from fewshot_mcl.training.session import train

GOLDEN = Path(__file__).parent / "golden"
SCHEMAS = ["run-schema1", "run-schema2"]  # one more with every schema; none is ever taken away
PROTOCOL = Protocol(way=3, shots=(1, 2), query=3, episodes=40, seed=11)
FIGURES = {  # of both checkpoints, which are of episode 2
    "peer 0, 1-shot": 0.863889, "peer 1, 1-shot": 0.772222, "ensemble, 1-shot": 0.880556,
    "peer 0, 2-shot": 0.930556, "peer 1, 2-shot": 0.819444, "ensemble, 2-shot": 0.925,
}  # fmt: skip
NORMS = [0.6164858, 0.5721193]  # of the deployed network's features of two images
DISTANCE = 0.9978386  # a student's first loss


@pytest.fixture(params=SCHEMAS)
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the two runs of a schema; their data are where their configuration says, in this directory."""
    monkeypatch.chdir(GOLDEN)
    monkeypatch.setattr(episodic, "FINAL_EPISODES", 8)
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "runs"))


def finish(out: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        train(Run.open(out).config, out, resume=True, console=Console(file=nowhere))


def figures(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value or 0) for name, value in row.items()} for row in csv.DictReader(file)]


def test_they_evaluate_to_the_same_figures(old: Path) -> None:
    run = Run.open(old / "stopped")
    for checkpoint in ("best", "last"):
        found = evaluate_run(run, PROTOCOL, checkpoint=checkpoint, device="cpu")["results"]
        assert {f"{each['network']}, {each['shot']}-shot": round(each["mean"], 6) for each in found} == FIGURES
    assert run.notes == []
    assert (old / "stopped/evaluations/evaluation-002.json").exists()


def test_they_are_resumed_to_the_end_that_they_had(old: Path) -> None:
    finish(old / "stopped")
    found, expected = (figures(old / name / "metrics.csv") for name in ("stopped", "finished"))
    assert [row["episode"] for row in found] == [1, 2, 3, 4]
    for a, b in zip(found, expected):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)
    (network, card), (reference, _) = (load_deployed(Run.open(old / name)) for name in ("stopped", "finished"))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert card["episode"] == 2


def test_the_deployed_network_gives_the_same_features(old: Path) -> None:
    network, card = load_deployed(Run.open(old / "finished"))
    images = torch.linspace(-2, 2, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    with torch.no_grad():
        features = network(images)
    assert (card["backbone"], card["feature_dim"], len(card["classes"])) == ("conv4", 64, 4)
    assert features.norm(dim=1).tolist() == pytest.approx(NORMS, rel=1e-5)


def test_they_serve_as_teachers(old: Path, tmp_path: Path) -> None:
    settings = [
        "image_size=16",
        "episodes=1",
        "way=3",
        "query=2",
        "val_episodes=2",
        "val_way=2",
        "val_query=2",
        "peers=1",
    ]
    options = {"data": "pictures", "method": "rkd-d", "teacher": str(old / "finished")}
    config = resolve(None, options, [*settings, "share=last-one", "device=cpu"])
    with open(os.devnull, "w") as nowhere:
        train(config, tmp_path / "student", resume=False, console=Console(file=nowhere))
    [row] = figures(tmp_path / "student/metrics.csv")
    assert row["distance"] == pytest.approx(DISTANCE, rel=1e-4)


# A newer schema, in whichever file.


def _evaluate(name: str) -> Callable[[Path], object]:
    return lambda runs: evaluate_run(Run.open(runs / "stopped"), PROTOCOL, checkpoint=name, device="cpu")


READERS: dict[str, Callable[[Path], object]] = {
    "stopped/data.json": _evaluate("best"),
    "stopped/checkpoints/best.json": _evaluate("best"),
    "stopped/checkpoints/last.json": lambda runs: finish(runs / "stopped"),
    "finished/model.json": lambda runs: load_deployed(Run.open(runs / "finished")),
    "finished/environment.json": lambda runs: Run.open(runs / "finished").read_json("environment.json"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_newer_schema_is_refused(name: str, old: Path) -> None:
    content = json.loads((old / name).read_text())
    (old / name).write_text(json.dumps(content | {"schema": SCHEMA + 1}))
    with pytest.raises(UserError, match=rf"{name} was written by a newer fewshot-mcl: update this one to read it\.$"):
        READERS[name](old)


def test_every_json_file_says_its_schema(old: Path) -> None:
    _evaluate("best")(old)
    finish(old / "stopped")
    found = list(old.rglob("*.json"))
    assert len(found) == 10
    schemas = {path: json.loads(path.read_text())["schema"] for path in found}
    assert set(schemas.values()) <= set(range(1, SCHEMA + 1))
    assert schemas[old / "stopped/model.json"] == SCHEMA


def test_what_is_written_today_is_of_the_newest_golden_schema(tmp_path: Path) -> None:
    """A new schema needs a golden run of its own."""
    write_json(tmp_path / "any.json", {})
    assert SCHEMAS[-1] == f"run-schema{json.loads((tmp_path / 'any.json').read_text())['schema']}"
