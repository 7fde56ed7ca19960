"""Disks that are full, that become read-only, and rights that are lost, as real as the machine allows.

A run writes to a disk of a few hundred kilobytes (a tmpfs, where this process may mount one), or is not allowed files beyond a
size; it must stop with one sentence that names the file and the reason, keep its last good checkpoint, and go on to the bytes of
a run that never failed once there is room. Errors of the system are put before every operation on a file, too.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from command_line import TINY, Answer, split_folders
from forked import Forge, kept
from trouble import Trouble

RUN = [*TINY, "--episodes", "6", "--set", "val_every=2"]
ROOM = "size=64m"
KILOBYTES = range(0, 8000, 400)  # left on a disk: from nothing to enough for all
REASONS = "No space left|Disk quota|Input/output error|Read-only file|Permission denied|File too large"
SENTENCE = re.compile(rf"^error: .*({REASONS})")
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EFBIG")
STEP = "fewshot_mcl.training.episodic:EpisodicTask.step"


class NoDiskError(Exception):
    """This process may mount none."""


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A disk of its own at `folder`, in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ROOM, "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        raise NoDiskError
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


class Campaign:
    """One fault after the other; figures and violations pile up."""

    def __init__(self, forge: Forge, folder: Path, seed: int) -> None:
        self.forge, self.folder, self.random = forge, folder, random.Random(seed)
        self.data = split_folders(folder / "pictures", count=6)
        self.figures: Counter[tuple[str, str]] = Counter()
        self.violations: list[str] = []
        record, whole = folder / "operations", folder / "whole"
        assert not forge.run(*self.begin(whole), below=whole, record=record).code
        lines = [line for line in record.read_text().splitlines() if not line.endswith(" whole")]
        self.whole, self.operations = kept(whole), Counter(lines)
        shutil.rmtree(whole)

    def begin(self, out: Path) -> list[str]:
        return ["train", "--data", str(self.data), *RUN, "--out", str(out)]

    def judge(self, fault: str, out: Path, answer: Answer, must: bool = False) -> bool:
        """Whether the run stopped; it must then say where and why in one sentence, and it `must` have stopped."""
        stopped, lines = answer.code != 0, answer.err.splitlines()
        if must and not stopped:
            self.violations.append(f"{fault}: not noticed")
        if stopped and not (
            answer.code == 2 and len(lines) == 1 and SENTENCE.search(lines[0]) and str(out) in lines[0]
        ):
            self.violations.append(f"{fault}: {answer.code}, {answer.err!r}")
        self.figures[fault, "stopped with a sentence" if stopped else "not in its way"] += 1
        return stopped

    def go_on(self, fault: str, out: Path) -> None:
        """With the fault mended: a run goes on, or begins again; a directory that was not made to the end is none."""
        saved, made = (out / "checkpoints/last.json").exists(), (out / "config.toml").exists()
        answer = self.forge.run("train", "--out", str(out), "--resume")
        if made:
            outcome = "resumed to the same bytes" if saved else "had no checkpoint yet, began again to the same bytes"
            self.figures[fault, outcome] += 1
            if answer.code or kept(out) != self.whole:
                self.violations.append(f"{fault}: other bytes, {answer.err!r}")
        else:
            self.figures[fault, "was no run yet, refused"] += 1
            if answer.code != 2 or not any(
                words in answer.err for words in ("is not a run directory", "does not exist")
            ):
                self.violations.append(f"{fault}: no run, and {answer.err!r}")

    def full_disks(self) -> None:
        """Another user of the disk takes all but some kilobytes in one of the first steps."""
        for number, kilobytes in enumerate(KILOBYTES):
            with disk(self.folder / f"disk-{kilobytes}") as mounted:
                out = mounted / "run"
                session = self.forge.start(
                    *self.begin(out), below=out, trouble=Trouble("hang", "call", STEP, 1 + number % 5)
                )
                session.until(lambda session=session: "hanging" in session.out)
                remount(mounted, f"size={shutil.disk_usage(mounted).used // 1024 + kilobytes}k")
                session.signal(signal.SIGUSR1)
                answer = session.wait()
                remount(mounted, ROOM)
                if self.judge("disk full", out, answer):
                    self.go_on("disk full", out)

    def read_only_disks(self) -> None:
        """Between two sessions (no system turns a disk read-only while a file on it is open for writing)."""
        for step in range(1, 7):
            with disk(self.folder / f"read-only-{step}") as mounted:
                out = mounted / "run"
                self.forge.run(*self.begin(out), below=out, trouble=Trouble("SIGTERM", "call", STEP, step))
                remount(mounted, "ro")
                self.judge("disk read-only", out, self.forge.run("train", "--out", out, "--resume"), must=True)
                remount(mounted, "rw")
                self.go_on("disk read-only", out)

    def limited_files(self) -> None:
        for most in (700, 5_000, 400_000, 800_000, 2_000_000):
            out = self.folder / f"limit-{most}"
            self.go_on_if_stopped("a limit on the size of files", out, most_bytes=most)

    def lost_rights(self) -> None:
        for step in range(1, 7):
            out = self.folder / f"denied-{step}"
            answer = self.forge.run(*self.begin(out), below=out, trouble=Trouble("denied", "call", STEP, step))
            self.judge("rights lost", out, answer, must=True)
            for folder in (out, out / "checkpoints"):
                folder.chmod(0o755)
            self.go_on("rights lost", out)

    def errors(self, count: int) -> None:
        """The system's errors, put before an operation on a file: once, or from then on for all of them."""
        for number in range(count):
            name, (line, times) = self.random.choice(ERRORS), self.random.choice(sorted(self.operations.items()))
            operation, _, file = line.partition(" ")
            lasting = self.random.random() < 0.5
            nth = self.random.randint(1, self.operations.total() if lasting else times)
            trouble = Trouble(name, "" if lasting else operation, ".*" if lasting else re.escape(file), nth, lasting)
            out = self.folder / f"error-{number}"
            self.go_on_if_stopped(
                f"{name} {'at all operations from one on' if lasting else 'once'}", out, must=True, trouble=trouble
            )

    def go_on_if_stopped(self, fault: str, out: Path, must: bool = False, **how: Any) -> None:
        if self.judge(fault, out, self.forge.run(*self.begin(out), below=out, **how), must):
            self.go_on(fault, out)
        shutil.rmtree(out, ignore_errors=True)


def report(campaign: Campaign, arguments: argparse.Namespace, minutes: float, notes: list[str]) -> str:
    """What was done and found, as Markdown."""
    outcomes = list(dict.fromkeys(outcome for _, outcome in campaign.figures))
    faults = list(dict.fromkeys(fault for fault, _ in campaign.figures))
    command = f"`python tests/campaigns/faults.py --errors {arguments.errors} --seed {arguments.seed}`"
    lines = ["# Disks that fail", "", f"{command} took {minutes:.0f} minutes. {' '.join((__doc__ or '').split())}", ""]
    lines += [f"| fault | {' | '.join(outcomes)} |", f"| --- | {' | '.join(['---:'] * len(outcomes))} |"]
    for fault in faults:
        lines.append(f"| {fault} | {' | '.join(str(campaign.figures[fault, outcome]) for outcome in outcomes)} |")
    lines += [
        "",
        f"Violations: {len(campaign.violations)}.",
        *notes,
        *(f"* {each}" for each in campaign.violations),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--errors", type=int, default=100, help="put before operations on files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the file to write the table to")
    arguments = parser.parse_args()
    start, notes = time.monotonic(), []
    with tempfile.TemporaryDirectory() as name, Forge(Path(name) / "sessions") as forge:
        campaign = Campaign(forge, Path(name), arguments.seed)
        try:
            campaign.full_disks()
            campaign.read_only_disks()
        except NoDiskError:
            notes.append("This process may mount no disk, so there was no full one and no read-only one.")
        campaign.limited_files()
        campaign.lost_rights()
        campaign.errors(arguments.errors)
    text = report(campaign, arguments, (time.monotonic() - start) / 60, notes)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    sys.exit(bool(campaign.violations))


if __name__ == "__main__":
    main()
