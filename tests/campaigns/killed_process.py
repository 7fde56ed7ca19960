"""SIGKILL for one of several processes that train a run, at seeded moments: how long until all have ended, and what they say."""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = shlex.split(
    "train --episodes 400 --peers 2 --way 5 --shot 2 --query 3 --set val_every=10 --set val_episodes=20 --seed 3 --out run"
)
LONGEST = 25.0  # seconds after the run directory is there (every fourth time: after the start)


def workers(session: subprocess.Popen[bytes]) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(session.pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in listed.stdout.split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_one(processes: int, chance: random.Random, early: bool, at: Path) -> str:
    """A row of the table: which process, when, how long all took to end, and the last words of the others."""
    launcher = (
        f"-m torch.distributed.run --standalone --nproc-per-node {processes} --log-dir logs --redirects 3".split()
    )
    (at / "logs").mkdir()
    with subprocess.Popen(
        [sys.executable, *launcher, "-m", "fewshot_mcl", *TRAIN], cwd=at, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as session:  # fmt: skip
        while len(found := workers(session)) < processes or not (early or (at / "run/config.toml").exists()):
            time.sleep(0.05)
        number, delay = chance.randrange(processes), chance.uniform(0, LONGEST)
        time.sleep(delay)
        os.kill(found[number], signal.SIGKILL)
        start = time.monotonic()
        code = session.wait()
        seconds = time.monotonic() - start
    assert code != 0, "torchrun took it for a success"
    assert not any(map(alive, found)), "a process is left"
    errors = "".join(path.read_text() for path in sorted(at.rglob("stderr.log")))
    assert "Traceback" not in errors, errors
    said = next(
        (line for line in errors.splitlines() if line.startswith("error: ")), "nothing: torchrun ended it first"
    )
    when = f"{delay:.1f} s after {'the start' if early else 'the run was made'}"
    return f"| {processes} | {number} | {when} | {seconds:.1f} | {said.partition('This one ')[2].partition('. ')[0] or said} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    print("| processes | killed | when | seconds until all had ended | what the others said |\n|---|---|---|---|---|")
    for kill in range(asked.kills):
        with tempfile.TemporaryDirectory() as folder:
            print(kill_one(asked.processes, chance, kill % 4 == 0, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
