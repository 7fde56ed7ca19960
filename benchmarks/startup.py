"""Seconds of processor time that commands and imports take in a fresh interpreter, with bytecode cached.

uv run --group bench python benchmarks/startup.py --out benchmarks/results/startup.md
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile

import harness

HEAVY = ("torch", "torchvision", "numpy", "scipy")
OURS = {
    "--help": "--help",
    "--version": "--version",
    "train --help": "train --help",
    "unknown option": "train --nope",
    "unknown command": "trian",
    "unknown method": "train --method mcl-okdd",
    "unknown key": "train --set nope=1",
    "wrong value": "train --way x",
    "no such run": "evaluate nowhere",
}
IMPORTS = ("fewshot_mcl", "torch", "easyfsl.methods", "learn2learn")  # easyfsl itself is an empty package


def main() -> None:
    asked = harness.arguments(__doc__ or "")
    commands = {"python -c pass": ["-c", "pass"]}
    commands |= {f"fewshot-mcl: {name}": ["-m", "fewshot_mcl", *words.split()] for name, words in OURS.items()}
    commands |= {f"import {name}": ["-c", f"import {name}"] for name in IMPORTS}
    with tempfile.TemporaryDirectory() as cache:  # one that can be written, whatever the machine says of bytecode
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        times = harness.take_turns(
            {name: lambda words=words: _run(words, environment) for name, words in commands.items()},
            asked.rounds,
            least=0,
            clock=_children,
        )
        heavy = {name: _heavy(words, environment) for name, words in commands.items() if name.startswith("fewshot")}
    bare, rows = "python -c pass", []
    for name in commands:
        slowest = max(times.seconds[name])
        rows.append([name, times.median(name), slowest, times.ratio(name, bare), heavy.get(name, "")])
    median = statistics.median(times.ratios("import easyfsl.methods", "fewshot-mcl: --help"))
    harness.report(
        "Start-up",
        [
            "Processor time (user and system) of a fresh interpreter, in seconds.",
            harness.table(["", "median", "slowest", "to python -c pass", "of torch, torchvision, numpy, scipy"], rows),
            f"Importing easyfsl.methods takes {median:.0f} times as long as `fewshot-mcl --help`.",
        ],
        asked.out,
        ["easyfsl", "learn2learn"],
    )


def _run(words: list[str], environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False)


def _children() -> float:
    """Processor seconds of all finished children."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)  # os.times() counts hundredths only
    return spent.ru_utime + spent.ru_stime


def _heavy(words: list[str], environment: dict[str, str]) -> str:
    """Which heavy packages a command imports."""
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", *words], env=environment, capture_output=True, text=True, check=False
    )
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    return ", ".join(name for name in HEAVY if name in imported) or "none"


if __name__ == "__main__":
    main()
