"""`evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from fewshot_mcl.commands import completion
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.options import DATA, EPISODES, SHOWN, AsJson, ProtocolName, Quiet, Root, given, option
from fewshot_mcl.screen import Screen, print_classification, print_evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False, autocompletion=completion.runs)],
    episodes: Annotated[int | None, option(EPISODES, "How many.", default=600)] = None,
    way: Annotated[int | None, option(EPISODES, "Classes in an episode.", default=5)] = None,
    shot: Annotated[
        list[int] | None, option(EPISODES, "Support images of each class; may be repeated.", default="1 and 5")
    ] = None,
    query: Annotated[int | None, option(EPISODES, "Query images of each class.", default=15)] = None,
    seed: Annotated[int | None, option(EPISODES, "Of the episodes.", default=0)] = None,
    protocol: ProtocolName = None,
    split: Annotated[str, given(DATA, "test or val.", complete=completion.one_of("test", "val"))] = "test",
    data: Annotated[
        str | None,
        option(
            DATA,
            "Other data, for a cross-domain test: as for train.",
            default="the run's own",
            complete=completion.data_sets,
        ),
    ] = None,
    root: Root = None,
    checkpoint: Annotated[
        str, given(SHOWN, "best (by validation) or last.", complete=completion.one_of("best", "last"))
    ] = "best",
    peers: Annotated[bool, option(SHOWN, "Show every peer and the ensemble too.", "--peers")] = False,
    precision: Annotated[
        str,
        given(
            SHOWN,
            "float32; or bfloat16: faster, and what it changes is measured on some episodes.",
            complete=completion.one_of("float32", "bfloat16"),
        ),
    ] = "float32",
    device: Annotated[
        str, given(SHOWN, "auto, cpu, cuda, ...", complete=completion.one_of("auto", "cpu", "cuda"))
    ] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy on episodes of classes that training has not seen; or, of a run of `classify`, errors on test images."""
    screen = Screen(as_json, quiet)
    for kind, value, valid in (("split", split, ("test", "val")), ("checkpoint", checkpoint, ("best", "last"))):
        if value not in valid:
            raise unknown(kind, value, valid)
    from fewshot_mcl.runs import Run

    opened = Run.open(run)
    if opened.config.task == "classify":
        from fewshot_mcl.evaluation.class_session import evaluate_classifier

        options = {"episodes": episodes, "way": way, "shot": shot, "query": query, "seed": seed, "protocol": protocol}
        options["split"] = split if split != "test" else None
        options["precision"] = precision if precision != "float32" else None
        if given := [name for name, value in options.items() if value is not None]:
            raise UserError(
                f"{run} learned to classify, so there are no episodes and --{given[0]} means nothing: leave it out."
            )
        with screen.progress():
            content = evaluate_classifier(opened, data=data, root=root, device=device)
        screen.answer(lambda: content, lambda: print_classification(content))
        return
    from fewshot_mcl.evaluation.session import Protocol, evaluate_run, preset

    usual_episodes, usual_query = preset(protocol or "paper-text")
    asked = {
        "way": (way, 5), "query": (query, usual_query), "episodes": (episodes, usual_episodes), "seed": (seed, 0),
    }  # fmt: skip
    counts = {name: usual if value is None else value for name, (value, usual) in asked.items()}
    measured = Protocol(shots=tuple(dict.fromkeys(shot or (1, 5))), split=split, **counts)
    with screen.progress():
        content = evaluate_run(
            opened, measured, checkpoint=checkpoint, data=data, root=root, device=device, precision=precision
        )
    shown = [r for r in content["results"] if peers or r["network"] == content["deployed"]]
    lean = [{key: value for key, value in r.items() if key != "accuracies"} for r in shown]
    screen.answer(lambda: content | {"results": lean}, lambda: print_evaluation(content, shown))
