"""A run described as data: recipes, files, options and `--set` in layers, validated, and saved resolved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from fewshot_mcl import layers
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.keys import COMMANDS, check_names, unknown_key
from fewshot_mcl.layers import SCHEMA, Values
from fewshot_mcl.objectives import defaults_of, options_of

if TYPE_CHECKING:
    from fewshot_mcl.data.sources import ImageOptions

NAMED_DATA = (
    "glyphs", "mini-imagenet", "tiered-imagenet", "cifar-fs", "fc100", "cub", "cub-closer-look", "cub-meta-dataset", "cub-feat",
    "omniglot", "omniglot-vinyals", "omniglot-background", "cifar100", "fashion-mnist", "imagenet",
)  # fmt: skip
RECIPE_OF = {  # the recipe of a run whose user names none, by task and data; "" is all other data
    "few-shot": {"": "default", "mini-imagenet": "paper"},
    "classify": {"": "classify", **dict.fromkeys(("cifar100", "fashion-mnist", "imagenet"), "paper-code")},
}
FINITE = ConfigDict(allow_inf_nan=False)


class Config(BaseModel):
    """The settings that runs of both tasks have; `configs/default.toml` and `classify.toml` say what each means.

    Attributes:
        unit: what one optimizer step of the task is called.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    unit: ClassVar[str]

    task: str
    data: str = Field(min_length=1)
    root: str | None = None
    image_size: int | None = Field(None, ge=8, le=2048)
    color: Literal["auto", "rgb", "grey"]
    resize: Literal["crop", "squash"]
    on_bad_image: Literal["refuse", "skip"]
    memory_share: float = Field(gt=0, le=1)
    split_seed: int
    method: str
    teacher: str | None = None
    backbone: str
    weights: str | None = None
    peers: int = Field(ge=1, le=64)
    share: Literal["last-two", "last-one", "none", "paper-code"]
    bn_init: Literal["ones", "uniform"]
    precision: Literal["float32", "bfloat16"] = "float32"
    form: Literal["loop", "stacked", "grouped"] = "loop"
    layout: Literal["channels-last", "contiguous"] = "channels-last"
    compile: bool = False
    batch_norm: Literal["synchronised", "per-process", "frozen"] = "synchronised"
    parallel: Literal["data", "peers"] = "data"
    images: Literal["whole", "sharded"] = "whole"
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    seed: int = Field(ge=0)
    device: str
    deterministic: bool = False
    on_nan: Literal["stop", "rollback"] = "stop"
    val_every: int = Field(ge=1)
    log_every: int = Field(ge=1)
    out: str | None = None
    objective: Values = {}

    @model_validator(mode="after")
    def _stacked_is_float32(self) -> Config:
        if self.form == "stacked" and self.precision == "bfloat16":
            raise UserError(
                "form = stacked computes in float32 only, torch's vmap knowing no autocast: use form=grouped or loop."
            )
        return self

    @property
    def has_classifier(self) -> bool:
        """Whether the peers have a classifier over all training classes."""
        return True

    @property
    def image_options(self) -> ImageOptions:
        from fewshot_mcl.data.sources import ImageOptions  # torch comes with it

        names = [name for name in ImageOptions.__dataclass_fields__ if hasattr(self, name)]
        return ImageOptions(**{name: getattr(self, name) for name in names})

    def flat(self) -> Values:
        """Every setting by its `--set` name; where the run was written to is not one."""
        values = self.model_dump(exclude={"out", "objective"})
        return values | {f"objective.{name}": value for name, value in self.objective.items()}

    def to_toml(self) -> str:
        """This configuration as a file that `--config` takes back; where it was written to is not part of it."""
        return tomli_w.dumps({"schema": SCHEMA} | self.model_dump(exclude_none=True, exclude={"out"}))


class FewShotConfig(Config):
    """Peers on episodes."""

    unit = "episode"

    task: Literal["few-shot"] = "few-shot"
    episodes: int = Field(ge=1, le=10**9)
    way: int = Field(ge=2)
    shot: int = Field(ge=1)
    query: int = Field(ge=1)
    joint_forward: bool
    metric: Literal["euclidean", "cosine"]
    scale: float = Field(gt=0)
    kl_source: Literal["episode", "aux", "none"]
    aux_weight: float | None = Field(None, ge=0)
    schedule: Literal["cosine", "halving", "constant"]
    halve_every: int = Field(ge=1)
    epoch: int = Field(ge=1)
    val_episodes: int = Field(ge=2, le=10**5)
    val_way: int = Field(ge=2)
    val_shot: int = Field(ge=1)
    val_query: int = Field(ge=1)

    @property
    def auxiliary_weight(self) -> float:
        """Weight of the auxiliary classifier on all training classes; 0 means there is none."""
        return self.aux_weight if self.aux_weight is not None else float(self.kl_source == "aux")

    @property
    def has_classifier(self) -> bool:
        return bool(self.auxiliary_weight)

    @model_validator(mode="after")
    def _auxiliary_has_weight(self) -> FewShotConfig:
        if self.kl_source == "aux" and not self.auxiliary_weight:
            raise UserError("kl_source = aux teaches an auxiliary classifier: give it a weight, --set aux_weight=1.")
        return self


class ClassifyConfig(Config):
    """Peers on batches of labelled images."""

    unit = "step"

    task: Literal["classify"] = "classify"
    download: bool
    decode: Literal["once", "always"]
    val_share: float = Field(ge=0, lt=1)
    images_per_class: int | None = Field(None, ge=1)
    epochs: int = Field(ge=1, le=10**6)
    batch: int = Field(ge=1)
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool
    periods: list[Annotated[int, Field(ge=1)]]
    augment: Literal["auto", "none", "crop", "crop-flip", "resized-crop"]
    save_every: int = Field(ge=1)
    report: Literal["last", "validation", "best-on-test"]


TASKS: dict[str, type[Config]] = {"few-shot": FewShotConfig, "classify": ClassifyConfig}


def resolve(
    config: str | None = None,
    options: Values | None = None,
    settings: list[str] | None = None,
    base: Config | None = None,
    task: str | None = None,
) -> Config:
    """The configuration from its layers: default recipe < `config` < `options` < `settings`.

    Args:
        config: a recipe's name or a TOML file; None takes the recipe that belongs to the data.
        options: of the command line; None values are not given.
        settings: "key=value" or "objective.key=value".
        base: takes the default recipe's place.
        task: "few-shot" or "classify"; None takes that of `config`, or few-shot.

    Raises:
        UserError: for an unknown key, a value of the wrong kind, a file that cannot be read, or one of another task.
    """
    given = layers.merge({k: v for k, v in (options or {}).items() if v is not None}, layers.parsed(settings or []))
    file = layers.read(layers.recipes().get(config, Path(config))) if config is not None else {}
    silent = (
        "few-shot" if config in layers.recipes() else task or "few-shot"
    )  # what a file means that does not name its task
    task = _task_of(base.task if base else file.get("task", silent), task, config)
    lower = [base.model_dump() if base else layers.read(layers.recipes()[RECIPE_OF[task][""]])]
    if base is None and config is None:
        config = RECIPE_OF[task].get(str(given.get("data")))
        file = layers.read(layers.recipes()[config]) if config else {}
    if config in layers.recipes():
        lower.append(file)
        file = {}
    lower, file = layers.with_conditions(lower, file, given)
    if given.get("method", file.get("method")) != file.get("method") and "method" in file:
        lower.append({"objective": file.pop("objective", {})})  # options of the method that `given` replaces
    explicit = layers.merge(file, given)
    merged = layers.merge(*lower, explicit)
    _check_names(merged, task)
    if base is None:
        own = {name: v for name, v in defaults_of(merged["method"]).items() if name in TASKS[task].model_fields}
        merged = layers.merge(merged, own, explicit)
    merged["objective"] = _objective(merged["method"], layers.merge(*lower)["objective"], explicit.get("objective", {}))
    for name in ("data", "root", "teacher", "weights"):  # a saved configuration must hold from any directory
        value = merged.get(name)
        if (
            isinstance(value, str) and value and value not in NAMED_DATA and os.path.exists(value)
        ):  # of any text, unlike Path
            merged[name] = str(Path(value).resolve())
    return _validate(TASKS[task], merged)


def _task_of(found: Any, asked: str | None, config: str | None) -> str:
    """The task of a configuration, which must be the one that is asked for."""
    if str(found) not in TASKS:
        raise unknown("task", str(found), TASKS)
    if asked not in (None, found):
        raise UserError(
            f"{config} is a configuration for 'fewshot-mcl {COMMANDS[found]}': use that command, or another --config."
        )
    return str(found)


def _check_names(values: Values, task: str) -> None:
    check_names(values)
    for name in values:
        if name not in TASKS[task].model_fields:
            raise unknown_key(name, task, str(values["method"]))


def _objective(method: str, lower: Values, explicit: Values) -> Values:
    """Every option of the method: its default, a recipe's value (which may be for other methods), what the user said."""
    if not isinstance(explicit, dict) or not isinstance(lower, dict):
        raise UserError("objective is a table of options: write [objective] above them, or --set objective.KEY=VALUE.")
    valid = options_of(method)
    for name in explicit:
        if name not in valid:
            if not valid:
                raise UserError(f"method '{method}' has no options, so objective.{name} means nothing: leave it out.")
            raise unknown(f"option of method '{method}': objective", name, valid)
    result = {}
    for name, parameter in sorted(valid.items()):
        value = explicit.get(name, lower.get(name, parameter.default))
        try:
            result[name] = TypeAdapter(parameter.annotation, config=FINITE).validate_python(value)
        except ValidationError as error:
            raise _wrong(f"objective.{name}", error) from error
    return result


def _wrong(name: str, error: ValidationError) -> UserError:
    """What pydantic says of a value, in our words."""
    first = error.errors()[0]
    reason = first["msg"][0].lower() + first["msg"][1:].replace("should be", "must be")
    return UserError(f"{name} = {str(first['input'])[:80]}: {reason}.")


def _validate(kind: type[Config], values: Values) -> Config:
    try:
        return kind(**values)
    except ValidationError as error:
        raise _wrong(".".join(str(part) for part in error.errors()[0]["loc"]), error) from error
