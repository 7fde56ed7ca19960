"""The command line: its commands, and what becomes of their errors. Commands import what they need: --help needs no torch."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fewshot_mcl import __version__
from fewshot_mcl.commands import comparing, data, exporting, looking, prediction, reporting, tables, testing, training
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import BAD_INPUT, INTERRUPTED, Interrupted, UserError
from fewshot_mcl.options import Group, Grouped
from fewshot_mcl.resources import several

app = typer.Typer(
    cls=Group,
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 120},
    help="Few-shot metric learning with peers that teach each other.",
)
data_app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at image data before training, or pack it for fast loading.",
)
app.add_typer(data_app, name="data")

COMMANDS: dict[str, Callable[..., None]] = {
    "train": training.train,
    "classify": training.classify,
    "evaluate": testing.evaluate,
    "report": reporting.report,
    "predict": prediction.predict,
    "compare": comparing.compare,
    "export": exporting.export,
    "reproduce": tables.reproduce,
    "doctor": looking.doctor,
    "list": looking.list_names,
}
DATA_COMMANDS: dict[str, Callable[..., None]] = {"check": data.check, "inspect": data.inspect, "convert": data.convert}
for group, commands in ((app, COMMANDS), (data_app, DATA_COMMANDS)):
    for name, command in commands.items():
        group.command(name, cls=Grouped)(command)

UsageError: Any = typer.BadParameter.__bases__[0]  # what every bad command line is, whichever click typer stands on


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad input, 130 interrupted, 143 asked to end."""
    # Read when torch is imported: large tensors lie in huge pages, whose first use costs a fifth (Linux, CPU).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    sys.exit(_run_together() if several() else _run())


def _run_together() -> int:
    """The same in each of the processes that torchrun has started. After an error this one leaves at once."""
    try:
        code = _run()
    except Exception:
        traceback.print_exc()
        code = 1
    if code:  # an orderly end would wait for connections to processes that have ended, or break on them
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it: no terminal is too old for a ±
    try:
        code = _call_together() if several() else _call()
        sys.stdout.flush()
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "fewshot-mcl"
        return _say(f"error: {error.format_message().rstrip('.')}. See {command} --help.", BAD_INPUT)
    except UserError as error:
        return _say(f"error: {error}", BAD_INPUT)
    except Interrupted as error:
        return _say(str(error), error.code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(f"error: {str(error.filename or 'the system')[:200]}: {error.strerror}.", BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if several() and (said := _of_others(error)):
            return _say(said, BAD_INPUT)
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _say(
            "error: not enough memory. Use a smaller --image-size, or fewer --peers, --way or --query.", BAD_INPUT
        )
    return _say("interrupted.", code) if code == INTERRUPTED else code


def _call() -> int:
    """Parse and run; of a command line that asks nothing, the help."""
    try:
        return app(standalone_mode=False, prog_name="fewshot-mcl") or 0
    except UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            raise
        print(error.format_message())
        return BAD_INPUT


def _call_together() -> int:
    """The same for one of several processes, of which the first speaks for all."""
    from fewshot_mcl import parallel

    with (
        parallel.processes(),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere if parallel.rank() else sys.stdout),
    ):
        return _call()


def _of_others(error: Exception) -> str | None:
    """What is to be said of an error of the connection to other processes."""
    from fewshot_mcl import job

    return f"error: {job.LOST}. Start the command again." if job.lost(error) else None


def _say(text: str, code: int) -> int:
    """Print one line, whatever names are in it, on standard error; once where several processes say it."""
    if several():
        from fewshot_mcl import job

        if not job.first_to_say(text):
            return code
    print(printable(text), file=sys.stderr)
    return code


def _version(asked: bool) -> None:
    if asked:
        print(f"fewshot-mcl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    return
