"""How the golden run directories were made, each by the code of its release:

    cd tests/golden && PYTHONPATH=RELEASE python make_run.py run-schema2

FOLDER/stopped was stopped in episode 3 of 4 and keeps its checkpoints of episode 2; FOLDER/finished is what remains of the
finished run where its checkpoints were deleted to save space. A configuration keeps the whole path of its data, which is right
for users and wrong for a file that is to hold on every machine: here it says "pictures", and must be read from this folder. The
name of the machine's kernel is left out for the same reason.
"""

from __future__ import annotations

import platform
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fewshot_mcl import cli
from fewshot_mcl.config import Config
from fewshot_mcl.training.episodic import EpisodicTask

CLASSES = {"train": "ant bee cat dog", "val": "elk fox gnu", "test": "hen ibis jay"}
OPTIONS = shlex.split(
    "--data pictures --image-size 16 --peers 2 --episodes 4 --way 3 --shot 1 --query 2 --seed 3 --set device=cpu "
    "--set share=last-one --set val_every=2 --set val_episodes=4 --set val_way=2 --set val_query=2 --set log_every=1 "
    "--set objective.negatives=other-class --set objective.num_negatives=8 --set objective.embedding_dim=16"
)
RESOLVED, STEP = Config.to_toml, EpisodicTask.step


def pictures(root: Path) -> None:
    """Ten classes of six pictures, each class in its own colour."""
    generator = np.random.default_rng(8)
    for split, names in CLASSES.items():
        for number, name in enumerate(names.split()):
            (root / split / name).mkdir(parents=True)
            for k in range(6):
                pixels = generator.integers(0, 232, (16, 16, 3), dtype=np.uint8)
                pixels[..., number % 3] += 24
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")


def neutral(self: Config) -> str:
    return RESOLVED(self.model_copy(update={"data": "pictures"}))


def stopping(self: EpisodicTask, number: int):
    if number == 2:
        raise KeyboardInterrupt
    return STEP(self, number)


def train(out: Path) -> None:
    sys.argv = ["fewshot-mcl", "train", *OPTIONS, "--out", str(out)]
    try:
        cli.main()
    except SystemExit as end:
        print(out, "ended with", end.code)


def main(folder: Path) -> None:
    if not Path("pictures").exists():
        pictures(Path("pictures"))
    folder.mkdir()
    Config.to_toml, platform.platform = neutral, lambda: platform.system()
    train(folder / "finished")
    for name in ("checkpoints", "run.lock"):
        path = folder / "finished" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    EpisodicTask.step = stopping
    train(folder / "stopped")
    (folder / "stopped/run.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
