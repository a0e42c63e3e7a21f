"""``edgecompress run`` from the outside: exit statuses, what is printed last, faults of a job, and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.calling import JOB, Call
from tests.models import tiny_config

Write = Callable[[str, str], Path]

IMPOSSIBLE = '[[recipe]]\nname = "trimmed"\n[[recipe.technique]]\nkind = "trim_context"\nseconds = 2\n[[export]]'


@pytest.fixture
def job(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``job(text)`` writes a job beside its model's config; the current folder is the test's."""
    monkeypatch.chdir(tmp_path)
    write("tiny.json", tiny_config("hubert").to_json_string())
    return lambda text: write("job.toml", text)


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and "report" not in path.parts
    }


def test_a_run_prints_the_reports_path_last_and_a_second_one_changes_nothing(
    call: Call, job: Callable[[str], Path], tmp_path: Path
) -> None:
    file = job(JOB)
    first = call("run", file)
    assert first.status == 0
    assert Path(first.lines[-1]).read_text().startswith("<!doctype html>")
    before = bytes_of(tmp_path / "out")
    again = call("run", file, "--json")
    assert json.loads(again.out) | {"report": ""} == {"report": "", "filled": 0, "skipped": 8, "failed": 0}
    assert bytes_of(tmp_path / "out") == before


def test_a_cell_that_fails_is_told_and_the_others_are_filled(
    call: Call, job: Callable[[str], Path], tmp_path: Path
) -> None:
    answer = call("run", job(JOB.replace("[[export]]", IMPOSSIBLE)))
    assert answer.status == 1
    assert "failed: trimmed-" in answer.err
    assert "takes audio of any length" in answer.err
    assert len(list((tmp_path / "out" / "artifacts").iterdir())) == 2
    assert "takes audio of any length" in Path(answer.lines[-1]).read_text()


def test_a_new_recipe_fills_only_its_own_cells(call: Call, job: Callable[[str], Path], tmp_path: Path) -> None:
    call("run", job(JOB))
    before = bytes_of(tmp_path / "out")
    more = '[[recipe]]\nname = "short"\n[[recipe.technique]]\nkind = "drop_layers"\nlayers = [2]\n[[export]]'
    answer = call("run", job(JOB.replace("[[export]]", more)), "--json")
    assert json.loads(answer.out) | {"report": ""} == {"report": "", "filled": 4, "skipped": 8, "failed": 0}
    after = bytes_of(tmp_path / "out")
    changed = {path.name for path, content in before.items() if after[path] != content}
    assert changed == {"run.json"}


FAULTS = [
    ('"local"', '"kitchen-pi"', "no device is called 'kitchen-pi'"),
    ('"local"', '"broken"', "hots: Extra inputs are not permitted"),
    ("min_samples = 2", "min_samples = 90000", "min_samples"),
    ("repetitions = 1", "threads = 999", "threads"),
    ("prune_heads", "prune_hats", "did you mean 'prune_heads'?"),
    ("ratio = 0.5", "ratio = 1.5", "it is 1.5"),
    ("ratio = 0.5", "ration = 0.5", "did you mean 'ratio'?"),
    ('"fidelity"', '"fidelty"', "did you mean 'fidelity'?"),
    ('"onnx"', '"onx"', "did you mean 'onnx'?"),
    ('random = { config = "tiny.json", seed = 0 }', 'path = "absent"', "no such model folder"),
    ('random = { config = "tiny.json", seed = 0 }', 'path = "${EDGECOMPRESS_MODELS}/absent"', "set EDGECOMPRESS_MODELS"),
    ('config = "tiny.json"', 'config = "absent.json"', "absent.json"),
    ("synthetic = { clips = 3, seconds = 0.5 }", 'folder = "absent"', "no such audio folder"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "word"), FAULTS)
def test_a_job_that_cannot_start_is_refused_before_anything_is_written(
    call: Call, job: Callable[[str], Path], tmp_path: Path, own_settings: Path, right: str, wrong: str, word: str
) -> None:
    (own_settings / "devices").mkdir()
    (own_settings / "devices" / "broken.toml").write_text('hots = "pi"')
    assert right in JOB
    answer = call("run", job(JOB.replace(right, wrong)))
    assert answer.is_refused()
    assert word in answer.err
    assert not (tmp_path / "out").exists()


def test_a_broken_file_of_a_device_that_the_job_does_not_name_is_no_hindrance(
    call: Call, job: Callable[[str], Path], own_settings: Path
) -> None:
    (own_settings / "devices").mkdir()
    (own_settings / "devices" / "other.toml").write_text("not TOML")
    answer = call("run", job(JOB.replace('"local"', '"kitchen-pi"')))
    assert "no device is called 'kitchen-pi'" in answer.err
    assert "other.toml" not in answer.err


def test_a_job_file_that_is_not_there_is_refused(call: Call, tmp_path: Path) -> None:
    assert call("run", tmp_path / "absent.toml").is_refused()
