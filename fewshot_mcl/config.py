"""A run described as data: recipes, files, options and `--set` in layers, validated, and saved resolved."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS, options_of
from fewshot_mcl.resources import resource_dir

NAMED_DATA = ("glyphs", "mini-imagenet")


class Config(BaseModel):
    """Every setting of a run; `configs/default.toml` says what each means and gives its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    root: str | None = None
    image_size: int | None = Field(None, ge=8, le=2048)
    color: Literal["auto", "rgb", "grey"]
    resize: Literal["crop", "squash"]
    on_bad_image: Literal["refuse", "skip"]
    memory_share: float = Field(gt=0, le=1)
    split_seed: int
    method: str
    backbone: str
    peers: int = Field(ge=1, le=64)
    share: Literal["last-two", "last-one", "none", "paper-code"]
    bn_init: Literal["ones", "uniform"]
    episodes: int = Field(ge=1)
    way: int = Field(ge=2)
    shot: int = Field(ge=1)
    query: int = Field(ge=1)
    joint_forward: bool
    metric: Literal["euclidean", "cosine"]
    scale: float = Field(gt=0)
    kl_source: Literal["episode", "aux", "none"]
    aux_weight: float | None = Field(None, ge=0)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    schedule: Literal["cosine", "halving", "constant"]
    halve_every: int = Field(ge=1)
    epoch: int = Field(ge=1)
    seed: int = Field(ge=0)
    device: str
    val_every: int = Field(ge=1)
    val_episodes: int = Field(ge=2)
    val_way: int = Field(ge=2)
    val_shot: int = Field(ge=1)
    val_query: int = Field(ge=1)
    log_every: int = Field(ge=1)
    out: str | None = None
    objective: dict[str, Any] = {}

    @property
    def auxiliary_weight(self) -> float:
        """Weight of the auxiliary classifier on all training classes; 0 means there is none."""
        return self.aux_weight if self.aux_weight is not None else float(self.kl_source == "aux")

    @property
    def image_options(self) -> ImageOptions:
        return ImageOptions(**{name: getattr(self, name) for name in ImageOptions.__dataclass_fields__})

    def to_toml(self) -> str:
        """This configuration as a file that `--config` takes back; where it was written to is not part of it."""
        return tomli_w.dumps(self.model_dump(exclude_none=True, exclude={"out"}))


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(resource_dir("configs").glob("*.toml"))}


def resolve(
    config: str | None = None, options: dict[str, Any] | None = None, settings: list[str] | None = None
) -> Config:
    """The configuration from its layers: default recipe < `config` < `options` < `settings`.

    Args:
        config: a recipe's name or a TOML file; None takes the recipe that belongs to the data.
        options: of the command line; None values are not given.
        settings: "key=value" or "objective.key=value".

    Raises:
        UserError: for an unknown key, a value of the wrong kind, or a file that cannot be read.
    """
    given = [{k: v for k, v in (options or {}).items() if v is not None}, _parse_settings(settings or [])]
    if config is None and _merge(*given).get("data") == "mini-imagenet":
        config = "paper"
    recipe = [_read(recipes()["default"])]
    if config in recipes():
        recipe.append(_read(recipes()[config]))
    elif config is not None:
        given.insert(0, _read(Path(config)))
    explicit, merged = _merge(*given), _merge(*recipe, *given)
    for name in merged:
        if name not in Config.model_fields:
            raise unknown("config key", name, [*Config.model_fields, *_objective_keys(merged["method"])])
    if merged["method"] == "baseline" and "peers" not in explicit:
        merged["peers"] = 1
    merged["objective"] = _objective(merged["method"], _merge(*recipe)["objective"], explicit.get("objective", {}))
    for name in ("data", "root"):  # a saved configuration must hold from any directory
        if isinstance(merged.get(name), str) and merged[name] not in NAMED_DATA and Path(merged[name]).exists():
            merged[name] = str(Path(merged[name]).resolve())
    return _validate(merged)


def _objective(method: str, recipe: dict[str, Any], explicit: dict[str, Any]) -> dict[str, Any]:
    """Every option of the method: its default, a recipe's value (which may be for other methods), what the user said."""
    valid = options_of(method)
    for name in explicit:
        if name not in valid:
            if not valid:
                raise UserError(f"method '{method}' has no options, so objective.{name} means nothing: leave it out.")
            raise unknown(f"option of method '{method}': objective", name, valid)
    result = {}
    for name, parameter in sorted(valid.items()):
        value = explicit.get(name, recipe.get(name, parameter.default))
        try:
            result[name] = TypeAdapter(parameter.annotation).validate_python(value)
        except ValidationError as error:
            raise UserError(f"objective.{name} = {value}: {_reason(error)}.") from error
    return result


def _objective_keys(method: str) -> list[str]:
    return [f"objective.{name}" for name in options_of(method)] if method in METHODS else []


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = f" Recipes that come with the package: {', '.join(recipes())}." if path.suffix != ".toml" else ""
        raise UserError(f"cannot read the config file {path}: {error.strerror}.{near}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from error


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or not name:
            raise UserError(f"--set {setting}: write key=value, for example --set weight_decay=0.0005.")
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word needs no quotes
        table, _, leaf = name.rpartition(".")
        result = _merge(result, {table: {leaf: value}} if table else {name: value})
    return result


def _merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers replace single keys, also inside tables."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            both_tables = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = {**result[name], **value} if both_tables else value
    return result


def _reason(error: ValidationError) -> str:
    message = error.errors()[0]["msg"]
    return message[0].lower() + message[1:]


def _validate(values: dict[str, Any]) -> Config:
    if values["method"] not in METHODS:
        raise unknown("method", str(values["method"]), METHODS)
    if values["backbone"] not in BACKBONES:
        raise unknown("backbone", str(values["backbone"]), BACKBONES)
    try:
        config = Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name} = {first['input']}: {_reason(error)}.") from error
    if config.kl_source == "aux" and not config.auxiliary_weight:
        raise UserError("kl_source = aux teaches an auxiliary classifier: give it a weight, --set aux_weight=1.")
    return config
