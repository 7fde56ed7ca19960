"""Hundreds of seeded SIGKILLs of small runs, at any instant and inside saving; every run is resumed to its end and compared.

A chain is one run that is killed again and again. After each kill its last checkpoint must be at most an interval old and
resumable; a run that has none yet begins again. In the end metrics, checkpoints and the deployed
network must be, byte for byte, those of a run that never stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from command_line import TINY, TINY_CLASSIFY, Answer, class_folders, split_folders
from forked import Forge, kept
from trouble import Trouble

NEGATIVES = ["--set", "objective.negatives=other-class", "--set", "objective.num_negatives=8"]
RUNS = {  # arguments, unit, steps between two checkpoints at most
    "train": ([*TINY, *NEGATIVES, "--episodes", "8", "--set", "val_every=2"], "episode", 2),
    "classify": ([*TINY_CLASSIFY, *NEGATIVES, "--set", "save_every=2"], "step", 2),
}
MOST_KILLS = 6  # of one run
SETUP = {"config.toml", "environment.json", "data.json", "checkpoints", "command.txt"}  # written before the first step


@dataclass
class Whole:
    """A run that never stopped.

    Attributes:
        begin: the command that makes such a run.
        interval: steps between two checkpoints, at most.
        steps: in all.
        seconds: that it took.
        kept: what is compared.
        instants: (operation, kind of file) -> how many there are.
    """

    begin: list[str]
    unit: str
    interval: int
    steps: int
    seconds: float
    kept: dict[str, bytes]
    instants: Counter[tuple[str, str]]


def kind(name: str) -> str:
    """Of a file: the number of a checkpoint does not matter."""
    return re.sub(r"-\d{8}\.", "-N.", name)


def make_whole(forge: Forge, command: str, data: Path, folder: Path) -> Whole:
    arguments, unit, interval = RUNS[command]
    begin = [command, "--data", str(data), *arguments]
    out, record, start = folder / command, folder / f"{command}.txt", time.monotonic()
    answer = forge.run(*begin, "--out", out, below=out, record=record)
    assert answer.code == 0, answer
    seconds = time.monotonic() - start
    lines = (line.partition(" ") for line in record.read_text().splitlines())
    instants = Counter((operation, kind(name)) for operation, _, name in lines if name != command)
    return Whole(begin, unit, interval, saved_steps(out, unit), seconds, kept(out), instants)


def saved_steps(out: Path, unit: str) -> int:
    """Of the last checkpoint."""
    return int(json.loads((out / "checkpoints/last.json").read_text())[unit])


class Campaign:
    """Chains of kills until there are enough of them."""

    def __init__(self, forge: Forge, folder: Path, seed: int) -> None:
        self.forge, self.folder, self.random = forge, folder, random.Random(seed)
        self.by_instant: Counter[tuple[str, str]] = Counter()
        self.figures: Counter[str] = Counter()
        self.violations: list[str] = []
        self.worst = 0  # steps lost by a kill

    def session(self, whole: Whole, arguments: list[str], out: Path, left: float) -> Answer:
        """One session that is killed, unless it is done before; `left` is the share of the run that is still to be done."""
        if self.random.random() < 0.3:
            session = self.forge.start(*arguments)
            timer = threading.Timer(self.random.uniform(0, whole.seconds * left), session.signal, (9,))
            timer.start()
            answer, instant = session.wait(), ("any instant", "")
            timer.cancel()
        else:
            files = SETUP if left == 1 and self.random.random() < 0.1 else {file for _, file in whole.instants} - SETUP
            instant = self.random.choice([each for each in sorted(whole.instants) if each[1] in files])
            nth = self.random.randint(1, max(1, int(whole.instants[instant] * left)))
            file = re.escape(instant[1]).replace(r"\-N\.", r"-\d{8}\.")
            answer = self.forge.run(*arguments, below=out, trouble=Trouble("SIGKILL", instant[0], file, nth))
        if answer.code == -9:
            self.by_instant[instant] += 1
        return answer

    def chain(self, command: str, whole: Whole) -> None:
        """One run, killed up to `MOST_KILLS` times and then left to end."""
        self.figures["runs"] += 1
        out = self.folder / f"run-{self.figures['runs']}"
        arguments, resume = [*whole.begin, "--out", str(out)], [command, "--out", str(out), "--resume"]
        left = 1.0
        for _ in range(self.random.randint(1, MOST_KILLS)):
            answer = self.session(whole, arguments, out, left)
            if answer.code == -9 and not (out / "checkpoints/last.json").exists():
                self.unsaved(whole, command, out)
                return
            if answer.code != -9:
                self.check(answer, out)
                break
            arguments, left = resume, max(0.1, 1 - self.lost(whole, out))
        self.check(self.forge.run(*resume), out)
        self.compare(whole, out)
        shutil.rmtree(out)

    def check(self, answer: Answer, out: Path) -> None:
        """A session that was not killed has done its work, and cleaned up after those that were."""
        if answer.code:
            self.violations.append(f"{out.name} does not go on: {answer.err}")
        if left := list(out.rglob("*.partial")):
            self.violations.append(f"{out.name} has {left[0].name} left")

    def unsaved(self, whole: Whole, command: str, out: Path) -> None:
        """A run without a checkpoint begins again; a directory that was not made to the end is none."""
        self.figures["killed before the first checkpoint"] += 1
        answer = self.forge.run(command, "--out", out, "--resume")
        if (out / "config.toml").exists():
            self.check(answer, out)
            if not answer.code:
                self.compare(whole, out)
        elif answer.code != 2 or not any(words in answer.err for words in ("is not a run directory", "does not exist")):
            self.violations.append(f"{out.name} was not made to the end, and: {answer}")
        shutil.rmtree(out, ignore_errors=True)

    def lost(self, whole: Whole, out: Path) -> float:
        """Look at what a kill left; the share of the run that is saved."""
        saved = saved_steps(out, whole.unit)
        rows = (out / "metrics.csv").read_text().splitlines(keepends=True)[1:]
        done = max([saved, *(int(row.partition(",")[0]) for row in rows if row.endswith("\n"))])
        self.worst = max(self.worst, done - saved)
        if done - saved > whole.interval:
            self.violations.append(f"{out.name}: {whole.unit} {done} was done, {saved} is saved")
        return saved / whole.steps

    def compare(self, whole: Whole, out: Path) -> None:
        self.figures["compared"] += 1
        found = kept(out)
        if different := [name for name in whole.kept if found.get(name) != whole.kept[name]]:
            self.violations.append(f"{out.name} differs in {different}")


def report(campaign: Campaign, arguments: argparse.Namespace, minutes: float) -> str:
    """What was done and found, as Markdown."""
    figures, kills = campaign.figures, campaign.by_instant.total()
    rows = [
        ("kills", kills),
        ("of them inside an operation on a file", kills - campaign.by_instant["any instant", ""]),
        ("of them at any instant", campaign.by_instant["any instant", ""]),
        ("kinds of instants inside saving that were hit", len(campaign.by_instant) - 1),
        ("runs", figures["runs"]),
        (
            "killed before the first checkpoint: begun again, or no run yet",
            figures["killed before the first checkpoint"],
        ),
        ("resumed to the end and compared", figures["compared"]),
        ("most steps lost by a kill (2 steps between checkpoints)", campaign.worst),
        ("violations", len(campaign.violations)),
    ]
    lines = [
        "# Killed at any instant",
        "",
        f"`python tests/campaigns/kill.py --kills {arguments.kills} --seed {arguments.seed}`",
    ]
    lines[-1] += f" took {minutes:.0f} minutes. {' '.join((__doc__ or '').split())}"
    lines += ["", "| what | figure |", "| --- | ---: |", *(f"| {what} | {figure} |" for what, figure in rows), ""]
    lines += ["| killed before | file | kills |", "| --- | --- | ---: |"]
    lines += [f"| {op} | {file} | {count} |" for (op, file), count in sorted(campaign.by_instant.items())]
    return "\n".join([*lines, *(f"\n* VIOLATION: {each}" for each in campaign.violations), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the file to write the table to")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, Forge(Path(name) / "sessions") as forge:
        folder = Path(name)
        data = {
            "train": split_folders(folder / "pictures", count=6),
            "classify": class_folders(folder / "classes", ant=16, bee=12, cat=8, dog=8),
        }
        campaign = Campaign(forge, folder, arguments.seed)
        wholes = {command: make_whole(forge, command, path, folder) for command, path in data.items()}
        while campaign.by_instant.total() < arguments.kills:
            command = campaign.random.choice(list(wholes))
            campaign.chain(command, wholes[command])
    text = report(campaign, arguments, (time.monotonic() - start) / 60)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    sys.exit(bool(campaign.violations))


if __name__ == "__main__":
    main()
