"""`export`."""

from pathlib import Path
from typing import Annotated

import typer

from fewshot_mcl.errors import unknown
from fewshot_mcl.options import OUTPUT, SHOWN, AsJson, Quiet, option
from fewshot_mcl.progress import waiting
from fewshot_mcl.screen import Screen, print_lines

FORMATS = ("onnx", "torch-export", "huggingface", "tensorboard")


def export(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    form: Annotated[
        str | None,
        option(
            SHOWN,
            "onnx, torch-export: the deployed network as one file. huggingface: as a folder for the hub. tensorboard: "
            "metrics as event files, also while the run trains; again, it adds what is new.",
            "--format",
            default="onnx",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(OUTPUT, "The file or folder to write; nothing is overwritten.", default="in the run directory"),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Hand a run to other programs: its deployed network, or its metrics."""
    screen, form = Screen(as_json, quiet), form or "onnx"
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    with screen.progress(), waiting(f"exporting as {form}"):
        written, line = _export(run, form, out)
    screen.answer(
        lambda: {"run": str(run), "format": form, "written": str(written)}, lambda: print_lines(f"written {written}")
    )
    screen.say(line)


def _export(run: Path, form: str, out: Path | None) -> tuple[Path, str]:
    """What was written, and a line about it."""
    from fewshot_mcl.runs import Run

    opened = Run.open(run)
    if form == "tensorboard":
        from fewshot_mcl.interop.tensorboard import write_events

        folder, rows = write_events(opened, out)
        return folder, f"{rows} new rows of metrics. Look at them with: tensorboard --logdir {folder}"
    if form == "huggingface":
        from fewshot_mcl.interop.huggingface import DeployedPeer

        folder = out or run / "huggingface"
        DeployedPeer.of_run(opened).save_pretrained(folder)
        return folder, "In it: README.md, config.json, model.safetensors"
    from fewshot_mcl.interop.exported import export as export_network

    file, beside = export_network(opened, form, out)
    return file, f"What it takes and gives: {beside}"
