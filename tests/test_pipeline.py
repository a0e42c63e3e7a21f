"""The pipeline: killed anywhere it goes on, one run a folder, a device that is out is asked once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgecompress import devices, pipeline, session
from edgecompress.errors import AgentFailed, Busy, RecipeError, Unreachable
from edgecompress.job import AudioSource, Export, Job, Measure, ModelSource, RandomModel, Recipe, SyntheticAudio
from edgecompress.pipeline.state import only_run
from edgecompress.records import Artifact, Checkpoint, Failure, Run
from edgecompress.tasks.fidelity import Fidelity
from edgecompress.techniques.prune_ffn import PruneFfn
from edgecompress.techniques.prune_heads import PruneHeads
from tests.calling import JOB
from tests.models import tiny_config

RECORDS = ("checkpoint.json", "artifact.json")
AWARE = JOB.replace("ratio = 0.5", 'ratio = 0.5\nscore = "activation"')
BOTH_PRECISIONS = AWARE.replace('format = "onnx"', 'format = "onnx"\nprecisions = ["fp32", "int8"]')
CELLS = 2 + 4 + 4 + 4  # checkpoints, artifacts, scores, measurements


def finished(folder: Path) -> dict[Path, bytes]:
    """Every file of every finished cell."""
    cells = [
        path.parent for name in RECORDS for path in folder.glob(f"*/*/{name}") if not path.parent.name.startswith(".")
    ]
    files = [path for cell in cells for path in cell.rglob("*") if path.is_file()]
    files += [path for kind in ("scores", "measurements") for path in folder.glob(f"{kind}/[!.]*.json")]
    return {path: path.read_bytes() for path in files}


def count(folder: Path) -> int:
    records = [path for name in RECORDS for path in folder.glob(f"*/*/{name}") if not path.parent.name.startswith(".")]
    return len(records) + sum(len(list(folder.glob(f"{kind}/[!.]*.json"))) for kind in ("scores", "measurements"))


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import sys; from edgecompress.cli import main; sys.exit(main(sys.argv[1:]))"]
    return subprocess.Popen(
        [*command, "run", "job.toml"], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )  # fmt: skip


def killed_after(folder: Path, cells: int) -> None:
    """Start the job and SIGKILL it, with all its children, once so many cells are there."""
    running = start(folder)
    while count(folder / "out") < cells:
        assert running.poll() is None, "the job ended before it could be killed"
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()


def test_a_job_killed_again_and_again_finishes_and_keeps_the_bytes_of_finished_cells(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(BOTH_PRECISIONS)
    (tmp_path / "tiny.json").write_text(tiny_config("hubert").to_json_string())
    kept: dict[Path, bytes] = {}
    for cells in (1, 3, 8, 12):
        killed_after(tmp_path, cells)
        now = finished(tmp_path / "out")
        assert {path: now[path] for path in kept} == kept
        kept = now
    last = start(tmp_path)
    out, _ = last.communicate()
    assert last.returncode == 0
    assert Path(out.splitlines()[-1]).name == "index.html"
    assert count(tmp_path / "out") == CELLS
    after = finished(tmp_path / "out")
    assert {path: after[path] for path in kept} == kept
    assert list((tmp_path / "out").rglob(".*partial*")) == []


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job on a tiny HuBERT: dense and one recipe, one artifact each, measured on a device called ``board``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(tiny_config("hubert").to_json_string())
    return Job(
        name="tiny",
        output="out",
        model=ModelSource(random=RandomModel(config="tiny.json")),
        audio=AudioSource(synthetic=SyntheticAudio(clips=2, seconds=0.5), calibration=1, evaluation=1),
        recipes=(Recipe("dense"), Recipe("thin", (PruneHeads(ratio=0.5), PruneFfn(ratio=0.5, score="activation")))),
        exports=(Export(format="onnx"),),
        measure=Measure(devices=("board",)),
        file=tmp_path / "job.toml",
    )


def test_a_device_that_is_out_is_asked_once_and_every_cell_says_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(*arguments: object) -> None:
        asked.append(arguments)
        raise Unreachable("board: nothing answers", hint="is it on?")

    board = devices.DeviceConfig(transport="ssh", host="board.example")
    monkeypatch.setattr(devices, "open_device", lambda name: devices.Device(name, board, _Nowhere()))  # type: ignore[arg-type]
    monkeypatch.setattr(session, "measure", unreachable)
    result = pipeline.run(job)
    assert (result.failed, len(asked)) == (2, 1)
    failures = [Failure.read(path) for path in sorted(Path("out/failures").glob("*.json"))]
    assert {(one.recipe, one.kind, one.device) for one in failures} == {
        ("dense", "Unreachable", "board"),
        ("thin", "Unreachable", "board"),
    }
    assert "nothing answers" in result.report.read_text()


def test_between_two_cells_on_a_device_it_cools_down(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    def broken(*arguments: object) -> None:
        happened.append("measured")
        raise AgentFailed("golden: another answer")

    board = devices.DeviceConfig(transport="ssh", host="board.example")
    monkeypatch.setattr(devices, "open_device", lambda name: devices.Device(name, board, _Nowhere()))  # type: ignore[arg-type]
    monkeypatch.setattr(session, "measure", broken)
    monkeypatch.setattr(session, "cool_down", lambda plan, say: happened.append(f"cooled {plan.cooldown_s:g} s"))
    pipeline.run(job.model_copy(update={"measure": Measure(devices=("board",), cooldown_s=7)}))
    assert happened == ["measured", "cooled 7 s", "measured"]


class _Nowhere:
    def close(self) -> None:
        """Nothing was opened."""


def test_a_failure_is_gone_once_its_cell_is_filled(job: Job) -> None:
    without = job.model_copy(update={"measure": None})
    wrong = without.model_copy(
        update={"recipes": (Recipe("dense"), Recipe("thin", (PruneHeads(ratio=1, score="activation"),)))}
    )
    no_audio = wrong.model_copy(
        update={"audio": AudioSource(synthetic=SyntheticAudio(clips=1, seconds=0.5), evaluation=1)}
    )
    assert pipeline.run(no_audio).failed == 1
    assert len(list(Path("out/failures").iterdir())) == 1
    assert pipeline.run(wrong).failed == 0
    assert list(Path("out/failures").iterdir()) == []


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_one_works(job: Job) -> None:
    with only_run(Path("out")), pytest.raises(Busy, match="another run"):
        pipeline.run(job.model_copy(update={"measure": None}))
    assert not Path("out/run.json").exists()


def test_a_changed_recipe_of_the_same_name_makes_new_cells_and_scores_its_own_checkpoint(job: Job) -> None:
    first = job.model_copy(update={"measure": None, "scores": (Fidelity(),)})
    pipeline.run(first)
    second = first.model_copy(update={"recipes": (Recipe("dense"), Recipe("thin", (PruneHeads(ratio=0.25),)))})
    assert pipeline.run(second).filled == 3
    thin = [Artifact.read(path) for path in Path("out/artifacts").glob("thin-*/artifact.json")]
    assert len({artifact.lineage["checkpoint"] for artifact in thin}) == 2
    for artifact in thin:
        record = Checkpoint.read(Path("out/checkpoints") / artifact.lineage["checkpoint"] / "checkpoint.json")
        assert record.techniques == artifact.lineage["techniques"]


def test_another_recording_or_label_under_the_same_name_makes_new_cells(job: Job, tmp_path: Path) -> None:
    first = job.model_copy(update={"measure": None, "scores": (Fidelity(),)})
    assert pipeline.run(first).filled == 6
    longer = first.model_copy(
        update={"audio": AudioSource(synthetic=SyntheticAudio(clips=2, seconds=0.6), calibration=1, evaluation=1)}
    )
    again = pipeline.run(longer)
    assert (again.filled, again.skipped) == (5, 1)  # only the dense checkpoint looks at no clip
    run = Run.read(Path("out/run.json"))
    assert len(run.cells) == 6
    assert all(list(Path("out").glob(f"*/{cell}*")) for cell in run.cells)


def test_a_plan_that_cannot_be_is_refused_before_anything_is_written(job: Job, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="threads = 1000"):
        pipeline.run(job.model_copy(update={"measure": Measure(devices=("local",), threads=1000)}))
    assert not Path("out").exists()
