"""A job that trains: killed in the middle it goes on, what recipes share is trained once, and checkpoints are scored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import soundfile

from edgecompress import model as models
from edgecompress import pipeline, report
from edgecompress.errors import RecipeError, TechniqueError
from edgecompress.job import AudioSource, Export, Job, ModelSource, RandomModel, Recipe, TrainingSource
from edgecompress.records import Checkpoint, Run, Score, ScoreItem
from edgecompress.tasks import Result
from edgecompress.techniques.distill import Distill
from edgecompress.techniques.prune_heads import PruneHeads
from tests.calling import Call
from tests.models import tiny_config

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

STEPS = 40
TRAINS = f"""
name = "tiny"
output = "OUTPUT"
[model]
random = {{ config = "tiny.json", seed = 0 }}
[training]
folder = "speech"
[[recipe]]
name = "taught"
[[recipe.technique]]
kind = "distill"
layers = 2
training = {{ steps = {STEPS}, batch_seconds = 2.0, crop_seconds = 1.0, device = "cpu", save_every_s = 0.01 }}
[[recipe.technique]]
kind = "prune_heads"
ratio = 0.5
"""
TRAINING: dict[str, Any] = {"steps": 3, "batch_seconds": 2.0, "crop_seconds": 1.0, "device": "cpu"}


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has a tiny model's config and ten recordings of speech."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.json").write_text(tiny_config("hubert").to_json_string())
    Path("speech").mkdir()
    for number in range(10):
        soundfile.write(f"speech/{number}.wav", np.random.default_rng(number).normal(0, 0.1, 16000), 16000)


# --- going on --------------------------------------------------------------------------------------------------------
def start(output: str) -> subprocess.Popen[bytes]:
    Path(f"{output}.toml").write_text(TRAINS.replace("OUTPUT", output))
    code = "import sys; from edgecompress.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", f"{output}.toml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def checkpoint(output: str, recipe: str = "taught") -> tuple[Path, Checkpoint]:
    (file,) = Path(output).glob(f"checkpoints/{recipe}-*/checkpoint.json")
    return file.parent, Checkpoint.read(file)


def whole_states(work: Path) -> list[Path]:
    """States of trainings under way that are wholly written."""
    return [file for file in work.rglob("state.json") if not file.parent.name.startswith(".")]


def test_a_job_killed_in_the_middle_of_a_training_goes_on_and_ends_with_the_same_weights() -> None:
    alone = start("alone")
    assert alone.wait() == 0
    running = start("killed")
    while not whole_states(Path("killed/work")):
        assert running.poll() is None, "the job ended before it could be killed"
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert not list(Path("killed").glob("checkpoints/taught-*/checkpoint.json"))
    again = start("killed")
    _, told = again.communicate()
    assert again.returncode == 0, told
    assert b"taught, step 1 of 2: distill: going on at step" in told
    (wanted, _), (found, record) = checkpoint("alone"), checkpoint("killed")
    assert (found / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()
    assert record.steps[0].training is not None
    assert record.steps[0].training["steps"] == STEPS
    assert not Path("killed/work").exists()


# --- in this process -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Learns:
    """Adds a number to a weight, counts how often it was asked to, and takes as long as a training."""

    kind: ClassVar[str] = "learns"
    needs_clips: ClassVar[bool] = False
    needs_corpus: ClassVar[bool] = True
    asked: ClassVar[list[list[str]]] = []
    by: float = 1.0

    def apply(self, model: Model, context: Context) -> None:
        import torch

        self.asked.append(context.need_corpus(self.kind).names)
        with torch.no_grad():
            next(model.network.parameters()).add_(self.by)


@dataclass(frozen=True)
class Breaks:
    """Cannot be carried out while the file ``broken`` is there."""

    kind: ClassVar[str] = "breaks"
    needs_clips: ClassVar[bool] = False

    def apply(self, model: Model, context: Context) -> None:
        if Path("broken").exists():
            raise TechniqueError("it is broken", hint="mend it")


@dataclass(frozen=True)
class Counts:
    """Scores a checkpoint by how many heads it has left, four times over."""

    kind: ClassVar[str] = "counts"
    subject: ClassVar[str] = "checkpoint"
    dataset: str = ""
    manifest: str = "manifest.csv"

    def score_model(self, model: Model, folder: str | None, say: Any = None) -> Result:
        return self._result(sum(len(layer.heads) for layer in model.layers))

    def baseline(self, folder: str | None, say: Any = None) -> Result:
        return self._result(1)

    def _result(self, heads: int) -> Result:
        items = [ScoreItem(clip=f"{n}.wav", numerator=heads + n % 2, denominator=1.0) for n in range(4)]
        return Result("heads", True, items)


@pytest.fixture
def job() -> Job:
    """A job with the training audio and one recipe of three steps, of which the first learns."""
    Learns.asked.clear()
    return Job(
        name="tiny",
        output="out",
        model=ModelSource(random=RandomModel(config="tiny.json")),
        training=TrainingSource(folder="speech"),
        recipes=(Recipe("dense"), Recipe("thin", (Learns(), Breaks(), PruneHeads(ratio=0.5)))),
        file=Path("job.toml").resolve(),
    )


def test_a_recipe_whose_second_step_failed_does_not_learn_again(job: Job) -> None:
    Path("broken").touch()
    assert pipeline.run(job).failed == 1
    assert Path("out/work").is_dir()
    Path("broken").unlink()
    assert pipeline.run(job).failed == 0
    assert len(Learns.asked) == 1
    assert [step.kind for step in checkpoint("out", "thin")[1].steps] == ["learns", "breaks", "prune_heads"]
    assert not Path("out/work").exists()


def test_recipes_that_begin_alike_learn_once(job: Job) -> None:
    alike = [Recipe(f"heads-{n}", (Learns(), PruneHeads(ratio=n / 4))) for n in (1, 2, 3)]
    other = Recipe("other", (Learns(by=2.0), PruneHeads(ratio=0.5)))
    pipeline.run(job.model_copy(update={"recipes": (Recipe("dense"), *alike, other)}))
    assert len(Learns.asked) == 2
    pipeline.run(job.model_copy(update={"recipes": (Recipe("dense"), Recipe("alone", (Learns(),)))}))
    assert len(Learns.asked) == 3  # what was kept on the way went with the first run
    more = Recipe("more", (Learns(), PruneHeads(ratio=0.9)))
    pipeline.run(job.model_copy(update={"recipes": (Recipe("dense"), Recipe("alone", (Learns(),)), more)}))
    assert len(Learns.asked) == 3  # a finished checkpoint is where another recipe begins
    assert len({checkpoint("out", f"heads-{n}")[1].cost.parameters.total for n in (1, 2, 3)}) == 3


def test_other_training_audio_trains_again_and_leaves_what_did_not_train_alone(job: Job) -> None:
    both = job.model_copy(
        update={"recipes": (Recipe("dense"), Recipe("a", (Learns(),)), Recipe("b", (PruneHeads(ratio=0.5),)))}
    )
    pipeline.run(both)
    assert checkpoint("out", "b")[1].corpus is None
    soundfile.write("speech/0.wav", np.zeros(16000), 16000)
    again = pipeline.run(both)
    assert (again.filled, again.skipped) == (1, 2)


def test_what_is_scored_is_left_out_of_training_and_the_record_counts_it(job: Job) -> None:
    Path("speech/broken.wav").write_text("no audio")
    some = AudioSource(folder="speech", calibration=1, evaluation=2)
    pipeline.run(job.model_copy(update={"audio": some, "recipes": (Recipe("dense"), Recipe("a", (Learns(),)))}))
    assert Learns.asked == [[f"{n}.wav" for n in range(3, 10)]]
    corpus = checkpoint("out", "a")[1].corpus
    assert corpus is not None
    assert (corpus.clips, corpus.excluded, corpus.skipped) == (7, 3, 1)


def test_a_teacher_that_is_not_there_is_told_before_anything_is_made(job: Job) -> None:
    lost: Any = {**TRAINING, "objective": {"kind": "states", "teacher": "nowhere"}}
    recipes = (*job.recipes, Recipe("taught", (Distill(layers=2, training=lost),)))
    with pytest.raises(RecipeError, match="no such model folder: nowhere"):
        pipeline.run(job.model_copy(update={"recipes": recipes}))
    assert not Path("out").exists()


TEACH = """
name = "taught"
[[technique]]
kind = "distill"
layers = 2
training = { steps = 3, batch_seconds = 2.0, crop_seconds = 1.0, device = "cpu" }
"""


def test_the_command_line_trains_on_a_folder_and_the_record_tells_of_it(call: Call) -> None:
    models.save(models.from_config(tiny_config("hubert"), seed=0), Path("model"))
    Path("taught.toml").write_text(TEACH)
    answer = call("compress", "model", "--recipe", "taught.toml", "-o", "made", "--train-audio", "speech")
    assert answer.status == 0
    record = Checkpoint.read(Path("made/checkpoint.json"))
    assert record.corpus is not None
    assert (record.corpus.clips, record.corpus.skipped) == (10, 0)
    assert record.steps[0].training is not None
    assert record.steps[0].training["steps"] == 3
    assert record.steps[0].training["audio_hours"] > 0
    assert call("compress", "model", "--recipe", "taught.toml", "-o", "other", "--train-split", "train").is_refused()
    assert not Path("other").exists()


def test_a_training_is_told_at_once_then_seldom_and_when_it_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    from edgecompress.cli.say import _seldom

    now = 0.0
    tell = _seldom("running", clock=lambda: now)
    for step in range(1, 3601):
        now = float(step)
        tell(
            f"a, step 1 of 1: step {step}/3600, loss {1 / step:.4g}, 38.2 s audio/s, {(3600 - step) // 60} min 3 s left"
        )
    tell("done: a, distill: 3,600 steps")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("a, step 1 of 1: step 1/3600")
    assert lines[-1] == "done: a, distill: 3,600 steps"
    assert 40 < len(lines) < 120


# --- a source model that is made -------------------------------------------------------------------------------------
def test_a_source_model_that_a_job_makes_is_made_once_and_is_dense(job: Job) -> None:
    made = job.model_copy(
        update={"source_techniques": (Distill(layers=2, training=TRAINING),), "recipes": (Recipe("dense"),)}  # type: ignore[arg-type]
    )
    pipeline.run(made)
    (folder,) = Path("out").glob("source-*")
    before = (folder / "model.safetensors").read_bytes()
    source = models.load(folder).origin.source
    assert not source.random_weights
    assert source.lineage["given"]["random_weights"]
    assert [step["kind"] for step in source.lineage["techniques"]] == ["distill"]
    dense, record = checkpoint("out", "dense")
    assert record.source == source == Run.read(Path("out/run.json")).source
    assert (dense / "model.safetensors").read_bytes() == before
    assert len(models.load(dense).layers) == 2
    assert pipeline.run(made).filled == 0


def test_a_source_model_that_is_only_cut_is_still_random(job: Job) -> None:
    pipeline.run(job.model_copy(update={"source_techniques": (PruneHeads(ratio=0.5),), "recipes": (Recipe("dense"),)}))
    assert checkpoint("out", "dense")[1].source.random_weights


# --- scores of checkpoints -------------------------------------------------------------------------------------------
@pytest.fixture
def scored(job: Job) -> Job:
    """Two recipes, one of them exported, and a task that scores checkpoints; no clips at all."""
    recipes = (Recipe("dense"), Recipe("half", (PruneHeads(ratio=0.5),)))
    return job.model_copy(update={"recipes": recipes, "exports": (Export(format="onnx"),), "scores": (Counts(),)})


def test_a_checkpoint_is_scored_once_whatever_it_is_exported_to(scored: Job) -> None:
    both = (Export(format="onnx", precisions=("fp32", "int8")),)
    pipeline.run(scored.model_copy(update={"exports": both}))
    found = {one.recipe: one for one in map(Score.read, Path("out/scores").glob("*.json"))}
    assert {recipe: one.level for recipe, one in found.items()} == {
        "dense": "checkpoint", "half": "checkpoint", "log-mel": "baseline",
    }  # fmt: skip
    assert {(one.format, one.precision) for one in found.values()} == {(None, None)}
    rows = [row for row in report.summary(Path("out")) if row["recipe"] != "log-mel"]
    assert {(row["recipe"], row["precision"], row["counts_heads"]) for row in rows} == {
        ("dense", "fp32", 12.5), ("dense", "int8", 12.5), ("half", "fp32", 6.5), ("half", "int8", 6.5),
    }  # fmt: skip


def test_the_report_shows_scores_of_checkpoints_best_first_and_against_what_they_cost(scored: Job) -> None:
    page = pipeline.run(scored).report
    lines = (page.parent / "report.md").read_text().split("## Scores of checkpoints")[1].splitlines()
    table = [line for line in lines if line.startswith("|")][2:5]
    assert [line.split("|")[1].strip() for line in table] == ["dense", "half", "log-mel"]
    assert r"12.500 \[12.000, 13.000\] n 4" in table[0]
    text = page.read_text()
    assert "Counts heads against multiply-accumulates" in text
    figures = json.loads(text.split('<script type="application/json" id="figures">')[1].split("</script>")[0])
    dashed = [trace for trace in figures[0]["data"] if trace.get("line", {}).get("dash") == "dash"]
    assert [trace["y"] for trace in dashed] == [[1.5, 1.5]]


def test_two_tasks_of_one_kind_are_two_columns_and_an_untrained_source_is_a_baseline(scored: Job) -> None:
    made = {"source_techniques": (Learns(),), "exports": (), "scores": (Counts(), Counts(dataset="words"))}
    pipeline.run(scored.model_copy(update=made))
    rows = {row["recipe"]: row for row in report.summary(Path("out"))}
    assert set(rows) == {"dense", "half", "log-mel", "untrained"}
    assert rows["untrained"]["counts words_heads"] == rows["untrained"]["counts_heads"] == 12.5
    assert rows["untrained"]["technique"] == "baseline"
    assert rows["half"]["counts_heads_minus_dense"] == -6.0
    again = pipeline.run(scored.model_copy(update=made))
    assert again.filled == 0


def test_a_task_that_is_limited_scores_only_what_it_names_and_its_scores_are_those_of_an_unlimited_one(
    scored: Job,
) -> None:
    some = scored.model_copy(update={"exports": (), "score_recipes": (("half", "log-mel"),)})
    pipeline.run(some)
    found = {file.name: Score.read(file).recipe for file in Path("out/scores").glob("*.json")}
    assert set(found.values()) == {"half", "log-mel"}
    again = pipeline.run(some.model_copy(update={"score_recipes": ()}))
    assert again.filled == 1  # dense
    assert set(found) < {file.name for file in Path("out/scores").glob("*.json")}


def test_scores_on_recordings_that_the_model_was_trained_on_say_how_many(scored: Job) -> None:
    recipes = (Recipe("dense"), Recipe("taught", (Learns(),)))
    Path("speech/manifest.csv").write_text("path\n0.wav\n")
    heard = TrainingSource(folder="speech", exclude=("2.wav",))
    made = {"recipes": recipes, "exports": (), "training": heard, "scores": (Counts(manifest="speech/manifest.csv"),)}
    page = pipeline.run(scored.model_copy(update=made)).report
    told = {
        one.recipe: one.conditions.get("heard_in_training") for one in map(Score.read, Path("out/scores").iterdir())
    }
    assert told == {"dense": None, "log-mel": None, "taught": 3}
    assert "3 of 4 items, 1 model" in (page.parent / "report.md").read_text()
