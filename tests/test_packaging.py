"""What a user installs: contents of wheel and sdist, and `pip install .` on every supported Python that this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CARRIED = ["splits/mini_imagenet_train.txt", "splits/cub_feat_test.txt", "configs/default.toml", "configs/paper.toml"]

pytestmark = pytest.mark.slow


def interpreter(version: str) -> str | None:
    """A CPython of that version: among pyenv's (whose commands on the path may be empty shims), or on the path."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(pyenv.glob(f"{version}.*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{version}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(["uv", "build", "--out-dir", str(out), str(ROOT)], check=True)
    return out


def test_wheel_and_sdist_carry_splits_configs_and_the_embedded_data(built: Path) -> None:
    wheel = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        sdist = [name.partition("/")[2] for name in archive.getnames()]
    assert {f"fewshot_mcl/{name}" for name in CARRIED} <= set(wheel)
    assert {*CARRIED, "tools/build_glyphs.py", "pyproject.toml"} <= set(sdist)
    for names in (wheel, sdist):
        for name in (
            "data/glyphs.npz",
            "models/glyphs/model.safetensors",
            "models/glyphs/model.json",
            "models/MODEL_CARD.md",
        ):
            assert f"fewshot_mcl/{name}" in names
    assert not [name for name in wheel if name.startswith("tests")]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_pip_install_gives_the_same_command(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no CPython {version} on this machine")
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run(python, "-m", "venv", "venv")
    run("venv/bin/pip", "install", ROOT)
    packages = run("venv/bin/pip", "list").lower()
    assert "learn2learn" not in packages
    assert "torchvision" not in packages
    command = tmp_path / "venv/bin/fewshot-mcl"
    assert run(command, "--version").startswith("fewshot-mcl ")
    trained = run(command, "train", "--episodes", "3", "--set", "val_episodes=5", "--out", "a run")
    assert "fewshot-mcl evaluate" in trained
    assert "± " in run(command, "evaluate", "a run", "--episodes", "20")
    assert "mini-imagenet" in (run(command, "--help") + run(command, "train", "--help"))
    assert "site-packages" in run("venv/bin/python", "-c", "import fewshot_mcl; print(fewshot_mcl.__file__)")
