"""Sessions of the command line by the hundred: each a process of its own, forked from one that has imported everything.

Run as a program, this file is that process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from command_line import Answer
from trouble import Trouble, Watch

WAIT = 120  # seconds, for what takes one or two


@dataclass
class Session:
    """A process that runs `fewshot-mcl`, and where it writes what it says."""

    pid: int
    log: Path
    forge: Forge

    @property
    def out(self) -> str:
        return self.log.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self.log.with_suffix(".err").read_text()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may have ended just now
            os.kill(self.pid, number)

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait for something that it does."""
        for _ in range(WAIT * 100):
            if ready():
                return
            time.sleep(0.01)
        self.signal(signal.SIGKILL)
        raise AssertionError(f"waited in vain: {self.err}")

    def wait(self) -> Answer:
        """How it ended; a signal's number is negative."""
        return Answer(self.forge.ask({"wait": self.pid}), self.out, self.err)


class Forge:
    """The process that sessions are forked from.

    Args:
        logs: a folder for what they say.
    """

    def __init__(self, logs: Path) -> None:
        self.logs, self._count = logs, 0
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Forge:
        plain = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, env=plain)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(
        self,
        *arguments: object,
        at: Path | None = None,
        below: Path | None = None,
        trouble: Trouble | None = None,
        record: Path | None = None,
        most_bytes: int | None = None,
    ) -> Session:
        """Start a session.

        Args:
            arguments: of the command line.
            at: the working directory.
            below: the folder whose files are watched.
            trouble: that happens there.
            record: a file for every operation there, one a line.
            most_bytes: that a file may have.
        """
        self._count += 1
        log = self.logs / f"session-{self._count}"
        for suffix in (".out", ".err"):
            log.with_suffix(suffix).touch()
        request = {
            "argv": ["fewshot-mcl", *map(str, arguments)], "at": str(at or self.logs), "log": str(log),
            "below": below and str(below.absolute()),
            "trouble": trouble and asdict(trouble), "record": record and str(record), "most_bytes": most_bytes,
        }  # fmt: skip
        return Session(self.ask(request), log, self)

    def run(self, *arguments: object, **how: Any) -> Answer:
        """A session from its start to its end."""
        return self.start(*arguments, **how).wait()


def kept(run: Path) -> dict[str, bytes]:
    """What must not depend on how often a run was stopped: metrics, tensors of the checkpoints and of the deployed network."""
    files = [run / "metrics.csv", run / "model.safetensors"]
    for name in ("last", "best"):
        files.append(run / "checkpoints" / json.loads((run / f"checkpoints/{name}.json").read_text())["file"])
    return {path.name: path.read_bytes() for path in files}


def serve() -> None:
    """Fork a session for each line of standard input, or wait for one."""
    import torch
    import torch._dynamo  # which the first optimizer of a process imports

    from fewshot_mcl import progress
    from fewshot_mcl.training import episodic

    for name in ("training.session", "evaluation.session", "evaluation.class_session"):  # for those that are forked
        importlib.import_module(f"fewshot_mcl.{name}")

    torch.set_num_threads(1)
    episodic.FINAL_EPISODES = 8  # of runs as small as these
    progress._Late.AFTER = 600.0  # as in `tests/conftest.py`
    running = set()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            running.discard(request["wait"])
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if not pid:
            os._exit(_session(request))
        running.add(pid)
        print(pid, flush=True)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _session(request: dict[str, Any]) -> int:
    """The command line, in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job of a shell ignores
    import resource

    from fewshot_mcl import cli

    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['log']}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["at"])
    sys.argv = request["argv"]
    if request["most_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["most_bytes"], resource.RLIM_INFINITY))
    if request["below"]:
        trouble = Trouble(**request["trouble"]) if request["trouble"] else None
        record = Path(request["record"]) if request["record"] else None
        Watch(Path(request["below"]), trouble, record).begin()
    code = 1
    try:
        cli.main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    serve()
