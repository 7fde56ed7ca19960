"""`train` and `classify`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fewshot_mcl.commands import completion
from fewshot_mcl.commands.estimates import estimate_content, print_choice, print_estimate, tuning_table
from fewshot_mcl.errors import Interrupted, UserError
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.options import (
    CLASS_RECIPE,
    CLASS_RECIPES,
    DATA,
    METHOD,
    RECIPE,
    RECIPES,
    RUN,
    TRAINING,
    AsJson,
    BackboneName,
    Bandwidth,
    Color,
    Data,
    Deterministic,
    DryRun,
    ImageSize,
    Method,
    OnBadImage,
    Out,
    Peers,
    Quiet,
    Resize,
    Resume,
    Root,
    Seed,
    Settings,
    Teacher,
    Tune,
    WorldSize,
    option,
)
from fewshot_mcl.progress import waiting
from fewshot_mcl.resources import program
from fewshot_mcl.screen import Screen, print_classification, print_lines, training_content, training_lines

if TYPE_CHECKING:
    from fewshot_mcl.config import Config
    from fewshot_mcl.training.session import Outcome
    from fewshot_mcl.training.tune import Tuning


def train(
    data: Data = None,
    root: Root = None,
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    method: Method = None,
    teacher: Teacher = None,
    backbone: BackboneName = None,
    peers: Peers = None,
    episodes: Annotated[
        int | None, option(TRAINING, "Episodes, one optimizer step each.", default=RECIPE["episodes"])
    ] = None,
    way: Annotated[int | None, option(TRAINING, "Classes in an episode.", default=RECIPE["way"])] = None,
    shot: Annotated[int | None, option(TRAINING, "Support images of each class.", default=RECIPE["shot"])] = None,
    query: Annotated[int | None, option(TRAINING, "Query images of each class.", default=RECIPE["query"])] = None,
    lr: Annotated[float | None, option(TRAINING, "Learning rate of Adam.", default=RECIPE["lr"])] = None,
    seed: Seed = None,
    config: Annotated[
        str | None,
        option(
            RUN,
            f"A TOML file, or a recipe: {', '.join(RECIPES)}.",
            default="default; paper for mini-imagenet",
            complete=completion.one_of(*RECIPES),
        ),
    ] = None,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    tune: Tune = False,
    deterministic: Deterministic = False,
    dry_run: DryRun = False,
    world_size: WorldSize = None,
    bandwidth: Bandwidth = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train peers on episodes; the best by validation is kept. Defaults are those of the default recipe."""
    options = {
        "data": data, "root": root, "image_size": image_size, "color": color, "resize": resize,
        "on_bad_image": on_bad_image, "method": method, "teacher": teacher, "backbone": backbone, "peers": peers,
        "episodes": episodes, "way": way, "shot": shot, "query": query, "lr": lr, "seed": seed, "out": out,
        "deterministic": deterministic or None,
    }  # fmt: skip
    screen = Screen(as_json, quiet)
    processes = _processes(dry_run, world_size, bandwidth)
    if dry_run:
        _dry_run("few-shot", config, options, settings, resume, tune, screen, processes)
        return
    outcome = _train("few-shot", config, options, settings, resume, tune, screen)
    screen.answer(lambda: training_content(outcome), lambda: print_lines(*training_lines(outcome, screen)))


def classify(
    data: Annotated[
        str | None,
        option(
            DATA,
            "glyphs; cifar100, fashion-mnist, imagenet or the few-shot sets of `train` (with --root); or the path of a folder.",
            default=CLASS_RECIPE["data"],
            complete=completion.data_sets,
        ),
    ] = None,
    root: Root = None,
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    method: Method = None,
    teacher: Teacher = None,
    backbone: Annotated[
        str | None,
        option(
            METHOD,
            ", ".join(BACKBONES),
            default=f"{CLASS_RECIPE['backbone']}; by recipe",
            complete=completion.one_of(*BACKBONES),
        ),
    ] = None,
    peers: Peers = None,
    epochs: Annotated[
        int | None,
        option(TRAINING, "Times through the training images.", default=f"{CLASS_RECIPE['epochs']}; by recipe"),
    ] = None,
    batch: Annotated[int | None, option(TRAINING, "Images a step.", default="by recipe")] = None,
    lr: Annotated[float | None, option(TRAINING, "Highest learning rate of SGD.", default="by recipe")] = None,
    seed: Seed = None,
    config: Annotated[
        str | None,
        option(
            RUN,
            f"A TOML file, or a recipe: {', '.join(CLASS_RECIPES)}.",
            default="classify; paper-code for cifar100, fashion-mnist, imagenet",
            complete=completion.one_of(*CLASS_RECIPES),
        ),
    ] = None,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    tune: Tune = False,
    deterministic: Deterministic = False,
    dry_run: DryRun = False,
    world_size: WorldSize = None,
    bandwidth: Bandwidth = None,
    device: Annotated[
        str | None,
        option(RUN, "auto, cpu, cuda, ...", default="auto", complete=completion.one_of("auto", "cpu", "cuda")),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train peers to classify images, then test the networks on images of the same classes they have not seen."""
    options = {
        "data": data, "root": root, "image_size": image_size, "color": color, "resize": resize,
        "on_bad_image": on_bad_image, "method": method, "teacher": teacher, "backbone": backbone, "peers": peers,
        "epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "out": out, "device": device,
        "deterministic": deterministic or None,
    }  # fmt: skip
    screen = Screen(as_json, quiet)
    processes = _processes(dry_run, world_size, bandwidth)
    if dry_run:
        _dry_run("classify", config, options, settings, resume, tune, screen, processes)
        return
    outcome = _train("classify", config, options, settings, resume, tune, screen)
    if not as_json:
        print_lines(*training_lines(outcome, screen))
    content = _tested(outcome, screen)
    screen.answer(
        lambda: content | {"seconds": outcome.seconds, "validation": training_content(outcome)["results"]},
        lambda: print_classification(content),
    )


def _tested(outcome: "Outcome", screen: Screen) -> dict[str, Any]:
    """What the networks of a run give on test images."""
    from fewshot_mcl.evaluation.class_session import evaluate_classifier

    try:
        with screen.progress():
            return evaluate_classifier(outcome.run, device=outcome.run.config.device)
    except KeyboardInterrupt:
        again = f"{program()} evaluate {shlex.quote(str(outcome.run.path))}"
        raise Interrupted(f"the run is trained and saved, and not tested. Test it with: {again}") from None


def _dry_run(
    task: str,
    config: str | None,
    options: dict[str, Any],
    settings: list[str] | None,
    resume: bool,
    tune: bool,
    screen: Screen,
    processes: dict[str, Any],
) -> None:
    """Say what the run that these options describe would take."""
    if resume:
        raise UserError("--dry-run is of a new run: leave --resume out.")
    from fewshot_mcl.config import resolve
    from fewshot_mcl.training.estimate import estimate

    resolved = resolve(config, _as_text(options), settings, task=task)
    if tune:
        resolved, _ = _tuned(resolved, screen)
    with screen.progress(), waiting("timing some steps, about ten seconds"):
        found = estimate(resolved, **processes)
    screen.answer(lambda: estimate_content(resolved, found), lambda: print_estimate(resolved, found))


def _processes(dry_run: bool, world_size: int | None, bandwidth: float | None) -> dict[str, Any]:
    """What a dry run is to say of several processes, for `estimate`."""
    if world_size is None and bandwidth is None:
        return {}
    if not dry_run:
        raise UserError(
            "--world-size and --bandwidth are of --dry-run. To train with several processes: torchrun --nproc-per-node N -m "
            "fewshot_mcl ..."
        )
    if world_size is None or world_size < 2:
        raise UserError("--world-size is a number of processes, 2 or more: give it with --dry-run.")
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise UserError(f"--bandwidth {bandwidth:g}: a link takes more than 0 GB/s, for example --bandwidth 10.")
    return {"processes": world_size} | ({} if bandwidth is None else {"bandwidth": bandwidth})


def _tuned(config: "Config", screen: Screen) -> "tuple[Config, Tuning]":
    """The fastest variant of a configuration, with what was measured on the way."""
    from fewshot_mcl.training.tune import tune

    config, tuning = tune(config, tuning_table(screen.say))
    print_choice(tuning, screen.say)
    return config, tuning


def _as_text(options: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def _train(
    task: str,
    config: str | None,
    options: dict[str, Any],
    settings: list[str] | None,
    resume: bool,
    tune: bool,
    screen: Screen,
) -> "Outcome":
    """The run that these options describe, trained or resumed."""
    from fewshot_mcl import job
    from fewshot_mcl.config import resolve
    from fewshot_mcl.runs import Run
    from fewshot_mcl.training import session

    if begun := job.begun():  # by this command, which torchrun has started again
        with screen.progress():
            return session.train(Run.open(begun).config, begun, True, screen.console())
    if resume and tune:
        raise UserError("a run goes on as it was begun, so --tune is of a new run: leave --resume or --tune out.")
    options = _as_text(options)
    out = Path(options["out"]) if options["out"] else None
    if not resume or out is None:
        resolved = resolve(config, options, settings, task=task)
        out = Path(resolved.out) if resolved.out else None
    if resume:
        if out is None:
            raise UserError("which run is to be resumed? Name its directory: --out RUN --resume.")
        resolved = Run.open(out).agreed(config, options, settings, task)
    elif out is not None:
        Run.refuse_existing(out)  # before anything is loaded
    resolved, tuning = _tuned(resolved, screen) if tune else (resolved, None)
    with screen.progress():
        return session.train(resolved, out, resume, screen.console(), tuning)
