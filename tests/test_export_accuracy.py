"""Quantisation held to a score: what costs too much of it stays in fp32, nothing else does, and the record says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress.audio import Clip, synthetic
from edgecompress.errors import ExportError, RecipeError
from edgecompress.exporters import export
from edgecompress.exporters.accuracy import Judge, groups_of
from edgecompress.exporters.parity import Runner, distances
from edgecompress.model import Model
from edgecompress.model.forms import form_of
from edgecompress.pipeline.judging import judge_of
from edgecompress.tasks.fidelity import Fidelity
from edgecompress.tasks.probe import Probe
from tests.models import noise_clip, tiny

FRAGILE = 1  # the layer whose numbers int8 cannot hold


@pytest.fixture(scope="module")
def fragile() -> Model:
    """One layer has a unit that is sixty times as loud as the others, so that eight bits hear little else."""
    model = tiny("hubert")
    layer = model.layers[FRAGILE]
    with torch.no_grad():
        layer.up.weight[0] *= 60  # type: ignore[union-attr]
        layer.down.weight[:, 0] /= 60  # type: ignore[union-attr]
    return model


def cosine_judge(model: Model, tolerated_drop: float | None) -> Judge:
    """The cosine to torch on one clip."""
    form, clip = form_of(model), noise_clip(1.0, seed=5)
    feeds = form.feeds(model, clip)
    (wanted,) = form.answer(model, feeds).values()

    def score(run: Runner) -> float:
        return distances(run(feeds)["last_hidden_state"], wanted)["cosine"]

    return Judge("fidelity", "cosine", True, 1, 1.0, score, tolerated_drop)


def test_only_the_layer_that_cannot_bear_it_stays_in_fp32(fragile: Model, tmp_path: Path) -> None:
    calibration = [noise_clip(1.0, seed=seed) for seed in (1, 2)]
    plain = export(fragile, "onnx", tmp_path / "plain", precision="int8", judge=cosine_judge(fragile, None))
    lost = 1 - plain.parity.scores[0]["file"]
    kept = export(
        fragile, "onnx", tmp_path / "kept", precision="int8", judge=cosine_judge(fragile, lost / 3),
        calibration_clips=calibration,
    )  # fmt: skip
    score, names = kept.parity.scores[0], kept.lineage["float_nodes"]
    assert 1 - score["file"] <= lost / 3
    assert (score["torch"], score["tolerated_drop"]) == (1.0, lost / 3)
    assert {group.rsplit(".", 1)[-1] for group in groups_of(names)} == {str(FRAGILE)}
    assert 0 < kept.quantized_nodes < plain.quantized_nodes
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_score_that_is_good_enough_changes_nothing(tmp_path: Path) -> None:
    model = tiny("hubert")
    plain = export(model, "onnx", tmp_path / "plain", precision="int8")
    held = export(model, "onnx", tmp_path / "held", precision="int8", judge=cosine_judge(model, 0.05))
    assert held.quantized_nodes == plain.quantized_nodes
    assert "float_nodes" not in held.lineage


def test_a_drop_that_nothing_keeps_is_an_error_and_leaves_nothing(fragile: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"int8: cosine drops by more than 1e-09 whatever stays in fp32"):
        export(
            fragile, "onnx", tmp_path / "a", precision="int8", judge=cosine_judge(fragile, 1e-9),
            calibration_clips=[noise_clip(1.0)],
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_parts_are_left_out_by_layers_and_others_alone() -> None:
    names = ["encoder.layers.0.up", "encoder.layers.0.down", "encoder.layers.10.up", "feature_projection", "lm_head"]
    assert groups_of(names) == {
        "encoder.layers.0": names[:2],
        "encoder.layers.10": names[2:3],
        "feature_projection": ["feature_projection"],
        "lm_head": ["lm_head"],
    }


def test_a_task_judges_a_file_beside_torch_on_the_same_clips(tmp_path: Path) -> None:
    model = tiny("hubert")
    clips = [Clip(f"{seed}.wav", noise_clip(0.6, seed)) for seed in range(3)]
    judge = judge_of(model, form_of(model), Fidelity(), clips, None, None)
    told = export(model, "onnx", tmp_path / "a", precision="int8", judge=judge).parity.scores
    assert [(one["task"], one["metric"], one["clips"], one["torch"]) for one in told] == [
        ("fidelity", "fidelity_cosine", 3, pytest.approx(1.0))
    ]
    assert 0.9 < told[0]["file"] < 1
    with pytest.raises(RecipeError, match="probe scores checkpoints, not files"):
        judge_of(model, form_of(model), Probe(manifest="m.csv"), clips, None, None)
    with pytest.raises(RecipeError, match="no calibration audio"):
        judge_of(model, form_of(model), Fidelity(), [], None, None)


def test_a_quantised_file_says_how_near_it_stays_to_torch_on_the_clips_it_was_given(tmp_path: Path) -> None:
    model, clips = tiny("wav2vec2"), [noise_clip(0.5, seed) for seed in range(2)]
    told = export(model, "onnx", tmp_path / "a", precision="int8", clips=clips).parity.scores
    assert (told[0]["task"], told[0]["clips"]) == ("fidelity", 2)
    assert np.isfinite(told[0]["file"])
    assert export(model, "onnx", tmp_path / "b", clips=clips).parity.scores == []


def test_a_front_end_that_cannot_bear_int8_stays_in_fp32_and_the_certificate_says_why(tmp_path: Path) -> None:
    model, clips = tiny("hubert"), synthetic(2, 0.5, seed=0).arrays
    told = export(model, "onnx", tmp_path / "a", precision="int8", clips=clips)
    kept = told.lineage["float_nodes"]
    assert {"feature_extractor.conv_layers.1.conv", "feature_projection.projection"} <= set(kept)
    assert not any("encoder.layers" in name for name in kept)
    assert "differs from torch" in told.parity.conditions["front_end_in_fp32"]
    assert min(case.cosine for case in told.parity.cases) >= 0.95
    assert told.quantized_nodes >= 18  # six matrices in each of three layers
