"""The training loop: what a step does, what it skips, and that a stopped training ends as one left alone."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import records
from edgecompress.errors import EdgeCompressError
from edgecompress.training import Batch, Loss, checkpoints, loop, optimizer
from edgecompress.training.history import History, Progress, duration
from tests import toys
from tests.toys import CASES, STEPS, Held, Toy, corpus, course, settings


@pytest.fixture(autouse=True)
def a_state_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVING_SHARE", 0)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stopping_at(call: int) -> Toy:
    def stop(now: int) -> None:
        if now == call:
            raise KeyboardInterrupt

    toy = Toy()
    toy.before_loss = stop
    return toy


# --- resumed is left alone ---
@pytest.mark.parametrize("case", CASES)
def test_a_training_that_was_stopped_ends_with_the_bits_of_one_left_alone(case: str, tmp_path: Path) -> None:
    alone, history = course(case, None)
    for call in (5, 3):
        with pytest.raises(KeyboardInterrupt):
            course(case, tmp_path, toy=stopping_at(call))
    weights, resumed = course(case, tmp_path)
    assert resumed.resumed_at is not None
    assert 0 < resumed.resumed_at < STEPS
    assert same(weights, alone)
    assert resumed == history
    flat = [f"{name}/{key}" for name, state in history.optimizer_state.items() for key in state]
    assert same(
        {key: resumed.optimizer_state[key.rsplit("/", 1)[0]][key.rsplit("/", 1)[1]] for key in flat},
        {key: history.optimizer_state[key.rsplit("/", 1)[0]][key.rsplit("/", 1)[1]] for key in flat},
    )


@pytest.mark.parametrize(("case", "when"), [("adamw", "step"), ("hooks", "save")])
def test_a_training_that_was_killed_ends_with_the_bits_of_one_left_alone(case: str, when: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.toys", str(tmp_path / "state"), case, when]
    killed = subprocess.run(command, cwd=Path(__file__).parent.parent, timeout=300)
    assert killed.returncode == -9
    alone, history = course(case, None)
    weights, resumed = course(case, tmp_path / "state")
    assert (resumed.resumed_at or 0) > 3
    assert same(weights, alone)
    assert resumed == history


def test_a_training_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    weights, history = course("hooks", tmp_path)
    toy, said = Toy(), []
    again, known = course("hooks", tmp_path, toy=toy, say=said.append)
    assert toy.calls == 0
    assert same(again, weights)
    assert known == history
    assert known.optimizer_state.keys() == history.optimizer_state.keys()
    assert said == [f"{tmp_path.name}: done already"]
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] in (["a"], ["b"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {"learning_rate": 1e-3}}, "settings"),
        ({"corpus": corpus(seed=1)}, "audio"),
        ({"weights": 5}, "model"),
        ({"seed": 8}, "seed"),
    ],
)
def test_the_state_of_another_training_is_not_taken(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    loop.train(Toy(), corpus(), settings(), seed=3, folder=tmp_path)
    said: list[str] = []

    def other(folder: Path | None) -> History:
        return loop.train(
            Toy(seed=change.get("weights", 0)),
            change.get("corpus", corpus()),
            settings(**change.get("settings", {})),
            seed=change.get("seed", 3),
            folder=folder,
            say=said.append,
        )

    history = other(tmp_path)
    assert f"another training (its {named} differ)" in said[0]
    assert history.resumed_at is None
    assert history == other(None)


@pytest.mark.parametrize("damaged", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_state_gives_way_to_the_one_before(damaged: str, tmp_path: Path) -> None:
    alone, history = course("adamw", None)
    with pytest.raises(KeyboardInterrupt):
        course("adamw", tmp_path, toy=stopping_at(7))
    newest = max("ab", key=lambda place: records.TrainingState.read(tmp_path / place / "state.json").step)
    content = (tmp_path / newest / damaged).read_bytes()
    (tmp_path / newest / damaged).write_bytes(content[:-9] + b"xx" + content[-7:])
    said: list[str] = []
    weights, resumed = course("adamw", tmp_path, say=said.append)
    assert "damaged" in said[0]
    assert resumed.resumed_at == 6
    assert same(weights, alone)
    assert resumed == history


def test_two_damaged_states_begin_anew_and_say_so(tmp_path: Path) -> None:
    alone, history = course("adamw", None)
    with pytest.raises(KeyboardInterrupt):
        course("adamw", tmp_path, toy=stopping_at(7))
    for place in "ab":
        (tmp_path / place / "weights.safetensors").unlink()
    said: list[str] = []
    weights, resumed = course("adamw", tmp_path, say=said.append)
    assert len([line for line in said if "no weights.safetensors" in line]) == 2
    assert resumed.resumed_at is None
    assert same(weights, alone)
    assert resumed == history


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, history = course("adamw", None)
    write, toy = checkpoints._write, Toy()

    def full(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        if toy.calls >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write", full)
        with pytest.raises(EdgeCompressError, match="step 6 cannot be written") as raised:
            course("adamw", tmp_path, toy=toy)
    assert "make space" in raised.value.hint
    weights, resumed = course("adamw", tmp_path)
    assert resumed.resumed_at == 5
    assert same(weights, alone)
    assert resumed == history


# --- a step ---
def test_micro_batches_count_by_what_is_in_them() -> None:
    """Accumulated gradients are those of one batch with all frames in it: first step of Adam in both, no dropout."""
    one, many = Toy(), Toy()
    batches = loop.batches_of(corpus(), settings(accumulate=3), 0)(0)
    whole = Batch(*([one for batch in batches for one in getattr(batch, name)] for name in ("clips", "rows", "starts")))
    for toy, micro in ((one, [whole]), (many, batches)):
        toy.network[2].p = 0.0
        asked = settings()
        modules = optimizer.trained_modules(toy, ())
        parameters = optimizer.parameters_of(modules)
        run = loop.Run(toy, (), asked, 0, torch.device("cpu"), modules, parameters)
        run.step(0, micro)
    assert len({len(batch.rows) for batch in batches}) > 1
    assert one.network[0].weight.grad is not None
    assert torch.allclose(one.network[0].weight.grad, many.network[0].weight.grad, rtol=1e-4, atol=1e-7)


def test_steps_without_a_finite_loss_change_nothing_and_are_counted() -> None:
    toy = Toy(broken_row=4)
    broken: list[int] = []
    states: list[torch.Tensor] = []
    toy.before_loss = lambda call: states.append(toy.head.weight.detach().clone())
    history = loop.train(toy, corpus(), settings(), seed=1)
    broken = [step for step, batch in enumerate(toy.seen) if 4 in batch.rows]
    assert 0 < len(broken) < STEPS
    assert history.skipped == broken
    assert history.skipped_steps + len(history.losses) == history.steps == STEPS
    changed = [step for step in range(STEPS - 1) if not torch.equal(states[step], states[step + 1])]
    assert changed == [step for step in range(STEPS - 1) if step not in broken]


def test_a_gradient_that_is_not_finite_skips_the_step() -> None:
    class Steep(Toy):
        def loss(self, batch: Batch) -> Loss:
            loss = super().loss(batch)
            if self.calls == 3:  # sqrt at zero: the value is finite, its slope is not
                return Loss(loss.value + (self.head.weight * 0).abs().sum().sqrt(), loss.count)
            return loss

    history = loop.train(Steep(), corpus(), settings(), seed=1)
    assert history.skipped == [2]


def test_a_training_that_learns_nothing_at_all_is_an_error() -> None:
    class Lost(Toy):
        def loss(self, batch: Batch) -> Loss:
            loss = super().loss(batch)
            return Loss(loss.value * float("inf"), loss.count)

    with pytest.raises(EdgeCompressError, match="no finite loss"):
        loop.train(Lost(), corpus(), settings())


def test_held_weights_stay_zero_and_the_multiplier_climbs() -> None:
    toy = Toy()
    hook = Held(toy)
    before = toy.network[0].weight.detach().clone()
    loop.train(toy, corpus(), settings(), hooks=[hook])
    weight = toy.network[0].weight.detach()
    assert torch.count_nonzero(weight[hook.mask == 0]) == 0
    assert not torch.equal(weight, before)
    assert float(hook.gate.multiplier.detach()) > 0  # the gates are above a half, so the multiplier goes up ...
    assert bool((hook.gate.size.detach() < 1).all())  # ... and presses them down


def test_the_loss_goes_down_and_the_history_tells_it() -> None:
    history = loop.train(Toy(), corpus(), settings(steps=60), seed=1)
    first, last = history.mean_loss(first=5), history.mean_loss(last=5)
    assert last is not None
    assert first is not None
    assert last < 0.7 * first
    assert history.losses[0][3]["l1"] == pytest.approx(history.losses[0][1])
    assert history.audio_seconds > 5


def test_modes_and_generators_are_afterwards_as_they_were() -> None:
    toy = Toy()
    toy.network.eval()
    toy.head.train()
    modes: list[bool] = []
    toy.before_loss = lambda call: modes.append(toy.network[2].training)
    torch.manual_seed(0)
    np.random.seed(0)
    wanted = (torch.rand(3), np.random.rand(3))
    torch.manual_seed(0)
    np.random.seed(0)
    loop.train(toy, corpus(), settings())
    assert torch.equal(torch.rand(3), wanted[0])
    assert np.array_equal(np.random.rand(3), wanted[1])
    assert set(modes) == {True}
    assert (toy.network[2].training, toy.head.training) == (False, True)
    assert all(parameter.grad is None for parameter in toy.network.parameters())


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_the_rate_rises_and_falls_as_the_schedule_says(schedule: Any, wanted: list[float]) -> None:
    asked = settings(steps=6, warmup=1 / 3, schedule=schedule)
    assert [optimizer.rate_factor(step, asked) for step in range(6)] == pytest.approx(wanted, abs=1e-4)


def test_frozen_parameters_stay_and_a_model_that_is_all_frozen_is_refused() -> None:
    toy = Toy()
    toy.network.requires_grad_(False)
    before = toy.network[0].weight.clone()
    loop.train(toy, corpus(), settings())
    assert torch.equal(toy.network[0].weight, before)
    toy.head.requires_grad_(False)
    with pytest.raises(EdgeCompressError, match="every parameter is frozen"):
        loop.train(toy, corpus(), settings())


def test_a_device_that_torch_does_not_see_is_an_error() -> None:
    with pytest.raises(EdgeCompressError, match="cannot train on device 'abacus'"):
        loop.train(Toy(), corpus(), settings(device="abacus"))


# --- the optimiser's memory ---
def test_the_optimisers_memory_can_be_kept_for_another_training() -> None:
    toy = Toy()
    first = loop.train(toy, corpus(), settings(steps=5))
    second = loop.train(toy, corpus(), settings(steps=4), optimizer_state=first.optimizer_state)
    assert {float(state["step"]) for state in second.optimizer_state.values()} == {9.0}
    anew = loop.train(toy, corpus(), settings(steps=4))
    assert {float(state["step"]) for state in anew.optimizer_state.values()} == {4.0}


def test_tensors_of_another_shape_begin_anew_and_that_is_said() -> None:
    first = loop.train(Toy(), corpus(), settings(steps=5))
    toy, said = Toy(), []
    toy.network[4], toy.head = nn.Linear(8, 6), nn.Linear(6, 1)
    second = loop.train(toy, corpus(), settings(steps=4), optimizer_state=first.optimizer_state, say=said.append)
    steps = {name: float(state["step"]) for name, state in second.optimizer_state.items()}
    assert [name for name, count in steps.items() if count == 4] == ["model/4.weight", "model/4.bias", "head/weight"]
    assert "3 tensors, e.g. model/4.weight" in said[0]


# --- lines ---
def test_progress_is_a_line_every_five_seconds_with_loss_speed_and_time_left() -> None:
    now, said = [0.0], []
    progress = Progress(said.append, 100, clock=lambda: now[0])
    history = History()
    for step in range(40):
        now[0] += 0.5
        history.steps, history.audio_seconds = step + 1, 4.0 * (step + 1)
        history.losses.append((step, 0.25, 1e-3, {"l1": 0.2, "cosine": 0.05}))
        progress.after(history)
    assert len(said) == 4
    assert said[1] == "step 20/100, loss 0.25 (l1 0.2, cosine 0.05), 8.0 s audio/s, 40 s left"
    assert [duration(seconds) for seconds in (4.4, 130, 11100)] == ["4 s", "2 min 10 s", "3 h 5 min"]


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    toy = Toy()
    toy.network[4].weight = nn.Parameter(torch.eye(8))
    toy.network.append(nn.Linear(8, 8, bias=False))
    toy.network[5].weight = toy.network[4].weight
    loop.train(toy, corpus(), settings(), folder=tmp_path)
    again = Toy()
    again.network[4].weight = nn.Parameter(torch.eye(8))
    again.network.append(nn.Linear(8, 8, bias=False))
    again.network[5].weight = again.network[4].weight
    history = loop.train(again, corpus(), settings(), folder=tmp_path)
    assert history.resumed_at == STEPS
    assert again.network[5].weight is again.network[4].weight
    assert torch.equal(again.network[4].weight, toy.network[4].weight)
    assert same(toys.checkpoints.tensors_of(again.modules()), toys.checkpoints.tensors_of(toy.modules()))
