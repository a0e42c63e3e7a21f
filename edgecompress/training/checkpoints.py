"""The state of a training on disk: stopped at any moment, it goes on from here and ends with the same bits.

A folder holds two states in turn, ``a`` and ``b``: while one is written the other is whole. Each consists of
``weights.safetensors`` (all that trains, buffers too), ``optimizer.safetensors`` and ``state.json`` with the place in
the loop, the history and the hashes of the other two. When the training is done only its last state is left.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from edgecompress import records
from edgecompress.errors import EdgeCompressError, RecordError
from edgecompress.records import TrainingState

PLACES = ("a", "b")
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
Say = Callable[[str], None]


# --- tensors ---------------------------------------------------------------------------------------------------------
def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Parameters and buffers as ``<module>/<name>``, one that has two names once; not copied."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        for inner, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{name}/{inner}"] = tensor.detach()
    return found


def weights_fingerprint(modules: Mapping[str, nn.Module]) -> str:
    """12 hex digits of the names, shapes and values of all that trains."""
    digest = hashlib.sha256()
    for name, tensor in tensors_of(modules).items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


# --- writing ---------------------------------------------------------------------------------------------------------
def save(
    folder: Path,
    state: TrainingState,
    modules: Mapping[str, nn.Module],
    optimizer_state: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    """Write a state over the older of the two; the newer one stays until this one is whole.

    Raises:
        EdgeCompressError: it cannot be written (no space, no permission); the state before it is still there.
    """
    known = dict(_states(folder))
    place = min(PLACES, key=lambda name: known[name].step if name in known else -1)
    memory = {f"{name}/{key}": value for name, values in optimizer_state.items() for key, value in values.items()}
    try:
        with records.whole_folder(folder / place) as beside:
            _write(tensors_of(modules), beside / WEIGHTS)
            _write(memory, beside / OPTIMIZER)
            files = {name: records.file_sha256(beside / name) for name in (WEIGHTS, OPTIMIZER)}
            state.model_copy(update={"files": files}).write(beside / STATE)
        if state.finished:
            for other in set(PLACES) - {place}:
                shutil.rmtree(folder / other, ignore_errors=True)
    except Exception as cause:
        if not (isinstance(cause, OSError) or type(cause).__name__ == "SafetensorError"):
            raise
        full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(cause)
        raise EdgeCompressError(
            f"{folder}: the state of the training at step {state.step} cannot be written ({cause})",
            hint=("make space and start again: " if full else "see to the folder and start again: ")
            + "the training goes on from the state before",
        ) from cause


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """safetensors refuses two tensors in one memory: all but the first are copied."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    alone: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    save_file(alone, path)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


# --- reading ---------------------------------------------------------------------------------------------------------
def newest(folder: Path, fingerprint: dict[str, str], say: Say) -> tuple[Path, TrainingState] | None:
    """The newest whole state of this very training, or None; what is damaged or of another training is said.

    States that cannot be used are removed.
    """
    found = sorted(_states(folder, say), key=lambda pair: -pair[1].step)
    keys = sorted({key for _, state in found for key in fingerprint | state.fingerprint})
    other = [key for key in keys if any(state.fingerprint.get(key) != fingerprint.get(key) for _, state in found)]
    if other:
        say(f"{folder.name}: what is found there is of another training (its {', '.join(other)} differ): starting anew")
        forget(folder)
        return None
    for place, state in found:
        if damage := _damage(folder / place, state):
            say(f"{folder.name}: the state of step {state.step} is damaged ({damage}): it is left out")
            shutil.rmtree(folder / place, ignore_errors=True)
            continue
        return folder / place, state
    return None


def _states(folder: Path, say: Say | None = None) -> list[tuple[str, TrainingState]]:
    found = []
    for place in PLACES:
        if not (folder / place).is_dir():
            continue
        try:
            found.append((place, TrainingState.read(folder / place / STATE)))
        except RecordError as fault:
            if say:
                say(f"{folder.name}: a state is damaged ({fault.message}): it is left out")
    return found


def _damage(place: Path, state: TrainingState) -> str:
    for name in (WEIGHTS, OPTIMIZER):
        if not (place / name).is_file():
            return f"no {name}"
        if records.file_sha256(place / name) != state.files.get(name):
            return f"{name} has changed"
    return ""


def forget(folder: Path) -> None:
    """Remove both states."""
    for place in PLACES:
        shutil.rmtree(folder / place, ignore_errors=True)


@torch.no_grad()
def load_weights(place: Path, modules: Mapping[str, nn.Module]) -> None:
    """Copy the weights of a state into the modules, in place.

    Raises:
        RecordError: they are of other modules.
    """
    from safetensors import safe_open

    wanted = tensors_of(modules)
    with safe_open(place / WEIGHTS, "pt") as stream:
        if set(stream.keys()) != set(wanted):
            raise RecordError(f"{place}: the weights of other modules", hint="remove the folder and start again")
        for name, tensor in wanted.items():
            tensor.copy_(stream.get_tensor(name))


def load_optimizer_state(place: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the optimiser remembered, by parameter."""
    from safetensors import safe_open

    found: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(place / OPTIMIZER, "pt") as stream:
        for name in stream.keys():  # noqa: SIM118 (not a mapping)
            parameter, key = name.rsplit("/", 1)
            found.setdefault(parameter, {})[key] = stream.get_tensor(name)
    return found
