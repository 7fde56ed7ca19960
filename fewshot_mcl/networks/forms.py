"""Ways to run the copies of a stage: one after another, stacked, or as one stage of grouped convolutions.

The copies stay modules with parameters of their own in every form, so what is saved, optimised and deployed is the same.
Values are equal but for rounding; which is fastest depends on the machine (`fewshot-mcl train --tune` measures it).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks.batch_norm import FrozenBatchNorm, SynchronisedBatchNorm
from fewshot_mcl.networks.resnet import Residual

Form = Literal["loop", "stacked", "grouped"]
# Modules that treat each channel, or each group of channels, for itself: side by side, several networks do not mix in them.
CHANNELWISE = (
    nn.Conv2d, nn.BatchNorm2d, SynchronisedBatchNorm, FrozenBatchNorm, nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.MaxPool2d,
    nn.AvgPool2d, nn.ZeroPad2d, nn.Identity,
)  # fmt: skip
CONTAINERS = (nn.Sequential, Residual)
_JOINED: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
Join = Callable[[list[Tensor]], Tensor]


def run(copies: Sequence[nn.Module], maps: Sequence[Tensor], form: Form) -> list[Tensor]:
    """What each copy of a stage makes of its own maps (B, C, H, W).

    Raises:
        UserError: if the form is "grouped" and the stage mixes channels (`require_groupable`).
    """
    if form == "loop" or len(copies) == 1:
        return [stage(m) for stage, m in zip(copies, maps)]
    return _stacked(copies, maps) if form == "stacked" else _grouped(copies, maps)


def require_groupable(stage: nn.Module) -> None:
    """Refuse a stage that does not fall apart into groups of channels.

    Raises:
        UserError: naming the module.
    """
    for module in stage.modules():
        if type(module) not in CHANNELWISE + CONTAINERS:
            raise UserError(
                f"peers cannot run as grouped convolutions: {type(module).__name__} mixes channels. Use --set form=loop."
            )


def _stacked(copies: Sequence[nn.Module], maps: Sequence[Tensor]) -> list[Tensor]:
    """Every operation batched over the copies (torch.vmap)."""
    parameters, buffers = _joined(copies, torch.stack)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], maps: Tensor) -> Tensor:
        return functional_call(copies[0], (parameters, buffers), (maps,))

    result = torch.vmap(call, randomness="different")(parameters, buffers, torch.stack(list(maps)))
    _put_back(copies, {name: buffer.unbind() for name, buffer in buffers.items()})
    return list(result.unbind())


def _grouped(copies: Sequence[nn.Module], maps: Sequence[Tensor]) -> list[Tensor]:
    """The copies side by side in the channels of one stage."""
    require_groupable(copies[0])
    count = len(copies)
    parameters, buffers = _joined(
        copies, lambda tensors: torch.cat(tensors) if tensors[0].dim() else tensors[0].clone()
    )
    result = functional_call(_side_by_side(copies[0], count), (parameters, buffers), (torch.cat(list(maps), 1),))
    _put_back(copies, {name: b.chunk(count) if b.dim() else (b,) * count for name, b in buffers.items()})
    return list(result.chunk(count, 1))


def _joined(copies: Sequence[nn.Module], join: Join) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters, with their gradient, and buffers of all copies by name."""
    parameters = [dict(stage.named_parameters()) for stage in copies]
    buffers = [dict(stage.named_buffers()) for stage in copies]
    return (
        {name: join([each[name] for each in parameters]) for name in parameters[0]},
        {name: join([each[name] for each in buffers]) for name in buffers[0]},
    )


@torch.no_grad()
def _put_back(copies: Sequence[nn.Module], buffers: dict[str, Sequence[Tensor]]) -> None:
    """Batch statistics, which moved in the joined tensors."""
    for number, stage in enumerate(copies):
        for name, buffer in stage.named_buffers():
            buffer.copy_(buffers[name][number])


def _side_by_side(stage: nn.Module, count: int) -> nn.Module:
    """A stage without values for `count` times the channels, in as many groups; made once for each stage."""
    if stage not in _JOINED:
        _JOINED[stage] = _make_side_by_side(stage, count)
    return _JOINED[stage].train(stage.training)


def _make_side_by_side(stage: nn.Module, count: int) -> nn.Module:
    with torch.device("meta"):
        joined = copy.deepcopy(stage).to("meta")
    for module in joined.modules():
        if isinstance(module, nn.Conv2d):
            module.groups *= count
            module.in_channels, module.out_channels = module.in_channels * count, module.out_channels * count
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features *= count
    return joined
