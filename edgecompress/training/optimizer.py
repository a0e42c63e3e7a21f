"""What trains, and the optimiser over it, with its memory by the names of parameters: it outlives the process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgecompress.errors import EdgeCompressError
from edgecompress.training import Hook, Objective
from edgecompress.training.settings import Training

State = dict[str, dict[str, torch.Tensor]]
HOOK = "hook:"  # begins the name of whatever a hook brings


def trained_modules(objective: Objective, hooks: Sequence[Hook]) -> dict[str, nn.Module]:
    """Everything that trains, by name: the objective's modules, and ``hook:0.<name>`` ... of the hooks."""
    found = dict(objective.modules())
    for number, hook in enumerate(hooks):
        found |= {f"{HOOK}{number}.{name}": module for name, module in hook.modules().items()}
    return found


def parameters_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters that train, each once, as ``<module>/<parameter>``."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        for inner, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.numel() and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{name}/{inner}"] = parameter
    return found


def make(
    parameters: Mapping[str, nn.Parameter], hooks: Sequence[Hook], settings: Training, device: torch.device
) -> torch.optim.Optimizer:
    """Adam or AdamW; weight decay falls on matrices, not on biases and norms. Hooks bring groups of their own.

    Raises:
        EdgeCompressError: nothing is there to train.
    """
    groups = [dict(group) for hook in hooks for group in hook.groups(settings.learning_rate)]
    theirs = {id(parameter) for group in groups for parameter in _listed(group)}
    ours = [
        parameter for name, parameter in parameters.items() if id(parameter) not in theirs and not name.startswith(HOOK)
    ]
    if not ours and not theirs:
        raise EdgeCompressError(
            "nothing trains: every parameter is frozen", hint="unfreeze the layers that shall learn"
        )
    for group in groups:
        group["params"] = _listed(group)
        group.setdefault("weight_decay", 0.0)
    matrices = [parameter for parameter in ours if parameter.ndim > 1]
    vectors = [parameter for parameter in ours if parameter.ndim <= 1]
    groups += [{"params": matrices, "weight_decay": settings.weight_decay}] if matrices else []
    groups += [{"params": vectors, "weight_decay": 0.0}] if vectors else []
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    # One kernel for all tensors: on 2 cores a step over HuBERT base's weights takes a third of the loop's time.
    optimizer = kind(groups, lr=settings.learning_rate, fused=device.type in ("cpu", "cuda"))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _listed(group: Mapping[str, Any]) -> list[nn.Parameter]:
    params = group["params"]
    return [params] if isinstance(params, torch.Tensor) else list(params)  # type: ignore[list-item]


def rate_factor(step: int, settings: Training) -> float:
    """What the learning rate of step 0, 1, ... is multiplied with: a straight rise, then as the schedule says."""
    rising = round(settings.warmup * settings.steps)
    if step < rising:
        return (step + 1) / rising
    if settings.schedule == "constant":
        return 1.0
    gone = (step - rising) / max(1, settings.steps - rising)
    return 1 - gone if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` of what it began with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def state_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> State:
    """What the optimiser remembers of each parameter (moments, number of steps), not copied."""
    known = {id(parameter): state for parameter, state in optimizer.state.items()}
    return {
        name: {key: value for key, value in known[id(parameter)].items() if isinstance(value, torch.Tensor)}
        for name, parameter in parameters.items()
        if id(parameter) in known
    }


def put_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: Mapping[str, Mapping[str, torch.Tensor]],
) -> list[str]:
    """Copy a remembered state into a fresh optimiser; the names whose shape is another now begin anew and are returned."""
    anew = []
    driven = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for name, values in state.items():
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in driven or not _fits(values, parameter):
            anew.append(name)
            continue
        place = parameter.device if driven[id(parameter)].get("fused") else torch.device("cpu")
        optimizer.state[parameter] = {
            key: value.detach().to(parameter.device if value.ndim else place, copy=True)
            for key, value in values.items()
        }
    return anew


def _fits(values: Mapping[str, torch.Tensor], parameter: nn.Parameter) -> bool:
    return {"step", "exp_avg", "exp_avg_sq"} <= values.keys() and all(
        value.shape == parameter.shape for key, value in values.items() if key != "step"
    )
