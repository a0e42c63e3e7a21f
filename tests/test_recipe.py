"""Recipes and jobs: what a file may say, and that all of its faults are told at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from edgecompress import paths, plugins
from edgecompress.errors import RecipeError
from edgecompress.recipe import Job, describe, read_job, read_recipe
from edgecompress.records import canonical_json
from edgecompress.techniques.factorize import Factorize
from edgecompress.techniques.prune_heads import PruneHeads

Write = Callable[[str, str], Path]

THIN = """
name = "thin"
[[technique]]
kind = "prune_heads"
ratio = 0.34
score = "activation"
[[technique]]
kind = "factorize"
rank = 16
"""

JOB = """
name = "quickstart"
output = "runs/quickstart"
[model]
random = { config = "small.json", seed = 3 }
[audio]
synthetic = { clips = 8, seconds = 3.0 }
calibration = 4
evaluation = 4
[[recipe]]
name = "heads-half"
[[recipe.technique]]
kind = "prune_heads"
ratio = 0.5
[[recipe]]
name = "low-rank"
[[recipe.technique]]
kind = "factorize"
rank = 16
[[export]]
format = "onnx"
precisions = ["fp32", "int8"]
[[score]]
task = "fidelity"
[measure]
devices = ["local"]
"""


def faults_of(path: Path) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        read_job(path, devices={"local", "kitchen-pi"}) if "[model]" in path.read_text() else read_recipe(path)
    return caught.value


def test_a_recipe_is_its_techniques_in_order(write: Write) -> None:
    recipe = read_recipe(write("thin.toml", THIN))
    assert recipe.name == "thin"
    assert recipe.techniques == (PruneHeads(ratio=0.34, score="activation"), Factorize(rank=16))


def test_a_technique_described_is_the_table_that_made_it(write: Write) -> None:
    technique = read_recipe(write("thin.toml", THIN)).techniques[0]
    told = describe(technique)
    assert told["kind"] == "prune_heads"
    given = {key: value for key, value in told.items() if key in ("ratio", "score")}
    assert given == {"ratio": 0.34, "score": "activation"}
    again = "\n".join(f"{key} = {value!r}" for key, value in given.items())
    assert read_recipe(write("again.toml", f'name = "a"\n[[technique]]\nkind = "prune_heads"\n{again}')).techniques == (
        technique,
    )


def test_recipes_are_frozen(write: Write) -> None:
    recipe = read_recipe(write("thin.toml", THIN))
    with pytest.raises(FrozenInstanceError):
        recipe.name = "other"  # type: ignore[misc]


def test_a_wrong_key_is_named_with_its_step_and_the_nearest_spelling(write: Write) -> None:
    error = faults_of(write("half.toml", THIN.replace("ratio", "ration")))
    assert error.message == "half.toml: step 1 (prune_heads): no field 'ration'"
    assert error.hint == "did you mean 'ratio'?"


def test_a_rate_above_one_is_refused_with_its_value(write: Write) -> None:
    error = faults_of(write("half.toml", THIN.replace("0.34", "1.5")))
    assert error.message == "half.toml: step 1 (prune_heads): ratio: should be less than or equal to 1 (it is 1.5)"


@pytest.mark.parametrize("rate", ["-0.1", "nan", "inf", '"0.5"', "true", "[0.5]", "1979-05-27"])
def test_what_is_no_rate_is_refused(write: Write, rate: str) -> None:
    assert "step 1 (prune_heads): ratio: " in faults_of(write("half.toml", THIN.replace("0.34", rate))).message


def test_an_unknown_technique_is_named_with_the_nearest_one(write: Write) -> None:
    error = faults_of(write("half.toml", THIN.replace("prune_heads", "prune_head")))
    assert error.message == "half.toml: step 1: no technique is called 'prune_head'"
    assert error.hint == "did you mean 'prune_heads'?"


def test_all_faults_of_a_file_are_told_at_once(write: Write) -> None:
    text = 'nam = "thin"\n' + THIN.replace('name = "thin"', "").replace("0.34", "1.5").replace("rank", "rnk")
    error = faults_of(write("bad.toml", text))
    assert error.message.splitlines() == [
        "bad.toml: no field 'nam'",
        "bad.toml: step 1 (prune_heads): ratio: should be less than or equal to 1 (it is 1.5)",
        "bad.toml: step 2 (factorize): no field 'rnk'",
    ]
    assert "did you mean 'name'?" in error.hint
    assert "did you mean 'rank'?" in error.hint


@pytest.mark.parametrize("name", ["../escape", "Thin", "", "a b", "-rf", "a/b", "x" * 64])
def test_a_recipe_name_that_is_no_folder_name_is_refused(write: Write, name: str) -> None:
    assert "name: not a name" in faults_of(write("a.toml", THIN.replace('"thin"', f'"{name}"'))).message


def test_a_recipe_without_techniques_is_refused(write: Write) -> None:
    assert faults_of(write("a.toml", 'name = "thin"')).message == "a.toml: no techniques"


@pytest.mark.parametrize("text", ["name = ", "\x00", 'technique = 3\nname = "a"', "[[technique]]\nratio = 0.5"])
def test_what_is_no_recipe_is_an_error_with_a_hint(write: Write, text: str) -> None:
    assert faults_of(write("a.toml", text)).hint


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        read_recipe(tmp_path / "absent.toml")


def test_a_job_begins_with_the_dense_reference(write: Write) -> None:
    job = read_job(write("job.toml", JOB), devices={"local"})
    assert [recipe.name for recipe in job.recipes] == ["dense", "heads-half", "low-rank"]
    assert job.recipes[0].techniques == ()
    assert job.model.random is not None
    assert job.model.random.seed == 3
    assert job.exports[0].precisions == ("fp32", "int8")
    assert job.scores == (plugins.find("tasks", "fidelity")(),)
    assert job.measure is not None
    assert job.measure.devices == ("local",)


def test_a_job_as_data_is_json_and_knows_nothing_of_where_it_lay(write: Write, tmp_path: Path) -> None:
    data = read_job(write("job.toml", JOB)).model_dump(mode="json")
    assert str(tmp_path) not in canonical_json(data)
    assert data["recipes"][1]["techniques"][0]["kind"] == "prune_heads"
    assert data["scores"][0]["kind"] == "fidelity"
    assert "file" not in data


FAULTY = [
    ('["local"]', '["kitchen-pie"]', "[measure]: no device is called 'kitchen-pie'", "'kitchen-pi'"),
    ('format = "onnx"', 'format = "onx"', "export 1: no format is called 'onx'", "'onnx'"),
    ('"int8"]', '"int4"]', "export 1: onnx has no precision 'int4'", "did you mean 'int8'?"),
    ('"int8"]', '"int8"]\njudge = "wer"', "export 1: judge: no task of this job that scores files is called 'wer'", ""),
    ('"int8"]', '"int8"]\ntolerated_drop = 0.1', "export 1: tolerated_drop needs judge, the task that it is a drop of", ""),
    ('"int8"]', '"int8"]\nseconds = [0.0]', "export 1: seconds.0: should be greater than 0 (it is 0.0)", ""),
    ('task = "fidelity"', 'task = "fidelty"', "score 1: no task is called 'fidelty'", "'fidelity'"),
    ('task = "fidelity"', 'kind = "fidelity"', "score 1: no 'task'", "fidelity"),
    ("evaluation = 4", "evaluation = 5", "[audio]: calibration and evaluation need 9 clips, synthetic makes 8", ""),
    ("evaluation = 4", "evaluation = 0", "[audio]: [[score]] needs clips, and evaluation is 0", "evaluation"),
    ('"low-rank"', '"heads-half"', "recipe 'heads-half': there is already a recipe 'heads-half'", ""),
    ('"low-rank"', '"dense"', "recipe 'dense': there is already a recipe 'dense'", "by itself"),
    ("seed = 3", "sed = 3", "[model]: no field 'random.sed'", ""),
    ("random =", "path = 'x'\nrandom =", "[model]: needs either path or random", ""),
    ('output = "runs/quickstart"', "", "no 'output'", ""),
    ("[measure]", "[measured]", "no field 'measured'", "'measure'"),
    ('devices = ["local"]', "min_seconds = 9\nmax_seconds = 8", "[measure]: min_seconds 9 is above max_seconds 8", ""),
    ("[measure]", "[measure]\nthreads = 0", "[measure]: threads: should be greater than or equal to 1 (it is 0)", ""),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "message", "hint"), FAULTY)
def test_a_fault_in_a_job_is_named(write: Write, right: str, wrong: str, message: str, hint: str) -> None:
    assert right in JOB
    error = faults_of(write("job.toml", JOB.replace(right, wrong)))
    assert f"job.toml: {message}" in error.message.splitlines()
    assert hint in error.hint


def test_a_judge_and_a_calibrated_precision_need_calibration_audio(write: Write) -> None:
    text = JOB.replace("calibration = 4", "calibration = 0")
    judged = text.replace('"int8"]', '"int8"]\njudge = "fidelity"')
    assert "export 1: judge = 'fidelity' needs calibration audio" in faults_of(write("job.toml", judged)).message
    calibrated = text.replace('"int8"]', '"int8-static"]')
    assert "int8-static needs calibration audio" in faults_of(write("job.toml", calibrated)).message


def test_a_measured_job_without_an_export_is_refused(write: Write) -> None:
    text = JOB[: JOB.index("[[export]]")] + JOB[JOB.index("[measure]") :]
    assert "there is no [[export]]" in faults_of(write("job.toml", text)).message


def test_a_scored_job_without_audio_is_refused(write: Write) -> None:
    text = JOB[: JOB.index("[audio]")] + JOB[JOB.index("[[recipe]]") :]
    assert "there is no [audio]" in faults_of(write("job.toml", text)).message


@pytest.mark.parametrize("name", ["quickstart.toml", "whisper-barista.toml"])
def test_the_example_jobs_are_right(name: str) -> None:
    job = read_job(Path(__file__).parent.parent / "examples" / name, devices={"local", "loopback"})
    assert isinstance(job, Job)
    assert len(job.recipes) > 3


def test_a_path_takes_the_environment_and_else_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECOMPRESS_MODELS", raising=False)
    assert paths.expand("${EDGECOMPRESS_MODELS}/tiny") == Path("../shared/models/tiny")
    monkeypatch.setenv("EDGECOMPRESS_MODELS", "/data")
    assert paths.expand("${EDGECOMPRESS_MODELS}/tiny") == Path("/data/tiny")


def test_a_path_that_is_not_there_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGECOMPRESS_SPEECH", str(tmp_path))
    with pytest.raises(RecipeError, match="no such audio folder") as caught:
        paths.existing("${EDGECOMPRESS_SPEECH}/absent", "audio folder")
    assert caught.value.hint.startswith("set EDGECOMPRESS_SPEECH ")
    assert str(tmp_path) in caught.value.hint
    with pytest.raises(RecipeError, match="HATS is not set"):
        paths.expand("${HATS}/x")


def test_reading_a_recipe_needs_no_torch(write: Write) -> None:
    path = write("thin.toml", THIN)
    code = (
        "import pathlib, sys; from edgecompress.recipe import read_recipe; "
        "read_recipe(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
