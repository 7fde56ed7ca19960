# ruff: noqa: E501 (tables of bytes)
"""Damage to every file of a run: each command refuses it by name, uses the checkpoint before and says so, or never read it.

    uv run --group dev python tests/campaigns/corruption.py --out benchmarks/results/corruption.md

One finished run, one that was stopped, and another of the same shape whose files are put in the place of theirs. Bytes of every file
are flipped in one bit (with --share 1 each byte of a file of up to 4096), and files are cut, exchanged, removed, and replaced by what is
no file. That a command gives the same result counts only where it did not open the file.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)  # before numpy and torch

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

import torch
from command_line import PROTOCOL, TINY, Answer, split_folders

import fewshot_mcl
from fewshot_mcl import cli
from fewshot_mcl.training import episodic
from fewshot_mcl.training.display import LineDisplay

SMALL = 4096  # bytes: of smaller files every byte is flipped
OPENED: set[str] = set()  # what the last command opened to read, unless it had written it anew
REPLACED: set[str] = set()


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename":
        REPLACED.add(str(arguments[1]))
    elif event == "open" and str(arguments[1] or "r").startswith("r") and str(arguments[0]) not in REPLACED:
        OPENED.add(str(arguments[0]))


def call(*arguments: object) -> Answer:
    """The command line in this process."""
    sys.argv = ["fewshot-mcl", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Exception as error:
            return Answer(1, out.getvalue(), f"Traceback: {type(error).__name__}: {error}")
    return Answer(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Damage:
    """One change to a run: the file or files it concerns, in words and as a deed on the copy of the run."""

    kind: str
    names: tuple[str, ...]
    do: Callable[[Path], None]


def flips(run: Path, name: str, draw: random.Random, sample: int) -> Iterator[Damage]:
    """One bit of every byte, or of a sample of them."""
    size = (run / name).stat().st_size
    for at in range(size) if size <= sample else sorted(draw.sample(range(size), sample)):
        bit = 1 << draw.randrange(8)

        def do(root: Path, at: int = at, bit: int = bit) -> None:
            data = bytearray((root / name).read_bytes())
            data[at] ^= bit
            (root / name).write_bytes(data)

        yield Damage("flip", (name,), do)


def cuts(run: Path, name: str, draw: random.Random, sample: int) -> Iterator[Damage]:
    """The file cut to the lengths of a sample, and one byte short."""
    size = (run / name).stat().st_size
    for length in {size - 1, *draw.sample(range(size), min(sample, size))} if size else ():
        yield Damage("cut", (name,), lambda root, length=length: os.truncate(root / name, length))


def exchanges(run: Path, names: list[str], other: Path) -> Iterator[Damage]:
    """Any two files exchanged, and each replaced by that of another run."""
    for i, first in enumerate(names):
        for second in names[i + 1 :]:

            def swap(root: Path, first: str = first, second: str = second) -> None:
                a, b = (root / first).read_bytes(), (root / second).read_bytes()
                (root / first).write_bytes(b)
                (root / second).write_bytes(a)

            yield Damage("exchange", (first, second), swap)
        if (other / first).exists() and (other / first).read_bytes() != (run / first).read_bytes():
            yield Damage(
                "of another run", (first,), lambda root, name=first: shutil.copy(other / name, root / name) and None
            )


def replacements(name: str) -> Iterator[Damage]:
    """Nothing, an empty file, a folder, a link to itself, zeros."""

    def put(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def do(root: Path) -> None:
            (root / name).unlink()
            make(root / name)

        return do

    for kind, make in (
        ("removed", lambda path: None), ("emptied", lambda path: path.touch()), ("a folder", lambda path: path.mkdir()),
        ("a link to itself", lambda path: path.symlink_to(path.name)), ("zeros", lambda path: path.write_bytes(bytes(2000))),
    ):  # fmt: skip
        yield Damage(kind, (name,), put(make))


@dataclass
class Bench:
    """The intact runs and what they answer."""

    work: Path
    data: Path
    finished: bool = False  # the run that is damaged just now
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def command(self, name: str, root: Path) -> tuple[object, ...]:
        """The arguments of a command on the run at `root`."""
        if name == "teacher":
            taught = ("--method", "rkd-d", "--teacher", root, "--peers", 1, "--set", "val_every=3")
            return "train", "--data", self.data, *TINY, *taught, "--out", self.work / "taught"
        if name == "resume":
            return "train", "--out", root, "--resume"
        return "evaluate", root, *PROTOCOL, "--checkpoint", "last" if "last" in name else "best", "--json"

    def answer(self, name: str, root: Path) -> tuple[Answer, object]:
        """What a command says, and the result it leads to: figures, or the SHA-256 of networks and metrics."""
        shutil.rmtree(self.work / "taught", ignore_errors=True)
        OPENED.clear()
        REPLACED.clear()
        answer = call(*self.command(name, root))
        if answer.code:
            return answer, None
        if "evaluate" in name:
            content = json.loads(answer.out)
            return answer, [
                content["checkpoint_episode"],
                [each["mean"] for each in content["results"]],
                content["fingerprint"],
            ]
        out = self.work / "taught" if name == "teacher" else root
        made = (
            [] if name == "resume" and self.finished else ["model.safetensors", "metrics.csv"]
        )  # by this very command
        figures = re.findall(r"\d+\.\d+ ± \d+\.\d+", answer.out.split("Trained in")[-1])
        return answer, [figures, *((out / each).read_bytes() for each in made)]


def judged(name: str, damage: Damage, answer: Answer, result: object, intact: object) -> str:
    """What a command made of damage, or what is wrong with that, after "!"."""
    said = answer.err + (answer.out if name != "evaluate" else "")
    if answer.code == 1 or "Traceback" in answer.err:
        return f"! {answer.err.strip()[-200:]}"
    if answer.code == 2:
        if len(answer.err.splitlines()) != 1:
            return f"! not one line: {answer.err[:300]!r}"
        return (
            "refused by name"
            if any(part in said for part in _words(damage))
            else f"! refused without its name: {said[:200]!r}"
        )
    if answer.code:
        return f"! exit code {answer.code}"
    if "the checkpoint before it is used" in answer.out and any(part in answer.out for part in _words(damage)):
        same = name != "resume" or result == intact
        return "the checkpoint before, said by name" if same else "! from the checkpoint before, another end"
    if result != intact:
        return "! another result, and not a word"
    if not opened(damage.names):
        return "the same result"
    said = "it is not needed" in answer.out and any(part in answer.out for part in _words(damage))
    return "the same result" if said else "! it was read, and nothing noticed"


def opened(names: Iterable[str]) -> list[str]:
    """Those of the files of a run that the last command opened to read."""
    return [name for name in names if any(path.endswith(f"/copy/{name}") for path in OPENED)]


def _words(damage: Damage) -> list[str]:
    """Names by which a message may call what was damaged: the file, or the manifest that belongs to it."""
    stems = [Path(name).name for name in damage.names]
    kinds = {stem.partition("-")[0] for stem in stems if stem.endswith(".safetensors")}
    return stems + [f"{kind}{which}.json" for kind in kinds for which in ("", ".previous")]


def campaign(bench: Bench, state: str, run: Path, other: Path, share: float, draw: random.Random) -> None:
    """All damage to one run, with every command that has a use for it."""
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != "run.lock")
    commands = ["evaluate", "evaluate last", "resume", *(["teacher"] if state == "finished" else [])]
    bench.finished = state == "finished"
    copy, intact, reads = bench.work / "copy", {}, {}
    for name in commands:
        shutil.copytree(run, copy)
        intact[name] = bench.answer(name, copy)[1]
        assert intact[name] is not None
        reads[name] = opened(names)
        shutil.rmtree(copy)
    cases = [*exchanges(run, names, other), *(each for name in names for each in replacements(name))]
    for name in names:
        cases += [*flips(run, name, draw, round(share * SMALL)), *cuts(run, name, draw, round(share * 60))]
    for number, damage in enumerate(cases):
        chosen = commands
        if damage.kind in ("flip", "cut"):  # of which there are many: one of the commands that read the file
            readers = [name for name in commands if damage.names[0] in reads[name]] or commands
            chosen = [readers[number % len(readers)]]
        for name in chosen:
            shutil.copytree(run, copy)
            damage.do(copy)
            answer, result = bench.answer(name, copy)
            verdict = judged(name, damage, answer, result, intact[name])
            bench.counts[state, damage.kind, "violation" if verdict.startswith("!") else verdict] += 1
            if verdict.startswith("!"):
                bench.violations.append(
                    f"{state}, {damage.kind} {' '.join(Path(each).name for each in damage.names)}, {name}: {verdict[2:]}"
                )
            shutil.rmtree(copy)


@contextlib.contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """A run is asked to end as it shows the validation of that step."""
    show = LineDisplay.validation

    def validation(self: LineDisplay, number: int, *shown: object) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        show(self, number, *shown)  # type: ignore[arg-type]

    LineDisplay.validation = validation  # type: ignore[method-assign]
    try:
        yield
    finally:
        LineDisplay.validation = show  # type: ignore[method-assign]


def prepared(work: Path) -> tuple[Bench, dict[str, Path]]:
    """The runs: finished, stopped after its second episode, and one of another seed."""
    bench = Bench(work, split_folders(work / "pictures", 6))
    episodic.FINAL_EPISODES = 8
    make = ("train", "--data", bench.data, *TINY, "--deterministic", "--episodes", 4)
    assert not call(*make, "--out", work / "finished").code
    assert not call(*make, "--seed", 1, "--out", work / "other").code
    with stopped_after(2):
        assert call(*make, "--out", work / "stopped").code == 128 + signal.SIGTERM
    return bench, {name: work / name for name in ("finished", "stopped", "other")}


def page(bench: Bench, seconds: float, seed: int, share: float) -> str:
    """The table."""
    verdicts = ["refused by name", "the checkpoint before, said by name", "the same result", "violation"]
    rows = [
        f"| {state} | {kind} | " + " | ".join(f"{bench.counts[state, kind, verdict]:,}" for verdict in verdicts) + " |"
        for state, kind in dict.fromkeys((state, kind) for state, kind, _ in bench.counts)
    ]
    sums = [sum(n for (_, _, found), n in bench.counts.items() if found == verdict) for verdict in verdicts]
    kinds = Counter(re.sub(r"'[^']*'|\S*/\S*", "…", each)[:150] for each in bench.violations)
    bad = [f"* {count} times: `{each!a}`" for each, count in kinds.most_common(40)]
    return "\n".join([
        "# Damage to the files of a run", "",
        f"fewshot-mcl {fewshot_mcl.__version__}, torch {torch.__version__}, seed {seed}, share {share}, {sum(sums):,} cases in {seconds:.0f} s.", "",
        f"| run | damage | {' | '.join(verdicts)} |", "|---|---|--:|--:|--:|--:|", *rows,
        f"| all | | {' | '.join(f'{n:,}' for n in sums)} |", "", *(["Violations:", "", *bad] if bad else ["No violation."]), "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--share", type=float, default=0.1, help="of the bytes of a file that are flipped, up to 4096 at 1"
    )
    options = parser.parse_args()
    out, begun = options.out and options.out.absolute(), time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as temporary:
        os.chdir(temporary)
        sys.addaudithook(_note)
        bench, runs = prepared(Path(temporary))
        for state in ("finished", "stopped"):
            campaign(bench, state, runs[state], runs["other"], options.share, random.Random(options.seed))
    text = page(bench, time.monotonic() - begun, options.seed, options.share)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return 1 if bench.violations else 0


if __name__ == "__main__":
    sys.exit(main())
