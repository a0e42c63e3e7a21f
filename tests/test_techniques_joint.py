"""Joint pruning: gates that learn, an expected cost that is the true one, and a model that ends where it was asked to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from edgecompress import cost
from edgecompress.errors import TechniqueError
from edgecompress.model import Model, load, save
from edgecompress.model.linear import Constant
from edgecompress.techniques import Context, compress
from edgecompress.techniques.expected_cost import expected_cost
from edgecompress.techniques.gates import KINDS, SHUT_BELOW, Gates, sites_of
from edgecompress.techniques.lagrangian import Lagrangian
from edgecompress.techniques.prune_jointly import PruneJointly, decide, slice_gates
from edgecompress.techniques.targets import Target, goal_of
from edgecompress.training import Batch, Loss, loop
from edgecompress.training.match_states import StatesObjective
from edgecompress.training.settings import MatchStates, Training
from tests.library import assert_same, says
from tests.models import FAMILIES, example, noise_clip, tiny

CLIPS = [noise_clip(0.2, seed) for seed in range(4)]
TRAINING = Training(
    steps=6, learning_rate=1e-3, batch_seconds=1, crop_seconds=1, device="cpu", objective=MatchStates(layers="same")
)
RATES: Any = {"channels": 0.3, "heads": 0.3, "units": 0.5}


def context_for(model: Model, **more: Any) -> Context:
    return Context(clips=CLIPS, source=model.clone(), seed=5, **more)


def opened(gates: Gates, seed: int) -> Gates:
    """Gates that learned something: random numbers, far apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for log_alpha in gates.log_alpha.values():
            log_alpha.copy_(4 * torch.randn(log_alpha.shape, generator=generator))
    return gates


# --- the gates -------------------------------------------------------------------------------------------------------
def test_gates_are_shut_as_often_as_they_say() -> None:
    gates = opened(Gates(sites_of(tiny("whisper")), RATES, seed=0), 1)
    torch.manual_seed(0)
    site = gates.sites[0]
    draws = torch.stack([gates.drawn(site) for _ in range(4000)]).detach()
    assert float(((draws > 0).float().mean(0) - gates.open_probability(site).detach()).abs().max()) < 0.04
    assert float(draws.min()) >= 0
    assert float(draws.max()) <= 1


def test_the_drop_rate_is_where_gates_begin() -> None:
    """A rate of one half is log_alpha 0: as often nearer to shut as to open."""
    gates = Gates(sites_of(tiny("whisper")), {"channels": 0.01, "heads": 0.01, "units": 0.5}, seed=0)
    for site in gates.sites:
        begun = float(gates.log_alpha[site.name].detach().mean())
        assert begun == pytest.approx(0 if site.kind == "units" else 4.595, abs=0.03)


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        *((family, {}) for family in FAMILIES),
        ("wavlm", {"front_end": "layer"}),
        ("hubert", {"feat_proj_layer_norm": False}),
    ],
)
def test_a_model_with_held_gates_says_what_it_says_once_sliced(family: str, variant: dict[str, Any]) -> None:
    model = tiny(family, **variant)
    gates = opened(Gates(sites_of(model), RATES, seed=0), 1)
    counts = {site.name: max(site.least, len(site.parts) // 3) for site in gates.sites}
    counts["heads_1"] = counts["units_2"] = 0
    held = {}
    for site in gates.sites:
        kept = gates.log_alpha[site.name].detach().argsort(descending=True)[: counts[site.name]]
        held[site.name] = torch.zeros(len(site.parts)).index_put((kept,), gates.in_use(site)[kept])
    inputs = example(model, batch=2)
    with gates.acting(held):
        gated = says(model, inputs)
    slice_gates(model, gates, counts)
    assert_same(says(model, inputs), gated)
    assert isinstance(model.layer(1).matrix("out_proj"), Constant)
    assert isinstance(model.layer(2).matrix("down"), Constant)


def test_gates_act_in_training_alone_and_leave_no_trace() -> None:
    model = tiny("wavlm", front_end="layer")
    inputs = example(model)
    before = says(model, inputs)
    gates = opened(Gates(sites_of(model), RATES, seed=0), 1)
    with gates.acting():
        assert_same(says(model, inputs), before, tolerance=0)
        gates.train()
        assert float((says(model, inputs)["last_hidden_state"] - before["last_hidden_state"]).abs().max()) > 0.1
    assert_same(says(model, inputs), before, tolerance=0)


# --- the expected cost -----------------------------------------------------------------------------------------------
def before_the_step(model: Model) -> None:
    """Edits that make a cost uneven: a factored matrix, an empty block, a narrow convolution."""
    model.factor(1, "up", 10)
    model.factor(1, "v_proj", 8)
    model.keep_heads(0, [1])
    model.keep_heads(2, [])
    if model.front_end.convs:
        model.keep_channels(0, range(5))


@pytest.mark.parametrize("target", [Target(parameters=0.5), Target(macs=0.5, seconds=1)], ids=["parameters", "macs"])
@pytest.mark.parametrize("edit", [lambda model: None, before_the_step], ids=["whole", "edited"])
@pytest.mark.parametrize("family", ["hubert", "wavlm", "whisper", "melhubert"])
def test_on_hard_gates_the_expected_cost_is_the_cost(
    family: str, edit: Callable[[Model], None], target: Target
) -> None:
    model = tiny(family)
    edit(model)
    sites, goal = sites_of(model), goal_of(target, model, Context())
    expected = expected_cost(model, sites, goal.measure)
    draw = random.Random(0)
    for _ in range(3):
        twin, probabilities, counts = model.skeleton(), {}, {}
        for site in sites:
            number = draw.choice([site.least, len(site.parts), draw.randint(site.least, len(site.parts))])
            kept = sorted(draw.sample(range(len(site.parts)), number))
            site.keep(twin, kept)
            counts[site.name] = number
            probabilities[site.name] = torch.zeros(len(site.parts), dtype=torch.float64)
            probabilities[site.name][kept] = 1
        assert expected.of_counts(counts) == goal.measure(twin)
        assert float(expected.expected(probabilities)) == goal.measure(twin)


def test_the_expected_cost_is_the_mean_cost_of_draws() -> None:
    model = tiny("wavlm")
    gates = opened(Gates(sites_of(model), RATES, seed=0), 2)
    expected = expected_cost(model, gates.sites, goal_of(Target(macs=0.5), model, Context()).measure)
    probabilities = {site.name: gates.open_probability(site).detach() for site in gates.sites}
    torch.manual_seed(0)
    costs = [
        expected.of_counts({name: int(torch.bernoulli(each).sum()) for name, each in probabilities.items()})
        for _ in range(400)
    ]
    assert sum(costs) / len(costs) == pytest.approx(float(expected.expected(probabilities)), rel=0.01)


def test_the_target_falls_in_a_straight_line_and_the_multipliers_climb() -> None:
    model = tiny("whisper")
    goal = goal_of(Target(parameters=0.6), model, Context())
    gates = Gates(sites_of(model), RATES, seed=0)
    hook = Lagrangian(gates, expected_cost(model, gates.sites, goal.measure), goal, 0.1, ramp_steps=10)
    whole = cost.parameters(model).total
    assert hook.wanted(4) == pytest.approx(1 - 0.5 * (1 - goal.value / whole))
    assert hook.wanted(9) == hook.wanted(500) == pytest.approx(goal.value / whole)
    groups = hook.groups(1e-4)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(400):
        optimizer.zero_grad()
        hook.penalty(step).backward()
        optimizer.step()
    assert float(hook.multipliers["linear"].detach()) != 0
    assert float(hook.multipliers["square"].detach()) > 0
    assert hook.expected() == pytest.approx(goal.value, rel=0.05)


# --- from gates to a model -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "unit"), [("hubert", "parameters"), ("wavlm", "macs"), ("whisper", "macs"), ("melhubert", "macs")]
)
def test_whatever_the_gates_learned_the_cost_is_within_half_a_percent(family: str, unit: str) -> None:
    """Even here, where one head of twelve is 6 % of the multiply-accumulates at 10 s."""
    model = tiny(family)
    sites = sites_of(model)
    measure = goal_of(Target(**{unit: 0.5}), model, Context()).measure
    expected = expected_cost(model, sites, measure)
    least = expected.of_counts({site.name: site.least for site in sites})
    for seed, share in enumerate((0.9, 0.7, 0.5, 0.3, 0.2)):
        value = least + round(share * (measure(model) - least))
        counts = decide(opened(Gates(sites, RATES, seed=0), seed), expected, value)
        assert 0.995 * value <= expected.of_counts(counts) <= value


def test_of_each_place_the_likeliest_stay() -> None:
    model = tiny("hubert")
    gates = opened(Gates(sites_of(model), RATES, seed=0), 3)
    expected = expected_cost(model, gates.sites, lambda one: cost.parameters(one).total)
    slice_gates(model, gates, decide(gates, expected, round(0.7 * cost.parameters(model).total)))
    for layer in model.layers:
        learned = gates.log_alpha[f"units_{layer.number}"].detach()
        assert layer.units == tuple(sorted(learned.argsort(descending=True)[: len(layer.units)].tolist()))


def test_gates_that_are_decided_already_are_kept_as_they_are() -> None:
    """The likeliest are the ones that stay, and no more than were likely: a target that is met moves nothing."""
    model = tiny("whisper")
    gates = Gates(sites_of(model), RATES, seed=0)
    with torch.no_grad():
        for place, site in enumerate(gates.sites):
            gates.log_alpha[site.name].fill_(-20).view(-1)[: max(1, (place + 2) * len(site.parts) // 12)] = 20
    counts = {site.name: int((gates.log_alpha[site.name] > SHUT_BELOW).sum()) for site in gates.sites}
    expected = expected_cost(model, gates.sites, lambda one: cost.parameters(one).total)
    assert decide(gates, expected, expected.of_counts(counts)) == counts


# --- all of it -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "target"),
    [(family, Target(macs=0.6) if place % 2 else Target(parameters=0.6)) for place, family in enumerate(FAMILIES)],
)
def test_the_model_ends_within_half_a_percent_of_the_target(family: str, target: Target, tmp_path: Path) -> None:
    model = tiny(family)
    whole = cost.measure(model)
    step = PruneJointly(target=target, training=TRAINING, recovery=TRAINING)
    (done,) = compress(model, [step], context_for(model))
    reached = done.after.parameters.total / whole.parameters.total
    assert (reached if target.parameters else done.after.macs.total / whole.macs.total) == pytest.approx(0.6, rel=0.005)
    told = " ".join(done.notes)
    assert "the target" in told
    assert "of 288 units" in told
    assert told.count("trained 6 steps") == 2
    save(model, tmp_path)
    inputs = example(model)
    assert_same(says(load(tmp_path), inputs), says(model, inputs), tolerance=0)


def test_only_the_parts_that_are_named_get_gates() -> None:
    model = tiny("hubert")
    compress(
        model, [PruneJointly(target=Target(parameters=0.9), training=TRAINING, parts=("units",))], context_for(model)
    )
    assert all(len(layer.heads) == 4 for layer in model.layers)
    assert all(len(conv.channels) == 32 for conv in model.front_end.convs)
    assert {site.kind for site in sites_of(model)} == set(KINDS)


class Stopped(Exception):
    """What a power cut looks like from inside."""


def test_a_stopped_run_ends_as_one_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped twice: while the gates learn, and in the recovery."""
    settings = replace(TRAINING, save_every_s=1e-9)
    step = PruneJointly(target=Target(macs=0.5), training=settings, recovery=settings)
    alone, stopped = tiny("whisper"), tiny("whisper")
    compress(alone, [step], context_for(alone))
    whole_loss, taken = StatesObjective.loss, []

    def interrupted(self: StatesObjective, batch: Batch) -> Loss:
        taken.append(batch)
        if len(taken) in (4, 10):
            raise Stopped
        return whole_loss(self, batch)

    monkeypatch.setattr(StatesObjective, "loss", interrupted)
    monkeypatch.setattr(loop, "SAVING_SHARE", 0)
    for _ in range(3):
        again = tiny("whisper")
        try:
            compress(again, [step], context_for(again, work=tmp_path))
        except Stopped:
            continue
        stopped = again
    assert 12 < len(taken) < 20  # some were done twice, not all
    assert stopped.edits == alone.edits
    inputs = example(alone)
    assert_same(says(stopped, inputs), says(alone, inputs), tolerance=0)


@pytest.mark.parametrize(
    ("target", "says_so"),
    [
        (Target(parameters=0.01), "cannot be reached: with every gate shut"),
        (Target(parameters=10_000_000), "above the model's"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_anything_trains(target: Target, says_so: str) -> None:
    model = tiny("whisper")
    with pytest.raises(TechniqueError, match=says_so) as caught:
        compress(model, [PruneJointly(target=target, training=TRAINING)], context_for(model))
    assert caught.value.hint


def test_without_training_there_is_nothing_to_learn_gates_from() -> None:
    with pytest.raises(ValidationError, match="steps must be 1 or more"):
        PruneJointly(target=Target(parameters=0.5), training=Training(steps=0))
