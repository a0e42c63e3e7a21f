"""What a job says about training: the audio, the source model that it makes, forms of an export, scores without clips."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgecompress.errors import AudioError, RecipeError
from edgecompress.job import TrainingSource
from edgecompress.pipeline import choose
from edgecompress.recipe import read_job
from edgecompress.techniques.drop_layers import DropLayers
from edgecompress.techniques.prune_heads import PruneHeads
from tests.calling import JOB

Write = Callable[[str, str], Path]
MAKES = '[[model.technique]]\nkind = "drop_layers"\nlayers = [2]\n[audio]'
TRAINS = '[training]\nfolder = "speech"\nmanifest = "manifest.csv"\ndatasets = ["digits"]\nsplit = "train"\n[audio]'


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Eight recordings of two datasets: ``a0`` to ``a3`` of digits (0 and 1 for testing), ``b0`` to ``b3`` of words."""
    folder = tmp_path / "speech"
    rows = []
    for number, name in enumerate(f"{kind}{take}" for kind in "ab" for take in range(4)):
        (folder / name[0]).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).normal(0, 0.1, 8000)
        soundfile.write(folder / name[0] / f"{name}.wav", noise, 16000)
        dataset, split = {"a": "digits", "b": "words"}[name[0]], "test" if name[1] in "01" else "train"
        rows.append({"dataset": dataset, "path": f"{name[0]}/{name}.wav", "label": name[1], "split": split})
    with (folder / "manifest.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder


def names(folder: Path, kept: tuple[Path, ...] = (), **asked: Any) -> list[str]:
    chosen = choose(TrainingSource.model_validate({"folder": str(folder), **asked}), kept)
    return [Path(name).stem for name, _ in chosen.entries]


def test_a_folder_trains_with_all_of_its_recordings(speech: Path) -> None:
    assert names(speech) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]


def test_rows_of_a_manifest_are_chosen_by_dataset_split_and_exclusion(speech: Path) -> None:
    asked: dict[str, Any] = {"manifest": "manifest.csv", "split": "train"}
    assert names(speech, **asked) == ["a2", "a3", "b2", "b3"]
    assert names(speech, **asked, datasets=["words"]) == ["b2", "b3"]
    assert names(speech, **asked, exclude=["b", "a/a2.wav"]) == ["a3"]


def test_a_limit_takes_the_same_recordings_every_time_and_others_by_another_seed(speech: Path) -> None:
    drawn = {seed: names(speech, limit=3, seed=seed) for seed in range(6)}
    assert drawn[0] == names(speech, limit=3, seed=0)
    assert {len(some) for some in drawn.values()} == {3}
    assert len({tuple(some) for some in drawn.values()}) > 1


def test_what_is_scored_is_never_trained_on_even_as_a_copy(speech: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.wav").write_bytes((speech / "b" / "b2.wav").read_bytes())
    kept = (speech / "a" / "a2.wav", tmp_path / "copy.wav")
    assert names(speech, kept, manifest="manifest.csv", split="train") == ["a3", "b3"]
    assert choose(TrainingSource(folder=str(speech)), kept).excluded == 2


def test_training_audio_is_known_by_contents_rows_and_names(speech: Path) -> None:
    def key() -> str:
        return choose(TrainingSource(folder=str(speech), manifest="manifest.csv")).sha256

    first = key()
    assert key() == first
    noise = np.random.default_rng(99).normal(0, 0.1, 8000)
    soundfile.write(speech / "a" / "a0.wav", noise, 16000)  # of the same size
    second = key()
    text = (speech / "manifest.csv").read_text()
    (speech / "manifest.csv").write_text(text.replace("digits,a/a1.wav,1", "digits,a/a1.wav,7"))
    assert len({first, second, key()}) == 3


def test_training_audio_that_is_not_there_is_refused(speech: Path) -> None:
    with pytest.raises(RecipeError, match="no such training audio folder"):
        names(speech / "absent")
    with pytest.raises(AudioError, match="nothing of dataset 'letters'"):
        names(speech, manifest="manifest.csv", datasets=["letters"])
    with pytest.raises(AudioError, match="nothing of split 'trian'") as caught:
        names(speech, manifest="manifest.csv", split="trian")
    assert "train" in caught.value.hint
    with pytest.raises(AudioError, match="no training audio is left"):
        names(speech, exclude=["a", "b"])
    with pytest.raises(AudioError, match="there is no 'bb' to exclude"):
        names(speech, exclude=["a", "bb"])


def test_a_job_says_what_to_train_on(write: Write) -> None:
    job = read_job(write("job.toml", JOB.replace("[audio]", TRAINS)))
    assert job.training == TrainingSource(folder="speech", manifest="manifest.csv", datasets=("digits",), split="train")


def test_a_job_may_make_its_source_model_first(write: Write) -> None:
    job = read_job(write("job.toml", JOB.replace("[audio]", MAKES)))
    assert job.source_techniques == (DropLayers(layers=(2,)),)
    assert job.recipes[1].techniques == (PruneHeads(ratio=0.5),)
    assert job.model_dump(mode="json")["source_techniques"][0]["kind"] == "drop_layers"


def test_an_export_may_name_its_input(write: Write) -> None:
    job = read_job(write("job.toml", JOB.replace('format = "onnx"', 'format = "onnx"\ninput = "features"')))
    assert [export.input for export in job.exports] == ["features"]


TAUGHT = """[[model.technique]]
kind = "distill"
layers = 2
training = { steps = 3, objective = { kind = "states" } }
[audio]"""
FAULTS = [
    ("[audio]", TAUGHT.replace("steps", "stps"), "[model]: step 1 (distill): no field 'training.stps'"),
    ("[audio]", TAUGHT.replace("steps = 3,", ""), "[model]: step 1 (distill): no 'training.steps'"),
    ("[audio]", TAUGHT.replace('kind = "states"', ""), "[model]: step 1 (distill): no 'training.objective.kind'"),
    ("[audio]", TAUGHT.replace('"states"', '"states", of = 3'), "no field 'training.objective.states.of'"),
    ("[audio]", TRAINS.replace("datasets", "dataset"), "[training]: no field 'dataset'"),
    ("[audio]", TRAINS.replace('manifest = "manifest.csv"', ""), "[training]: datasets needs manifest"),
    ("[audio]", MAKES.replace("layers =", "layer ="), "[model]: step 1 (drop_layers): no field 'layer'"),
    ("[audio]", MAKES.replace("drop_layers", "drop_layer"), "[model]: step 1: no technique is called 'drop_layer'"),
    ("seed = 0 }", 'seed = 0 }\ntechnique = "prune_heads"', "[model]: 'technique' is not a list of tables"),
    (
        'format = "onnx"',
        'format = "onnx"\ninput = "mel"',
        "export 1: input: should be 'waveform', 'features', 'waveform_cache', 'cache', 'step', 'fixed_step', 'tokens' or 'images' (it is 'mel')",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "message"), FAULTS)
def test_a_fault_is_named(write: Write, right: str, wrong: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_job(write("job.toml", JOB.replace(right, wrong)))
    assert message in caught.value.message
    assert caught.value.hint


def test_a_misspelt_key_of_a_table_in_a_table_is_one_fault_with_its_nearest_spelling(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        read_job(write("job.toml", JOB.replace("[audio]", TAUGHT.replace("steps", "stps"))))
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.hint == "did you mean 'steps'?"


def test_a_task_that_scores_checkpoints_needs_no_audio(write: Write) -> None:
    without = JOB[: JOB.index("[audio]")] + JOB[JOB.index("[[recipe]]") :]
    job = read_job(write("job.toml", without.replace('"fidelity"', '"probe"')))
    assert job.audio is None
    with pytest.raises(RecipeError, match="needs clips"):
        read_job(write("job.toml", without.replace('"fidelity"', '"probe"\n[[score]]\ntask = "fidelity"')))


def test_a_score_may_be_limited_to_some_recipes_and_its_task_stays_the_same(write: Write) -> None:
    whole = read_job(write("job.toml", JOB))
    job = read_job(write("job.toml", JOB.replace('"fidelity"', '"fidelity"\nrecipes = ["dense", "thin"]')))
    assert job.scores == whole.scores
    ((_, wanted),) = job.wanted_scores()
    assert [recipe.name for recipe in job.recipes if wanted(recipe.name)] == ["dense", "thin"]
    ((_, all_wanted),) = whole.wanted_scores()
    assert all(all_wanted(recipe.name) for recipe in job.recipes)


LIMITS = [
    ('recipes = ["thinx"]', "score 1: recipes: no recipe is called 'thinx'", "'thin'"),
    ("recipes = []", "score 1: recipes: not a list of names (it is [])", "leave it out"),
    ('recipes = "dense"', "score 1: recipes: not a list of names (it is 'dense')", "leave it out"),
    ('recipe = ["dense"]', "score 1 (fidelity): no field 'recipe'", "'recipes'"),
]


@pytest.mark.parametrize(("line", "message", "hint"), LIMITS)
def test_a_wrong_limit_is_named(write: Write, line: str, message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_job(write("job.toml", JOB.replace('"fidelity"', f'"fidelity"\n{line}')))
    assert message in caught.value.message
    assert hint in caught.value.hint
