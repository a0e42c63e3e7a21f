"""The one loop: batches in, steps of the optimiser, a state to resume from every so often, and a line every 5 s.

Every step seeds all generators from (seed, step) before anything random happens, its batches depend on the same two
numbers, and the optimiser's memory is part of the state: a training that was stopped and resumed ends, on the same
machine, with the very bits of one that was left alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from edgecompress.errors import EdgeCompressError
from edgecompress.records import TrainingState, content_key
from edgecompress.training import Batch, Hook, Objective, checkpoints, optimizer
from edgecompress.training.batches import ahead, batches_of, left_out
from edgecompress.training.data import Corpus
from edgecompress.training.history import History, Progress
from edgecompress.training.settings import Training
from edgecompress.training.surroundings import device_of, in_training, own_randomness, seed_all

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
GIVE_UP_AFTER = 100  # steps in a row without a finite loss: nothing will come of it
SAVING_SHARE = 20  # a state that takes 1 s to write is written every 20 s at most, whatever save_every_s says

Say = Callable[[str], None]


def train(
    objective: Objective,
    corpus: Corpus,
    settings: Training,
    *,
    seed: int = 0,
    folder: Path | None = None,
    say: Say | None = None,
    hooks: Sequence[Hook] = (),
    optimizer_state: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> History:
    """Train ``objective.modules()`` (and those of the hooks) in place.

    They are in train mode meanwhile, and afterwards in the mode and on the device that they came with.

    Args:
        objective: what the training goes towards.
        corpus: the audio.
        settings: steps, rates, batches, precision, device.
        seed: of batches and everything random in a step.
        folder: where the state is kept; a training of the same fingerprint that is found there goes on, or, if it was
            done, is not done again. What is found of another training is removed.
        say: takes a line of progress about every 5 s.
        hooks: what goes along.
        optimizer_state: :attr:`History.optimizer_state` of an earlier training, to begin with.

    Raises:
        EdgeCompressError: nothing trains, no such device, the state cannot be written, or no step had a finite loss.
        AudioError: nothing to train on.
    """
    say = say or (lambda line: None)
    if not settings.steps:
        return History()
    modules = optimizer.trained_modules(objective, hooks)
    parameters = optimizer.parameters_of(modules)
    batches = batches_of(corpus, settings, seed, getattr(objective, "context_seconds", None))
    if missing := left_out(corpus, settings):
        say(
            f"{missing} labelled clips above {settings.crop_seconds} s are left out: cut, they would not say their label"
        )
    with in_training(modules, device_of(settings.device)) as device, own_randomness(device):
        run = Run(objective, hooks, settings, seed, device, modules, parameters)
        if folder is not None:
            run.resume(folder, _fingerprint(corpus, settings, seed, modules, hooks, optimizer_state), say)
        if run.history.resumed_at is None and optimizer_state:
            anew = optimizer.put_state(run.optimizer, parameters, optimizer_state)
            if anew:
                say(f"the optimiser begins anew for {len(anew)} tensors, e.g. {anew[0]}: they are of another shape now")
        run.go(batches, say)
        run.history.optimizer_state = {
            name: {key: value.detach().cpu() for key, value in values.items()}
            for name, values in optimizer.state_of(run.optimizer, parameters).items()
        }
    return run.history


@dataclass
class Run:
    """A training while it goes on."""

    objective: Objective
    hooks: Sequence[Hook]
    settings: Training
    seed: int
    device: torch.device
    modules: Mapping[str, nn.Module]
    parameters: Mapping[str, nn.Parameter]

    def __post_init__(self) -> None:
        self.optimizer = optimizer.make(self.parameters, self.hooks, self.settings, self.device)
        half = self.settings.precision == "fp16" and self.device.type in ("cuda", "cpu")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.history = History()
        self.folder: Path | None = None
        self.fingerprint: dict[str, str] = {}
        self.groups = [
            [parameter for name, parameter in self.parameters.items() if name.startswith(optimizer.HOOK) == theirs]
            for theirs in (False, True)
        ]

    # --- steps ---
    def go(self, batches: Callable[[int], list[Batch]], say: Say) -> None:
        """All steps that are left."""
        history, steps = self.history, self.settings.steps
        if history.steps == steps:
            return
        progress = Progress(say, steps)
        spent, began = history.seconds, time.monotonic()
        saved, pause = began, self.settings.save_every_s
        with closing(ahead(batches, history.steps, steps)) as made:
            for step, micro in enumerate(made, start=history.steps):
                self.step(step, micro)
                history.steps = step + 1
                history.seconds = spent + time.monotonic() - began
                progress.after(history)
                self._give_up_if_hopeless()
                if self.folder is not None and time.monotonic() - saved >= pause and history.steps < steps:
                    pause = max(self.settings.save_every_s, SAVING_SHARE * self._save(finished=False))
                    saved = time.monotonic()
        if self.folder is not None:
            self._save(finished=True)

    def step(self, step: int, batches: Sequence[Batch]) -> None:
        """One step of the optimiser, or none where there is no finite loss or gradient."""
        seed_all(self.seed, step)
        factor = optimizer.rate_factor(step, self.settings)
        optimizer.set_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        self.history.audio_seconds += sum(batch.seconds for batch in batches)
        told = self._gradients(step, batches)
        if told is not None and self._update():
            loss, parts = told
            rate = self.settings.learning_rate * factor
            self.history.losses.append((step, loss, rate, {k: v for k, v in parts.items() if math.isfinite(v)}))
        else:
            self.history.skipped.append(step)
        for hook in self.hooks:
            hook.after_step(step)

    def _gradients(self, step: int, batches: Sequence[Batch]) -> tuple[float, dict[str, float]] | None:
        """Gradients of the mean over all that the micro-batches count; the loss and its parts, or None."""
        dtype = PRECISIONS[self.settings.precision]
        unit, total, mean, parts = 0, 0.0, 0.0, dict[str, float]()
        for batch in batches:
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                loss = self.objective.loss(batch)
            if loss.count <= 0:
                continue
            value = float(loss.value.detach())
            if not math.isfinite(value):
                return None
            unit = unit or loss.count  # weights near one: sums of counts would leave the range of fp16
            weight = loss.count / unit
            self.scaler.scale(loss.value if weight == 1 else loss.value * weight).backward()
            total += weight
            mean += weight * value
            for name, part in loss.parts.items():
                parts[name] = parts.get(name, 0.0) + weight * part
        if not total:
            return None
        if total != 1:
            torch._foreach_mul_([p.grad for p in self.parameters.values() if p.grad is not None], 1 / total)
        return (mean / total, {name: part / total for name, part in parts.items()}) if self._penalties(step) else None

    def _penalties(self, step: int) -> bool:
        """Add the gradients of the hooks' penalties; whether all of them are finite."""
        for hook in self.hooks:
            penalty = hook.penalty(step)
            if penalty is None:
                continue
            if not math.isfinite(float(penalty.detach())):
                return False
            self.scaler.scale(penalty).backward()
        return True

    def _update(self) -> bool:
        """Clip (the model and the hooks each on their own) and step; False where a gradient was not finite."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        for hook in self.hooks:
            hook.before_clipping()
        norms = [nn.utils.clip_grad_norm_(group, self.settings.clip_norm) for group in self.groups if group]
        finite = all(math.isfinite(float(norm)) for norm in norms)
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return finite

    def _give_up_if_hopeless(self) -> None:
        skipped, steps = self.history.skipped, self.history.steps
        since = steps - 1 - (self.history.losses[-1][0] if self.history.losses else -1)
        if since >= GIVE_UP_AFTER or (steps == self.settings.steps and len(skipped) == steps):
            raise EdgeCompressError(
                f"the last {since} steps of the training had no finite loss or gradient",
                hint="lower learning_rate, or take precision fp32 or bf16; check the audio and the labels",
            )

    # --- state ---
    def resume(self, folder: Path, fingerprint: dict[str, str], say: Say) -> None:
        """Go on from the state in ``folder``, if it is of this training."""
        self.folder, self.fingerprint = folder, fingerprint
        found = checkpoints.newest(folder, fingerprint, say)
        if found is None:
            return
        place, state = found
        checkpoints.load_weights(place, self.modules)
        optimizer.put_state(self.optimizer, self.parameters, checkpoints.load_optimizer_state(place))
        if state.scaler:
            self.scaler.load_state_dict(_whole(state.scaler))
        self.history = History(
            steps=state.step,
            losses=list(state.losses),
            skipped=list(state.skipped),
            audio_seconds=state.audio_seconds,
            seconds=state.seconds,
            resumed_at=state.step,
        )
        say(f"{folder.name}: " + ("done already" if state.finished else f"going on at step {state.step}"))

    def _save(self, *, finished: bool) -> float:
        """Write the state; the seconds it took."""
        assert self.folder is not None
        began = time.monotonic()
        history = self.history
        state = TrainingState(
            fingerprint=self.fingerprint,
            step=history.steps,
            finished=finished,
            losses=history.losses,
            skipped=history.skipped,
            audio_seconds=history.audio_seconds,
            seconds=history.seconds,
            scaler={key: float(value) for key, value in self.scaler.state_dict().items()},
        )
        checkpoints.save(self.folder, state, self.modules, optimizer.state_of(self.optimizer, self.parameters))
        return time.monotonic() - began


def _whole(scaler: Mapping[str, float]) -> dict[str, float]:
    """Numbers of the gradient scaler as it wants them: counters whole."""
    return {
        key: int(value) if key.startswith(("growth_interval", "_growth")) else value for key, value in scaler.items()
    }


def _fingerprint(
    corpus: Corpus,
    settings: Training,
    seed: int,
    modules: Mapping[str, nn.Module],
    hooks: Sequence[Hook],
    optimizer_state: Mapping[str, object] | None,
) -> dict[str, str]:
    """What a training depends on. Not the device, nor how often it is saved: neither makes it another training."""
    asked = {key: value for key, value in asdict(settings).items() if key not in ("device", "save_every_s")}
    return {
        "settings": content_key(asked),
        "seed": str(seed),
        "audio": corpus.fingerprint,
        "model": checkpoints.weights_fingerprint(modules),
        "hooks": content_key([hook.fingerprint for hook in hooks]),
        "optimiser state": content_key(sorted(optimizer_state or {})),
    }
