"""Teachers, and the deployed network by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from command_line import TINY, bad, split_folders

from fewshot_mcl.data import ImageOptions, open_source
from fewshot_mcl.evaluation import embed
from fewshot_mcl.evaluation.restore import load_deployed, load_peers
from fewshot_mcl.runs import Run


def test_the_deployed_network_computes_what_the_last_peer_computes(run: Path, data: Path) -> None:
    r = Run.open(run)
    network, card = load_deployed(r)
    store = open_source(str(data)).load("test", ImageOptions(image_size=16))
    mean, std = torch.tensor(card["mean"]), torch.tensor(card["std"])
    peers, _ = load_peers(r, "best", torch.device("cpu"))
    assert torch.equal(embed(network, store, mean, std), embed(peers, store, mean, std)[-1])
    assert card["classes"] == r.data("train")["classes"]


def test_a_damaged_deployed_network_is_refused(cli, run: Path, data: Path, tmp_path: Path) -> None:
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-1])
    bad(
        cli("train", "--data", data, *TINY, "--method", "rkd-d", "--teacher", run, "--out", tmp_path / "new"),
        "model.safetensors is damaged or cut short",
    )


def test_teachers_that_do_not_fit(cli, run: Path, data: Path, tmp_path: Path) -> None:
    options = ("train", *TINY, "--method", "rkd-d", "--out", tmp_path / "new")
    bad(cli(*options, "--data", data), "--teacher RUN")
    bad(cli(*options, "--data", data, "--teacher", tmp_path / "nowhere"), "does not exist")
    bad(
        cli(*options, "--data", data, "--teacher", run, "--image-size", 20),
        "images of 16x16x3, not 20x20x3",
        "--image-size 16",
    )
    other = split_folders(tmp_path / "other", 8, train="ox pig rat", val="cat dog bee")
    bad(cli(*options, "--data", other, "--teacher", run), "would leak")
    bad(
        cli("train", "--data", data, *TINY, "--method", "okddip", "--out", tmp_path / "new"),
        "at least 3 peers",
        "--peers 3",
    )
    assert not (tmp_path / "new").exists()
