"""Least squares for what pruning takes away, against numpy's own, and the score that foretells its error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgecompress import PruneFfn, PruneHeads
from edgecompress.model import Model
from edgecompress.model.linear import dense_weight
from edgecompress.techniques import Context, compress
from edgecompress.techniques.compensation import least_squares, reconstruction
from edgecompress.techniques.scored import fold_mean
from edgecompress.techniques.statistics import Moments, moments
from tests.library import assert_same, says
from tests.models import FAMILIES, HEADS, HIDDEN, UNITS, example, noise_clip, tiny

CLIPS = [noise_clip(1.2, seed) for seed in range(3)]
WIDTH = {"down": 1, "out_proj": HIDDEN // HEADS}


def heard(model: Model, matrix: str) -> torch.Tensor:
    """What the calibration clips put into a matrix of layer 1, over the frames they fill: (frames, width), float64."""
    frames: list[torch.Tensor] = []
    hook = model.layers[1].matrix(matrix).register_forward_pre_hook(lambda module, args: frames.append(args[0]))
    with torch.no_grad():
        for clip in CLIPS:
            model.encode(model.features(clip))
            frames[-1] = frames[-1][0, : model.filled_frames(clip)]
    hook.remove()
    return torch.cat(frames).double()


def seen(model: Model, matrix: str) -> Moments:
    return moments(model, Context(clips=CLIPS), "test", [(model.layers[1], matrix)])[1, matrix]


def error(model: Model, dense: Model, matrix: str, frames: torch.Tensor) -> float:
    """Mean squared error of layer 1's matrix against the dense one's, summed over outputs."""
    difference = torch.zeros(())
    for sign, one in ((1, dense), (-1, model)):
        linear = one.layers[1].matrix(matrix)
        difference = difference + sign * (frames @ dense_weight(linear).double().T + linear.bias.double())  # type: ignore
    return float(difference.square().sum(1).mean().detach())


def columns(matrix: str, groups: range) -> list[int]:
    return [group * WIDTH[matrix] + i for group in groups for i in range(WIDTH[matrix])]


KEPT = {"down": columns("down", range(10, 58)), "out_proj": columns("out_proj", range(1, 3))}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("matrix", ["down", "out_proj"])
def test_without_a_ridge_it_is_the_least_squares_solution(family: str, matrix: str) -> None:
    model = tiny(family)
    frames, dense = heard(model, matrix), model.clone()
    said = dense.layers[1].matrix(matrix)(frames.float()).detach().double().numpy()
    with_one = np.hstack([frames[:, KEPT[matrix]].numpy(), np.ones((len(frames), 1))])
    wanted, *_ = np.linalg.lstsq(with_one, said, rcond=None)
    least_squares(model.layers[1], matrix, KEPT[matrix], seen(model, matrix), ridge=0)
    best = float(np.square(with_one @ wanted - said).sum(1).mean())
    rounding = 2e-5 * float(np.square(said - said.mean(0)).sum(1).mean())  # the moments are products of float32
    assert error(model, dense, matrix, frames) == pytest.approx(best, rel=1e-3, abs=rounding)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("matrix", ["down", "out_proj"])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0, 1e6])
def test_on_calibration_audio_it_is_never_worse_than_the_mean_alone(family: str, matrix: str, ridge: float) -> None:
    model = tiny(family)
    frames, dense, folded, about = heard(model, matrix), model.clone(), model.clone(), seen(model, matrix)
    removed = [i for i in range(frames.shape[1]) if i not in KEPT[matrix]]
    fold_mean(folded.layers[1], matrix, removed, about.mean)
    with torch.no_grad():
        folded.layers[1].matrix(matrix).weight[:, removed] = 0  # type: ignore
    least_squares(model.layers[1], matrix, KEPT[matrix], about, ridge)
    ours, mean = error(model, dense, matrix, frames), error(folded, dense, matrix, frames)
    assert ours <= mean * (1 + 1e-5)
    assert ridge > 1 or ours < 0.9 * mean


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_fitted_and_then_sliced_says_what_it_said_before_slicing(family: str) -> None:
    model = tiny(family)
    least_squares(model.layers[1], "down", KEPT["down"], seen(model, "down"))
    masked = says(model, example(model))
    model.keep_units(1, KEPT["down"])
    assert_same(says(model, example(model)), masked)


def test_keeping_everything_changes_nothing_and_keeping_nothing_leaves_the_mean() -> None:
    model = tiny("hubert")
    about, before = seen(model, "down"), model.layers[1].down.bias.detach().clone()  # type: ignore
    weight = dense_weight(model.layers[1].down).detach().clone()
    least_squares(model.layers[1], "down", range(UNITS), about)
    assert torch.equal(dense_weight(model.layers[1].down), weight)
    least_squares(model.layers[1], "down", [], about)
    bias = model.layers[1].down.bias
    assert torch.allclose(bias, before + (weight.double() @ about.mean).float(), atol=1e-5)  # type: ignore


@pytest.mark.parametrize("matrix", ["down", "out_proj"])
def test_a_factored_matrix_keeps_its_rank_and_is_fitted_as_well(matrix: str) -> None:
    model = tiny("wavlm")
    model.factor(1, matrix, 12)  # type: ignore[arg-type]
    twin = model.clone()
    with torch.no_grad():
        plain = torch.nn.Linear(twin.layers[1].matrix(matrix).in_features, HIDDEN)
        plain.weight.copy_(dense_weight(twin.layers[1].matrix(matrix)))
        plain.bias.copy_(twin.layers[1].matrix(matrix).bias)  # type: ignore[arg-type]
    twin.layers[1].replace(matrix, plain)
    about = seen(model, matrix)
    for one in (model, twin):
        least_squares(one.layers[1], matrix, KEPT[matrix], about)
    ours, theirs = model.layers[1].matrix(matrix), twin.layers[1].matrix(matrix)
    assert ours.rank == 12
    assert torch.allclose(dense_weight(ours), dense_weight(theirs), atol=1e-5)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-5)  # type: ignore[arg-type]


def test_inputs_that_are_alike_or_never_move_do_no_harm() -> None:
    model, about = tiny("hubert"), Moments(joint=True)
    one = torch.randn(1, 50, 1)
    about.add(torch.cat([one.expand(1, 50, 40), torch.ones(1, 50, UNITS - 40)], dim=-1))
    least_squares(model.layers[0], "down", range(0, UNITS, 2), about, ridge=0)
    assert torch.isfinite(dense_weight(model.layers[0].down)).all()
    assert torch.isfinite(reconstruction(model.layers[0], "down", 1, about)).all()


@pytest.mark.parametrize("family", ["hubert", "whisper"])
@pytest.mark.parametrize("matrix", ["down", "out_proj"])
def test_the_reconstruction_score_is_the_error_that_is_left_once_the_part_is_gone(family: str, matrix: str) -> None:
    model = tiny(family)
    frames, about = heard(model, matrix), seen(model, matrix)
    found = reconstruction(model.layers[1], matrix, WIDTH[matrix], about, ridge=1e-5)
    groups = frames.shape[1] // WIDTH[matrix]
    assert found.shape == (groups,)
    for group in (0, 2, groups - 1):
        twin, gone = model.clone(), columns(matrix, range(group, group + 1))
        kept = [i for i in range(frames.shape[1]) if i not in gone]
        least_squares(twin.layers[1], matrix, kept, about, ridge=1e-5)
        left = error(twin, model, matrix, frames)
        assert left == pytest.approx(float(found[group]), rel=0.1, abs=1e-5)


def test_a_unit_that_another_one_repeats_is_the_first_to_go() -> None:
    model = tiny("hubert")
    up = model.layers[1].up
    with torch.no_grad():
        up.weight[7], up.bias[7] = up.weight[30], up.bias[30]  # type: ignore
        model.layers[1].down.weight[:, [7, 30]] *= 3  # type: ignore[index, operator]
    score = reconstruction(model.layers[1], "down", 1, seen(model, "down"), ridge=1e-5)
    assert set(score.argsort()[:2].tolist()) == {7, 30}


@pytest.mark.parametrize(("kind", "matrix"), [(PruneFfn, "down"), (PruneHeads, "out_proj")])
def test_parts_chosen_by_reconstruction_are_made_up_for_by_those_left(kind: Any, matrix: str) -> None:
    model = tiny("whisper")
    by_hand, width = model.clone(), WIDTH[matrix]
    score = reconstruction(model.layers[1], matrix, width, seen(model, matrix))
    kept = sorted(score.argsort()[len(score) // 2 :].tolist())
    least_squares(
        by_hand.layers[1], matrix, [part * width + i for part in kept for i in range(width)], seen(model, matrix)
    )
    compress(model, [kind(ratio=0.5, score="reconstruction")], Context(clips=CLIPS))
    assert list(model.layers[1].units if matrix == "down" else model.layers[1].heads) == kept
    left = dense_weight(by_hand.layers[1].matrix(matrix))
    assert torch.allclose(dense_weight(model.layers[1].matrix(matrix)), left[:, left.any(0)], atol=1e-6)
    assert torch.allclose(model.layers[1].matrix(matrix).bias, by_hand.layers[1].matrix(matrix).bias, atol=1e-6)  # type: ignore


def test_least_squares_after_l1_leaves_less_error_than_the_mean() -> None:
    outputs, inputs = {}, [tiny("whisper").features(clip) for clip in CLIPS]
    for compensate in (None, "mean", "least_squares"):
        model = tiny("whisper")
        if compensate:
            compress(model, [PruneFfn(ratio=0.25, compensate=compensate)], Context(clips=CLIPS))
        with torch.no_grad():
            outputs[compensate] = torch.cat([model.encode(one)[0, :60] for one in inputs])
    errors = {key: float((value - outputs[None]).norm()) for key, value in outputs.items()}
    assert errors["least_squares"] < 0.8 * errors["mean"]
