"""Tasks: fidelity of any encoder, word errors and slots of Whisper; and the real model on real orders where they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgecompress import DropLayers, TrimContext, paths, plugins
from edgecompress.audio import Clip, read_clip
from edgecompress.errors import AudioError, ModelError
from edgecompress.model import load
from edgecompress.tasks import Subject, in_torch
from edgecompress.tasks.fidelity import Fidelity
from edgecompress.tasks.whisper import SlotRecall, WordErrorRate, plain
from edgecompress.techniques import compress
from tests.models import FAMILIES, noise_clip, tiny

CLIPS = [Clip(f"{number}.wav", noise_clip(seconds, number)) for number, seconds in enumerate((0.5, 0.3, 0.9))]


def value(result: Any) -> float:
    """A score as it is read: the sums' ratio."""
    total: float = sum(item.numerator for item in result.items) / sum(item.denominator for item in result.items)
    return total


def test_every_task_is_found_by_its_kind() -> None:
    for kind, task in (("fidelity", Fidelity), ("wer", WordErrorRate), ("slot_recall", SlotRecall)):
        assert plugins.find("tasks", kind) is task
        assert task.kind == kind


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        (Fidelity, {"metric": "sine"}),
        (Fidelity, {"layers": 3}),
        (WordErrorRate, {"reference": "oracle"}),
        (SlotRecall, {"truths": "../../secrets.json"}),
        (SlotRecall, {"truths": "slots.csv"}),
    ],
)
def test_fields_that_make_no_sense_are_refused(task: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task(**fields)


# --- fidelity --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["Model", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_entirely_faithful_to_itself(family: str, head: str) -> None:
    if head == "head":
        head = "ForAudioClassification" if family == "whisper" else "ForCTC"
    model = tiny(family, head=head)
    subject, source = in_torch(model.clone()), in_torch(model)
    cosine = Fidelity().score(subject, source, CLIPS, None)
    error = Fidelity(metric="relative_error").score(subject, source, CLIPS, None)
    assert (value(cosine), value(error)) == (pytest.approx(1.0, abs=1e-12), 0.0)
    assert (cosine.metric, cosine.higher_is_better) == ("fidelity_cosine", True)
    assert (error.metric, error.higher_is_better) == ("fidelity_relative_error", False)
    assert [item.clip for item in cosine.items] == ["0.wav", "1.wav", "2.wav"]


def test_a_scaled_output_has_the_same_direction_and_a_known_error() -> None:
    model = tiny("hubert")
    source = in_torch(model)
    louder = Subject(model, lambda inputs: 1.25 * source.run(inputs))
    turned = Subject(model, lambda inputs: -source.run(inputs))
    error = Fidelity(metric="relative_error")
    assert value(Fidelity().score(louder, source, CLIPS, None)) == pytest.approx(1.0, abs=1e-6)
    assert value(error.score(louder, source, CLIPS, None)) == pytest.approx(0.25, rel=1e-5)
    assert value(Fidelity().score(turned, source, CLIPS, None)) == pytest.approx(-1.0, abs=1e-6)
    assert value(error.score(turned, source, CLIPS, None)) == pytest.approx(2.0, rel=1e-5)


def test_cosine_is_the_mean_over_frames_and_error_the_ratio_of_norms() -> None:
    model = tiny("wavlm")
    other = tiny("wavlm", seed=1)
    result = Fidelity().score(in_torch(other), in_torch(model), CLIPS[:1], None)
    with torch.no_grad():
        theirs, ours = (each.encode(each.features(CLIPS[0].samples))[0].double().numpy() for each in (model, other))
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert result.items[0].denominator == len(cosines) == 24
    assert value(result) == pytest.approx(cosines.mean(), abs=1e-6)
    wanted = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert result.items[0].detail["relative_error"] == pytest.approx(wanted, rel=1e-5)


def test_a_compressed_model_is_less_faithful() -> None:
    model = tiny("hubert")
    dropped = model.clone()
    compress(dropped, [DropLayers(layers=(1,))])
    result = Fidelity().score(in_torch(dropped), in_torch(model), CLIPS, None)
    assert value(result) < 0.95


def test_whisper_is_compared_in_the_frames_that_the_clip_fills() -> None:
    model = tiny("whisper")
    source, trimmed = in_torch(model), model.clone()
    compress(trimmed, [TrimContext(seconds=0.6)])
    result = Fidelity().score(in_torch(trimmed), source, CLIPS, None)
    assert [item.denominator for item in result.items] == [25, 15, 30]  # 20 ms a frame; the last clip is cut off

    def spoilt_padding(inputs: torch.Tensor) -> torch.Tensor:
        answer = source.run(inputs).clone()
        answer[:, 45:] = 0
        return answer

    assert value(Fidelity().score(Subject(model, spoilt_padding), source, CLIPS, None)) == pytest.approx(1.0)


def test_a_clip_is_encoded_once_for_any_number_of_tasks() -> None:
    model = tiny("hubert")
    asked = []
    base = in_torch(model).run
    subject = Subject(model, lambda inputs: asked.append(inputs.shape) or base(inputs))  # type: ignore[func-returns-value]
    told: list[str] = []
    for metric in ("cosine", "relative_error"):
        Fidelity(metric=metric).score(subject, in_torch(model), CLIPS, None, told.append)  # type: ignore[arg-type]
    assert len(asked) == len(CLIPS)
    assert told == ["encoded 1 of 3 clips", "encoded 2 of 3 clips", "encoded 3 of 3 clips"]


def test_whisper_answers_are_the_same_in_any_batch_size() -> None:
    model = tiny("whisper")
    run = in_torch(model).run
    one, many = Subject(model, run, batch_size=1).outputs(CLIPS), Subject(model, run, batch_size=2).outputs(CLIPS)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, many, strict=True))
    assert [tuple(answer.shape) for answer in many] == [(1, 100, 64)] * 3


# --- word error rate and slots, on hand-made transcripts -------------------------------------------------------------
@dataclass
class Writer:
    """A subject that has already written: clip name -> text."""

    said: dict[str, str]
    model: Any = field(
        default_factory=lambda: SimpleNamespace(architecture="WhisperForConditionalGeneration", max_seconds=2.0)
    )

    def texts(self, clips: list[Any], progress: Any = None) -> list[str]:
        return [self.said[clip.name] for clip in clips]


def written(**said: str) -> tuple[Any, list[Any]]:
    return Writer(said), [
        SimpleNamespace(name=name, samples=np.zeros(48000 if name == "b" else 16000)) for name in said
    ]


def test_word_errors_are_counted_against_what_the_source_writes() -> None:
    source, clips = written(a="A large latte, please.", b="Two shots of espresso", c="", d="no milk")
    subject, _ = written(a="a large LATTE please", b="too shots espresso now", c="thank you", d="")
    result = WordErrorRate().score(subject, source, clips, None)
    assert [(item.clip, item.numerator, item.denominator) for item in result.items] == [
        ("a", 0, 4),
        ("b", 3, 4),  # two -> too, of is gone, now is new
        ("d", 2, 2),
    ]
    assert result.skipped == {"c": "the reference has no words"}
    assert value(result) == pytest.approx(5 / 10)
    assert not result.higher_is_better
    assert result.items[1].detail == {"text": "too shots espresso now", "reference": "Two shots of espresso"}


def test_word_errors_can_be_counted_against_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text('path,text\na,"One, two."\nb,three\n')
    subject, clips = written(a="one too", b="three", c="four")
    result = WordErrorRate(reference="manifest").score(subject, subject, clips, str(tmp_path))
    assert [(item.numerator, item.denominator) for item in result.items] == [(1, 2), (0, 1)]
    assert result.skipped == {"c": "the reference has no words"}
    assert result.conditions["reference"] == "manifest text"
    assert result.conditions["clips_longer_than_that"] == 1  # b, of 3 s, where the encoder hears 2
    assert WordErrorRate(reference="manifest").truth_files == ("manifest.csv",)


@pytest.mark.parametrize("text", [None, "path,label\na,x\n", "", "path,text\n"])
def test_a_manifest_without_texts_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "manifest.csv").write_text(text)
    subject, clips = written(a="one")
    with pytest.raises(AudioError) as caught:
        WordErrorRate(reference="manifest").score(subject, subject, clips, str(tmp_path))
    assert caught.value.hint


ORDERS = {
    "a": {
        "intent": "orderDrink",
        "slots": {"size": "twelve ounce", "coffeeDrink": "iced mocha", "roast": "dark roast"},
    },
    "b": {"intent": "orderDrink", "slots": {"coffeeDrink": "latte"}},
    "c": {"intent": "orderDrink", "slots": {}},
}


def test_a_slot_is_recalled_when_its_words_stand_in_the_text_in_sequence(tmp_path: Path) -> None:
    (tmp_path / "barista_slots.json").write_text(json.dumps(ORDERS))
    subject, clips = written(a="A 12 ounce Iced, mocha; roast dark.", b="chocolattes", c="hello", d="latte")
    result = SlotRecall().score(subject, subject, clips, str(tmp_path))
    assert [(item.clip, item.numerator, item.denominator) for item in result.items] == [("a", 1, 3), ("b", 0, 1)]
    assert result.items[0].detail["missed"] == ["size", "roast"]
    assert set(result.skipped) == {"c", "d"}
    as_words = SlotRecall(numbers_as_words=True).score(subject, subject, clips, str(tmp_path))
    assert as_words.items[0].numerator == 2
    assert as_words.conditions["numbers_as_words"] is True


def test_text_is_compared_without_case_punctuation_and_spacing() -> None:
    assert plain("  A  double-shot, PLEASE! ") == "a double shot please"
    assert plain("12 oz, 100", numbers=True) == "twelve oz 100"


def test_missing_truths_are_refused(tmp_path: Path) -> None:
    subject, clips = written(a="latte")
    for folder in (None, str(tmp_path)):
        with pytest.raises(AudioError, match="true slots is missing") as caught:
            SlotRecall().score(subject, subject, clips, folder)
        assert caught.value.hint
    (tmp_path / "barista_slots.json").write_text(json.dumps({"other": ORDERS["a"]}))
    with pytest.raises(AudioError, match="none of the clips has slots"):
        SlotRecall().score(subject, subject, clips, str(tmp_path))


@pytest.mark.parametrize("task", [WordErrorRate(), SlotRecall()])
def test_only_a_model_that_writes_has_texts_to_score(task: Any, tmp_path: Path) -> None:
    (tmp_path / "barista_slots.json").write_text(json.dumps(ORDERS))
    for model in (tiny("hubert", head="ForCTC"), tiny("whisper")):
        subject = in_torch(model)
        with pytest.raises(ModelError, match=f"{task.kind} needs a Whisper with its decoder") as caught:
            task.score(subject, subject, CLIPS, str(tmp_path))
        assert "fidelity" in caught.value.hint


def test_words_cannot_be_read_without_a_tokenizer() -> None:
    model = tiny("whisper", head="ForConditionalGeneration")
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        in_torch(model).texts(CLIPS)


# --- real weights and real speech ------------------------------------------------------------------------------------
WHISPER = paths.expand("${EDGECOMPRESS_MODELS}/whisper-tiny.en")
SPEECH = paths.expand("${EDGECOMPRESS_SPEECH}")


@pytest.mark.skipif(not WHISPER.is_dir(), reason="EDGECOMPRESS_MODELS has no whisper-tiny.en")
@pytest.mark.skipif(
    not (SPEECH / "barista_slots.json").exists(), reason="EDGECOMPRESS_SPEECH has no barista_slots.json"
)
def test_whisper_understands_coffee_orders_and_still_does_with_its_context_trimmed() -> None:
    model = load(WHISPER)
    assert model.architecture == "WhisperForConditionalGeneration"
    assert not model.origin.source.random_weights
    truths = json.loads((SPEECH / "barista_slots.json").read_text(encoding="utf-8"))
    clips = [read_clip(SPEECH / name, name) for name in sorted(truths) if (SPEECH / name).exists()][:4]
    compress(model, [TrimContext(seconds=12)])
    subject = in_torch(model)
    recall = SlotRecall(numbers_as_words=True).score(subject, subject, clips, str(SPEECH))
    texts = {item.clip: item.detail["text"] for item in recall.items}
    assert (
        "double shot drip coffee with a bit of sweetener" in texts["barista/0334e17c-b72f-4e1a-ba76-0bb6c110ef94.flac"]
    )
    assert len(recall.items) == 4
    assert value(recall) > 0.4
    assert value(WordErrorRate().score(subject, subject, clips, None)) == 0


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a": 5}', '{"a": {"slots": 7}}'])
def test_truths_that_are_not_slots_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "barista_slots.json").write_text(text)
    subject, clips = written(a="one")
    with pytest.raises(AudioError, match="does not hold slots"):
        SlotRecall().score(subject, subject, clips, str(tmp_path))


def test_numbers_as_words_holds_for_the_truth_too_and_letters_of_any_language_stay(tmp_path: Path) -> None:
    (tmp_path / "barista_slots.json").write_text('{"a": {"slots": {"size": "12 ounce", "shots": 2}}}')
    subject, clips = written(a="A twelve ounce, two shots")
    items = SlotRecall(numbers_as_words=True).score(subject, subject, clips, str(tmp_path)).items
    assert (items[0].numerator, items[0].denominator) == (2, 2)
    assert plain("Größe: ЧАЙ_12") == "größe чай 12"
