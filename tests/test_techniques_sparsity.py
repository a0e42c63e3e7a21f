"""Zeros: which weights become zero by each score, scope and pattern; that they stay zero, and are exactly as many."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from edgecompress import Factorize, PruneFfn, PruneWeights, cost
from edgecompress.model import Model, load, save
from edgecompress.model.layer import ATTENTION_MATRICES, FFN_MATRICES
from edgecompress.techniques import Context, compress, recovery
from edgecompress.techniques.sparsity import (
    HeldMasks,
    apportion,
    falls,
    lowest_of_groups,
    pieces_of,
    smallest_of_all,
    smallest_of_rows,
)
from edgecompress.training.settings import MatchStates, Training
from tests.models import FAMILIES, noise_clip, prunable, tiny

CLIPS = [noise_clip(0.3 + seed / 20, seed) for seed in range(4)]


def short(steps: int = 3, **more: Any) -> Training:
    values = {"learning_rate": 1e-2, "batch_seconds": 1.0, "crop_seconds": 0.5, "objective": MatchStates(layers="last")}
    return Training(steps=steps, **{**values, **more})


def context_for(model: Model, **more: Any) -> Context:
    return Context(clips=CLIPS, seed=3, source=model.clone(), **more)


def zeros_of(model: Model) -> torch.Tensor:
    return torch.cat([(tensor == 0).reshape(-1) for tensor in prunable(model)])


def matrices(model: Model) -> list[nn.Linear]:
    return [layer.matrix(name) for layer in model.layers for name in (*ATTENTION_MATRICES, *FFN_MATRICES)]  # type: ignore[misc]


# --- fields ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ratio": 1.0},
        {"rounds": [0.5, 1.0]},
        {"ratio": 0.5, "pattern": "2:4"},
        {"rounds": [0.5, 0.6], "pattern": "2:4"},
        {"rounds": 3, "pattern": "2:4"},
        {"pattern": "4:4"},
        {"pattern": "5:4"},
        {"pattern": "two of four"},
        {"pattern": "2:4", "scope": "layer"},
        {"target": {"macs": 0.5}},
        {"ratio": 0.5, "rounds": 3, "converged": 0.001},
        {"ratio": 0.5, "score": "luck"},
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneWeights(**fields)


# --- scores and scopes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scope", ["global", "layer", "row"])
@pytest.mark.parametrize("score", ["magnitude", "activation"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.777])
def test_every_scope_and_score_makes_exactly_the_asked_share_zero(ratio: float, score: Any, scope: Any) -> None:
    model = tiny("hubert")
    (step,) = compress(model, [PruneWeights(ratio=ratio, score=score, scope=scope)], Context(clips=CLIPS))
    candidates = [p.tensor for p in pieces_of(model) if p.is_matrix or score == "magnitude"]
    total = sum(tensor.numel() for tensor in candidates)
    assert sum(int((tensor == 0).sum()) for tensor in candidates) == round(ratio * total)
    assert step.after.parameters.nonzero == step.before.parameters.nonzero - round(ratio * total)


def test_layer_scope_takes_the_smallest_of_each_layer() -> None:
    model = tiny("hubert")
    with torch.no_grad():
        for tensor in model.layers[1].module.parameters():
            tensor.mul_(100)
    before = [[p.tensor.detach().abs().clone() for p in pieces_of(model) if p.layer == n] for n in range(3)]
    compress(model, [PruneWeights(ratio=0.3, scope="layer")])
    for number, old in enumerate(before):
        zero = torch.cat([(p.tensor == 0).reshape(-1) for p in pieces_of(model) if p.layer == number])
        sizes = torch.cat([each.reshape(-1) for each in old])
        assert abs(int(zero.sum()) - 0.3 * zero.numel()) < 1
        assert sizes[zero].max() <= sizes[~zero].min()


@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_weighs_each_weight_by_the_norm_of_its_input_within_its_row(family: str) -> None:
    """Sun et al., 2023: |W| times the norm of the input's channel, the lowest of every output's row go; not biases."""
    model = tiny(family)
    dense = model.clone()
    seen: dict[int, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, i=i: seen.setdefault(i, []).append(args[0][0].detach()))
        for i, module in enumerate(matrices(dense))
    ]
    for clip in CLIPS:
        start = {i: len(rows) for i, rows in seen.items()}
        with torch.no_grad():
            dense.encode(dense.features(clip))
        for i, rows in seen.items():
            rows[start.get(i, 0) :] = [row[: dense.filled_frames(clip)] for row in rows[start.get(i, 0) :]]
    for hook in hooks:
        hook.remove()
    compress(model, [PruneWeights(ratio=0.5, score="activation")], Context(clips=CLIPS))
    for i, (pruned, old) in enumerate(zip(matrices(model), matrices(dense), strict=True)):
        score = old.weight.detach().abs() * torch.cat(seen[i]).norm(dim=0)
        for row, zero in zip(score, pruned.weight == 0, strict=True):
            assert int(zero.sum()) == len(row) // 2
            assert row[zero].max() <= row[~zero].min() * (1 + 1e-4)
        assert old.bias is None or torch.equal(pruned.bias, old.bias)


def test_weights_of_factored_matrices_are_pruned_too() -> None:
    for score in ("magnitude", "activation"):
        model = tiny("hubert")
        compress(model, [Factorize(rank=6), PruneWeights(ratio=0.5, score=score)], Context(clips=CLIPS))  # type: ignore[arg-type]
        for layer in model.layers:
            assert all(int((part == 0).sum()) > 0 for part in layer.up.parameters() if part.ndim == 2)


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize("score", ["magnitude", "activation"])
def test_a_pattern_keeps_so_many_of_every_group_of_neighbouring_inputs(score: Any, keep: int, of: int) -> None:
    model, dense = tiny("hubert"), tiny("hubert")
    (step,) = compress(model, [PruneWeights(pattern=f"{keep}:{of}", score=score)], Context(clips=CLIPS))
    for pruned, old in zip(matrices(model), matrices(dense), strict=True):
        groups = (pruned.weight != 0).reshape(-1, of)
        assert bool((groups.sum(1) == keep).all())
        assert torch.equal(pruned.weight[pruned.weight != 0], old.weight[pruned.weight != 0])
        if score == "magnitude":
            sizes = old.weight.abs().reshape(-1, of)
            assert bool((sizes.masked_fill(groups, 0).amax(1) <= sizes.masked_fill(~groups, 9e9).amin(1)).all())
    total = sum(one.weight.numel() for one in matrices(model))
    assert step.notes[0].startswith(f"{total * (of - keep) // of:,} of {total:,} prunable weights are zero")


def test_a_rest_that_fills_no_group_stays_and_is_told() -> None:
    model = tiny("hubert")
    steps = compress(model, [PruneFfn(ratio=1 / 96), PruneWeights(pattern="2:4")])
    for layer in model.layers:
        assert bool((layer.matrix("down").weight[:, 92:] != 0).all())  # type: ignore[union-attr, index]
    assert steps[1].notes[0] == f"{3 * 64 * 3:,} weights at the ends of rows fill no whole group and stay"


# --- rounds ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("score", "scope"), [("magnitude", None), ("magnitude", "layer"), ("activation", None)])
def test_what_is_zero_stays_zero_through_all_rounds_and_nothing_regrows(
    score: Any, scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every round and every training: the zeros of before are among those of now, and are as many as asked."""
    model = tiny("hubert")
    seen: list[torch.Tensor] = []
    train = recovery.recover

    def watched(model: Model, *rest: Any, **more: Any) -> Any:
        seen.append(zeros_of(model))
        before = [tensor.detach().clone() for tensor in prunable(model)]
        history = train(model, *rest, **more)
        seen.append(zeros_of(model))
        moved = [bool((a != b).any()) for a, b in zip(before, prunable(model), strict=True)]
        assert sum(moved) > len(moved) / 2, "the others have trained"
        return history

    monkeypatch.setattr(recovery, "recover", watched)
    technique = PruneWeights(rounds=(0.2, 0.5, 0.55, 0.8), score=score, scope=scope, recovery=short(weight_decay=0.1))
    compress(model, [technique], context_for(model))
    assert len(seen) == 8
    for earlier, later in pairwise(seen):
        assert bool(later[earlier].all())
    candidates = sum(p.tensor.numel() for p in pieces_of(model) if p.is_matrix or score == "magnitude")
    assert [int(zero.sum()) for zero in seen[1::2]] == [round(s * candidates) for s in technique.shares]


def test_zeros_are_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny("hubert")
    compress(model, [PruneWeights(ratio=0.5, rounds=2, recovery=short())], context_for(model))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert torch.equal(zeros_of(again), zeros_of(model))
    assert cost.measure(again) == cost.measure(model)


def test_the_optimiser_remembers_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    train = recovery.recover

    def watched(*rest: Any, optimizer_state: Any = None) -> Any:
        history = train(*rest, optimizer_state=optimizer_state)
        given.append((optimizer_state, history.optimizer_state))  # type: ignore[union-attr]
        return history

    monkeypatch.setattr(recovery, "recover", watched)
    model = tiny("hubert")
    compress(model, [PruneWeights(ratio=0.6, rounds=3, recovery=short())], context_for(model))
    assert given[0][0] is None
    assert given[1][0] is given[0][1]
    assert given[2][0] is given[1][1]
    counts = [next(iter(after.values()))["step"].item() for _, after in given]
    assert counts == [3, 6, 9]


# --- the gate --------------------------------------------------------------------------------------------------------
def test_the_gate_looks_at_the_smoothed_loss_of_the_last_three_fifths() -> None:
    assert falls([1 - n / 100 for n in range(100)], 0.001)
    assert not falls([1 - n / 100 for n in range(100)], 0.7)
    assert not falls([1.0] * 100, 0.001)
    assert not falls([max(0.0, 1 - n / 5) for n in range(100)], 0.001)  # fell at the beginning only
    assert not falls([n / 100 for n in range(100)], 0.001)
    assert falls([1 - n / 100 + (-1) ** n for n in range(100)], 0.1)  # noise twice as high as the fall
    assert not falls([], 0.001)


@pytest.mark.parametrize("patience", [1, 2])
def test_a_round_is_put_off_while_the_loss_falls_but_not_for_ever(patience: int) -> None:
    model = tiny("hubert")
    technique = PruneWeights(ratio=0.6, rounds=2, converged=1e-9, patience=patience, recovery=short(10))
    (step,) = compress(model, [technique], context_for(model))
    assert step.training is not None
    assert step.training["trainings"] == 2 + patience  # the last round has no round after it to put off
    assert any(note.startswith("round-1: the loss still falls by more than 1e-09") for note in step.notes)
    assert f"round 1: the loss still falls, but it was put off {patience} times" in step.notes
    calm = tiny("hubert")
    technique = PruneWeights(ratio=0.6, rounds=2, converged=100.0, patience=patience, recovery=short(10))
    (step,) = compress(calm, [technique], context_for(calm))
    assert step.training is not None
    assert step.training["trainings"] == 2


# --- pieces ----------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_shares_add_up_and_never_fall_as_more_is_asked_for(sizes: list[int], data: st.DataObject) -> None:
    counts = range(sum(sizes) + 1)
    before = [0] * len(sizes)
    for count in counts:
        shares = apportion(count, sizes)
        assert sum(shares) == count
        assert all(0 <= old <= new <= size for old, new, size in zip(before, shares, sizes, strict=True))
        before = shares


@pytest.mark.parametrize("order", ["random", "sorted", "few values"])
def test_a_threshold_found_by_a_sample_is_the_one_that_sorting_finds(order: str) -> None:
    """Sorted weights and few distinct ones make a sample say too little: the answer must not hang on it."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(90_000, generator=generator)
    if order == "sorted":
        flat = flat.sort().values
        flat[::101] = 0  # where the sample looks there is nothing to see
    if order == "few values":
        flat = (flat * 2).round()
    tensors = list(flat.split([50_000, 39_000, 1_000]))
    for count in (1, 100, 45_000, 89_999, 90_000):
        mask = torch.cat(smallest_of_all(tensors, count))
        wanted = torch.zeros(90_000, dtype=torch.bool)
        wanted[flat.abs().argsort(stable=True)[:count]] = True
        assert torch.equal(mask, wanted)


def test_rows_differ_by_one_zero_at_most() -> None:
    scores = [torch.rand(7, 11), torch.rand(5, 3), torch.rand(4)]
    for count in (0, 1, 40, 95, 96):
        masks = smallest_of_rows(scores, count)
        assert sum(int(mask.sum()) for mask in masks) == count
        for mask in masks:
            rows = mask.reshape(-1, mask.shape[-1]).sum(1)
            assert int(rows.max() - rows.min()) <= 1


def test_a_mask_by_groups_takes_the_lowest_of_each() -> None:
    score = torch.tensor([[4.0, 1, 2, 3, 9], [5, 6, 7, 8, 0]])
    assert lowest_of_groups(score, 2, 4).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
    ]


def test_held_weights_are_zero_after_a_step_whatever_the_optimiser_did() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    zero = torch.eye(3, 4).bool()
    held = HeldMasks([weight], [zero])
    weight.data.add_(5)
    held.after_step(0)
    assert torch.equal(weight == 0, zero)
    assert bool((weight[~zero] == 6).all())


def test_gradients_of_zeros_count_neither_in_clipping_nor_in_memory() -> None:
    weight = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    HeldMasks([weight], [torch.tensor([True, False])]).before_clipping()
    assert weight.grad.tolist() == [0.0, 4.0]
