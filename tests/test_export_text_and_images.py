"""BERT and ViT as files: token numbers with a mask, images, parity with torch, and a record without audio."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgecompress.errors import ExportError, ModelError, ParityError
from edgecompress.exporters import Options, Order, export, runner
from edgecompress.model import Model
from edgecompress.model.forms import form_of
from edgecompress.model.text_and_image_forms import Answer
from edgecompress.records import Artifact
from tests.calling import Call
from tests.library import library_network
from tests.models import LAYERS, OTHER_FAMILIES, OTHER_NAMES, OTHER_VARIANTS, clips_of, noise_clip, tiny

every_variant = pytest.mark.parametrize(("family", "variant"), OTHER_VARIANTS, ids=OTHER_NAMES)


def edited(model: Model) -> Model:
    model.keep_heads(0, [])
    model.keep_heads(1, [0, 3])
    model.keep_units(0, [])
    model.factor(2, "q_proj", 5)
    model.factor(2, "out_proj", 5)
    model.keep_layers([0, 2])
    return model


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@every_variant
def test_every_head_is_exported_with_parity_and_without_what_nobody_asks(
    family: str, variant: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    for model in (tiny(family, **variant), edited(tiny(family, **variant))):
        record = export(model, "onnx", tmp_path / "a", precision=precision)
        assert record == Artifact.read(tmp_path / "a" / "artifact.json")
        assert record.audio is None
        assert {case.batch for case in record.parity.cases} == {1, 3}
        assert len([case for case in record.parity.cases if case.batch == 1]) >= 6
        assert (record.cost.seconds, "pooler" in record.cost.macs.parts) == (
            None,
            variant["head"] == "ForSequenceClassification",
        )
        if precision == "fp32":
            assert max(case.relative for case in record.parity.cases) < 1e-5
            graph = onnx.load(str(tmp_path / "a" / record.model_file)).graph
            assert sum(int(np.prod(each.dims)) for each in graph.initializer) == record.cost.parameters.total


def test_a_text_in_company_gets_the_answer_it_gets_alone_from_the_file_too(tmp_path: Path) -> None:
    model = tiny("bert", head="ForTokenClassification")
    record = export(model, "onnx", tmp_path / "a")
    run = runner("onnx", tmp_path / "a" / record.model_file)
    texts = clips_of(model)
    batch = model.collate(texts)
    together = run({"input_ids": batch.values.numpy(), "attention_mask": batch.mask.long().numpy()})["logits"]
    for row, text in enumerate(texts):
        alone = model(torch.from_numpy(text)[None]).logits[0].detach().numpy()
        assert np.abs(together[row, : len(text)] - alone).max() < 1e-5


def test_a_file_that_pays_no_heed_to_its_mask_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Answer.forward

    def heedless(self: Answer, *inputs: torch.Tensor) -> torch.Tensor:
        return honest(self, inputs[0], torch.ones_like(inputs[0]) + 0 * inputs[1])

    monkeypatch.setattr(Answer, "forward", heedless)
    with pytest.raises(ParityError, match="batch 3"):
        export(tiny("bert"), "onnx", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_what_only_audio_has_is_refused(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    with pytest.raises(ModelError, match=f"{family} takes (tokens|images): it has no lengths input"):
        export(model, "onnx", tmp_path / "a", options=Options(padded=True))
    with pytest.raises(ModelError, match=f"{family} has no form that takes 'waveform'"):
        export(model, "onnx", tmp_path / "a", input="waveform")
    order = Order(model, form_of(model), "fp32", tmp_path, options=Options(seconds=(1.0,)))
    with pytest.raises(ExportError, match="no length in seconds"):
        order.lengths()


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_inputs_of_the_familys_own_kind_calibrate_a_file(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    form = form_of(model)

    def order(**given: Any) -> Order:
        return Order(model, form, "int8-static", tmp_path, **given)

    clips = clips_of(model)
    found = order(clips=clips).calibration()
    assert [set(feeds) for feeds in found] == [{port.name for port in form.inputs}] * len(clips)
    assert same(found, order(feeds=found).calibration())
    assert np.array_equal(found[1][form.input_name][0], clips[1])
    with pytest.raises(ExportError, match=f"calibration clip 1: {family} takes (tokens|images), not audio"):
        order(clips=[noise_clip(0.5)]).calibration()


def same(some: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]]) -> bool:
    def equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
        return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)

    return len(some) == len(others) and all(equal(one, other) for one, other in zip(some, others, strict=True))


JOB = """
name = "words"
output = "{output}"
[model]
path = "{model}"
[[recipe]]
name = "heads"
[[recipe.technique]]
kind = "prune_heads"
ratio = 0.5
[[export]]
format = "onnx"
precisions = ["fp32"]
[measure]
devices = ["local"]
threads = 1
repetitions = 1
warmup_s = 0.05
min_samples = 5
min_seconds = 0.05
max_seconds = 1.0
"""


def test_a_job_of_text_needs_no_audio_from_model_to_report(call: Call, tmp_path: Path) -> None:
    library_network("bert").save_pretrained(tmp_path / "bert")
    (tmp_path / "job.toml").write_text(JOB.format(output=tmp_path / "run", model=tmp_path / "bert"))
    assert call("run", tmp_path / "job.toml").status == 0
    measured = [json.loads(file.read_text()) for file in (tmp_path / "run" / "measurements").glob("*.json")]
    assert len(measured) == 2
    assert {one["audio_seconds"] for one in measured} == {None}
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "heads" in report
    assert f"{LAYERS * (4 * 64 * 64 + 2 * 40 * 64 + 2 * 64 * 96) * 40 / 1e9:.3g}" in report  # GMAC of the dense one
