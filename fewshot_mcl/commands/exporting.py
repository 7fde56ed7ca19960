"""`export`."""

from pathlib import Path
from typing import Annotated

import typer

from fewshot_mcl.errors import unknown
from fewshot_mcl.options import SHOWN, option
from fewshot_mcl.screen import print_lines

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
        option(SHOWN, "The file or folder to write; nothing is overwritten.", default="in the run directory"),
    ] = None,
) -> None:
    """Hand a run to other programs: its deployed network, or its metrics."""
    form = form or "onnx"
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    from fewshot_mcl.runs import Run

    opened = Run.open(run)
    if form == "tensorboard":
        from fewshot_mcl.interop.tensorboard import write_events

        folder, rows = write_events(opened, out)
        print_lines(
            f"{rows} new rows of metrics written to {folder}", f"Look at them with: tensorboard --logdir {folder}"
        )
    elif form == "huggingface":
        from fewshot_mcl.interop.huggingface import DeployedPeer

        folder = out or run / "huggingface"
        DeployedPeer.of_run(opened).save_pretrained(folder)
        print_lines(f"written {folder}: README.md, config.json, model.safetensors")
    else:
        from fewshot_mcl.interop.exported import export as export_network

        file, beside = export_network(opened, form, out)
        print_lines(f"written {file}", f"what it takes and gives: {beside}")
