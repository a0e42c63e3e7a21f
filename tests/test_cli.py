"""The command line as a user meets it: help, lists, errors with hints, exit statuses, no traceback."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecompress import cli, doctor
from edgecompress.cli import models, say
from tests.calling import Call

COMMANDS = ["inspect", "compress", "export", "score", "analyze", "bench", "report", "run", "device", "list", "doctor"]


def test_help_names_every_command(call: Call) -> None:
    answer = call("--help")
    assert answer.status == 0
    assert [name for name in COMMANDS if f"  {name} " not in answer.out] == []


@pytest.mark.parametrize("command", [*COMMANDS, "device add", "device list", "device probe", "device remove"])
def test_every_command_explains_itself(call: Call, command: str) -> None:
    answer = call(*command.split(), "--help")
    assert answer.status == 0
    assert answer.out.startswith(f"Usage: edgecompress {command}")


def test_help_loads_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; from edgecompress.cli import main; main(['--help']); "
        "sys.exit(' '.join({'torch', 'numpy', 'pydantic', 'rich.console', 'plotly', 'paramiko'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_no_command_at_all_shows_the_help(call: Call) -> None:
    answer = call()
    assert answer.status == 2
    assert "Usage: edgecompress" in answer.out


@pytest.mark.parametrize(
    "line", ["bnech model.onnx", "bench", "bench --theads 3 x", "run", "list hats", "bench x --threads a"]
)
def test_a_command_line_that_cannot_be_read_is_refused_with_a_hint(call: Call, line: str) -> None:
    assert call(*line.split()).is_refused()


def test_techniques_are_listed_with_their_help_and_fields(call: Call) -> None:
    answer = call("list", "techniques")
    assert "prune_heads\n    Remove the attention heads that matter least" in answer.out
    listed = {row["name"]: row for row in json.loads(call("list", "techniques", "--json").out)}
    assert {"name": "ratio", "type": "Rate | None", "default": "None"} in listed["prune_heads"]["fields"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("exporters", "onnx"),
        ("runtimes", "onnxruntime"),
        ("tasks", "fidelity"),
        ("families", "hubert"),
        ("devices", "local"),
    ],
)
def test_every_kind_can_be_listed(call: Call, kind: str, name: str) -> None:
    answer = call("list", kind)
    assert answer.status == 0
    assert name in answer.out
    assert json.loads(call("list", kind, "--json").out)


def test_listed_devices_are_boards_and_ones_own(call: Call) -> None:
    listed = json.loads(call("list", "devices", "--json").out)
    assert "local" in listed["devices"]
    assert len(listed["profiles"]) > 3


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(models, "_load", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["inspect", "model"])


@pytest.mark.parametrize(
    ("number", "word"), [(errno.ENOSPC, "space"), (errno.EACCES, "may read"), (errno.EROFS, "output folder")]
)
def test_what_the_system_refuses_is_an_error_with_a_hint(
    call: Call, monkeypatch: pytest.MonkeyPatch, number: int, word: str
) -> None:
    def full(path: str) -> None:
        raise OSError(number, "as the system says", "/somewhere/file")

    monkeypatch.setattr(models, "_load", full)
    answer = call("inspect", "model")
    assert answer.is_refused()
    assert "/somewhere/file" in answer.err
    assert word in answer.err


def test_an_interrupted_command_says_how_to_go_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_load", interrupted)
    answer = call("inspect", "model")
    assert answer.status == 130
    assert "run the same command again" in answer.err


def test_a_missing_package_that_all_need_is_told_as_a_broken_installation(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: str) -> None:
        raise ModuleNotFoundError("No module named 'plotly.io'", name="plotly.io")

    monkeypatch.setattr(models, "_load", missing)
    answer = call("inspect", "model")
    assert answer.is_refused()
    assert "pip install edgecompress" in answer.err


def test_a_missing_extra_is_named_with_its_installation(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(models, "_load", missing)
    answer = call("inspect", "model")
    assert answer.is_refused()
    assert "needs the torch extra" in answer.err
    assert "pip install 'edgecompress[torch]'" in answer.err


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "safetensors", "soundfile", "soxr"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from edgecompress.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("line", "status"), [("inspect x", 2), ("bench --help", 0), ("list techniques", 0), ("device list", 0)]
)
def test_without_torch_a_command_works_or_names_the_extra(line: str, status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *line.split()], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    if status:
        assert "pip install 'edgecompress[torch]'" in ended.stderr


def test_a_closed_pipe_is_no_error_of_ours() -> None:
    line = f"{sys.executable} -c 'import sys; from edgecompress.cli import main; sys.exit(main())' list techniques | head -n 1"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in ended.stderr


def test_an_error_s_text_commands_no_terminal(call: Call, tmp_path: Path) -> None:
    answer = call("report", tmp_path / "run\x1b]0;owned\x07\x9b2J")
    assert answer.is_refused()
    assert not {"\x1b", "\x07", "\x9b"} & set(answer.err)
    assert "owned" in answer.err


def test_progress_off_a_terminal_leaves_out_what_only_counts_on(capsys: pytest.CaptureFixture[str]) -> None:
    with say.working("starting") as tell:
        for sent in range(100):
            tell(f"sent {sent} of 99 MiB")
        tell("done")
    assert capsys.readouterr().err.splitlines() == ["starting", "sent 0 of 99 MiB", "done"]


def test_an_output_folder_with_something_else_in_it_is_not_replaced(call: Call, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "recipe.toml").write_text('name = "thin"\n[[technique]]\nkind = "prune_heads"\nratio = 0.5\n')
    for line in (["compress", "x", "--recipe", tmp_path / "recipe.toml"], ["export", "x"]):
        answer = call(*line, "-o", tmp_path)
        assert answer.is_refused()
        assert "is not empty" in answer.err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# --- doctor ----------------------------------------------------------------------------------------------------------
def findings(call: Call, status: int = 0) -> dict[str, Any]:
    answer = call("doctor", "--json")
    assert answer.status == status
    return {row["what"]: row for row in json.loads(answer.out)}


def test_doctor_finds_a_working_installation_and_the_settings(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = {"": {"numpy": "numpy"}, "hats": {"no-such-package": "hats"}}
    monkeypatch.setattr("edgecompress.doctor.packages", lambda: asked)
    monkeypatch.setenv("EDGECOMPRESS_SPEECH", str(tmp_path))
    monkeypatch.setenv("EDGECOMPRESS_MODELS", str(tmp_path / "absent"))
    found = findings(call)
    assert found["numpy"]["state"] == "ok"
    assert found["extra hats"]["hint"] == "pip install 'edgecompress[hats]'"
    assert found["EDGECOMPRESS_SPEECH"] | {"hint": ""} == {
        "what": "EDGECOMPRESS_SPEECH", "state": "ok", "found": str(tmp_path), "hint": "",
    }  # fmt: skip
    assert "export EDGECOMPRESS_MODELS=" in found["EDGECOMPRESS_MODELS"]["hint"]
    assert found["device local"]["state"] == "ok"


def test_doctor_calls_a_package_that_kills_python_broken(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "deadly.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("edgecompress.doctor.packages", lambda: {"": {"numpy": "numpy", "scipy": "deadly"}})
    found = findings(call, status=1)
    assert found["numpy"]["state"] == "ok"
    assert found["scipy"]["state"] == "broken"
    assert "Python died" in found["scipy"]["found"]


def test_doctor_names_a_device_whose_file_is_broken(
    call: Call, monkeypatch: pytest.MonkeyPatch, own_settings: Path
) -> None:
    monkeypatch.setattr("edgecompress.doctor.packages", dict)
    (own_settings / "devices").mkdir()
    (own_settings / "devices" / "pi.toml").write_text('hots = "pi"')
    assert findings(call, status=1)["device pi"]["state"] == "broken"


def test_the_extras_are_those_of_the_installation_and_each_package_stands_once() -> None:
    found = doctor.packages()
    assert {"torch", "onnx", "openvino", "tflite", "optimum", "dev"} < set(found)
    assert found["torch"]["huggingface-hub"] == "huggingface_hub"
    assert found["onnx"] == {"onnx": "onnx", "onnxscript": "onnxscript"}, "onnxruntime is everybody's"
    names = [name for extra in found.values() for name in extra]
    assert len(names) == len(set(names))
    assert "tflite-runtime" not in names


# --- devices ---------------------------------------------------------------------------------------------------------
def test_a_device_that_does_not_answer_is_not_added(call: Call, own_settings: Path) -> None:
    assert call("device", "add", "pi", "--host", "127.0.0.1", "--port", "1").is_refused()
    assert not (own_settings / "devices" / "pi.toml").exists()


@pytest.mark.parametrize("line", ["device probe kitchen", "device remove kitchen", "bench x.onnx --on kitchen"])
def test_an_unknown_device_is_refused(call: Call, line: str) -> None:
    answer = call(*line.split())
    assert answer.is_refused()
    assert "device add kitchen" in answer.err


def test_probing_this_machine_shows_its_runtimes(call: Call) -> None:
    answer = call("device", "probe", "local", "--json")
    assert answer.status == 0
    assert json.loads(answer.out)["runtimes"]["onnxruntime"]


def test_a_broken_device_file_is_a_row_and_not_the_end_of_the_list(call: Call, own_settings: Path) -> None:
    (own_settings / "devices").mkdir()
    (own_settings / "devices" / "pi.toml").write_text('hots = "pi"')
    (own_settings / "devices" / "zero.toml").write_text('host = "zero.lan"')
    for line in (["device", "list"], ["list", "devices"]):
        answer = call(*line)
        assert answer.status == 0
        assert "zero.lan" in answer.out
        assert "hots: Extra inputs are not permitted" in answer.out
    assert "hots" in json.loads(call("device", "list", "--json").out)["pi"]["error"]
    assert "hots" in json.loads(call("list", "devices", "--json").out)["devices"]["pi"]["error"]
    assert call("device", "remove", "pi").status == 0
    assert set(json.loads(call("device", "list", "--json").out)) == {"local", "zero"}
