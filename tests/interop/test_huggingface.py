"""Against the real huggingface-hub: what is saved comes back, and what would be sent is looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finished_runs import CLASSES, images_of
from huggingface_hub import HfApi, ModelCard

from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.evaluation.restore import load_deployed
from fewshot_mcl.interop.huggingface import FILES, DeployedPeer


@pytest.mark.parametrize(("backbone", "task"), [("conv4", "few-shot"), ("resnet32", "classify")])
def test_what_is_saved_comes_back(finished, tmp_path, backbone: str, task: str) -> None:
    run = finished(backbone, task)
    DeployedPeer.of_run(run).save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted(FILES)
    again, (network, card) = DeployedPeer.from_pretrained(tmp_path / "saved"), load_deployed(run)
    assert not again.training
    images = images_of(4)
    ready = normalise(images, torch.tensor(card["mean"]), torch.tensor(card["std"]))
    with torch.no_grad():
        torch.testing.assert_close(again.features(images), network.features(ready), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again(images), network(ready), rtol=1e-5, atol=1e-5)
        assert torch.equal(again(images), DeployedPeer.of_run(run)(images))
    again.save_pretrained(tmp_path / "twice")
    for name in FILES:
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["classes"] == CLASSES


def test_the_card_has_figures_with_their_protocol(golden, tmp_path) -> None:
    entry = {"way": 3, "shot": 1, "query": 2, "episodes": 5, "seed": 7, "mean": 0.625, "ci95": 0.125, "split": "test"}
    others = [{**entry, "network": "peer 0", "mean": 0.111}, {**entry, "network": "ensemble", "mean": 0.222}]
    content = {"data": "my | *data*", "images": 18, "results": [*others, {**entry, "network": "peer 1"}]}
    golden.save_evaluation(content | {"checkpoint": "best"})
    golden.save_evaluation(content | {"checkpoint": "last", "results": [{**entry, "network": "peer 1", "mean": 0.333}]})
    DeployedPeer.of_run(golden).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "fewshot-mcl"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "accuracy 81.33 ± 1.63 %, val split of pictures, 2-way 1-shot, 2 queries a class, 600 episodes" in card.text
    line = (
        r"accuracy 62.50 ± 12.50 %, test split of my \| \*data\*, 3-way 1-shot, 2 queries a class, 5 episodes, seed 7"
    )
    assert line in card.text
    assert not any(figure in card.text for figure in ("11.10", "22.20", "33.30"))
    assert "the last of 2 peers" in card.text


def test_no_section_is_empty(finished, tmp_path) -> None:
    peer = DeployedPeer.of_run(finished("conv4", "classify"))
    text = str(peer.generate_model_card())
    assert "top-1 accuracy 50.00 ± 1.00 %, val split of some \\| pictures, 90 images" in text
    assert "tells 3 classes apart" in text
    peer.card["figures"] = []
    parts = str(peer.generate_model_card()).split("\n#")
    assert not any("How well" in part for part in parts)
    assert all(part.partition("\n")[2].strip() for part in parts[1:])


def test_pushing_sends_the_folder(finished, monkeypatch) -> None:
    sent = {}

    def upload(self, *, repo_id, folder_path, **rest):
        sent[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return "the commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **rest: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert DeployedPeer.of_run(finished()).push_to_hub("someone/birds") == "the commit"
    assert set(sent) == {"someone/birds"}
    assert set(sent["someone/birds"]) == set(FILES)


@pytest.mark.parametrize("there", FILES)
def test_nothing_is_overwritten(finished, tmp_path, there: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / there).write_text("mine")
    with pytest.raises(UserError, match=f"{there} exists, and nothing is overwritten"):
        DeployedPeer.of_run(finished()).save_pretrained(tmp_path / "mine")
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]


def test_another_config_is_refused_in_a_sentence(finished, tmp_path) -> None:
    DeployedPeer.of_run(finished()).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    card = json.loads(file.read_text())
    for wrong, words in (({"backbone": "conv5"}, "unknown backbone 'conv5'"), ({"mean": None}, "describes no network")):
        file.write_text(json.dumps(card | wrong))
        with pytest.raises(UserError, match=words):
            DeployedPeer.from_pretrained(tmp_path / "saved")


def test_missing_library_says_what_to_install(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "fewshot_mcl.interop.huggingface")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface-hub.*fewshot-mcl\[hub\]"):
        import fewshot_mcl.interop.huggingface  # noqa: F401
