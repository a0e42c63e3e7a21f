"""A comparison as it is run: what it keeps, how it goes on, what it refuses, and ``edgecompress compare`` from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_devices import SimulatedDevice
from edgecompress.comparing import campaign, record, subjects
from edgecompress.comparing.loop import Rule
from edgecompress.errors import AgentDied, RecipeError, RecordError
from edgecompress.records import GoldenCheck, Measurement, Repetition
from edgecompress.session import Plan
from tests.calling import Call
from tests.device_fixtures import DOUBLER, write_model

PLAN = Plan(repetitions=1, min_samples=40)
QUICK = ["--warmup-s", "0", "--min-samples", "2", "--min-seconds", "0"]
BRIEF = [*QUICK, "--budget-minutes", "0.02"]
IDENTITY = {"model": "Board", "cpu": ["core"], "machine": "aarch64", "kernel": "6.1", "boot_id": "first"}
STATE = {"governor": {"policy0": "performance"}, "cores_online": "0-3"}


def taken(samples: tuple[int, ...], variant: int | None = 0, **more: Any) -> Measurement:
    """A measurement as a session returns it."""
    facts = more.pop("facts", STATE)
    golden = [GoldenCheck(output="y", max_abs=0, relative=0, cosine=1, passed=True)]
    repetition = Repetition(
        load_s=0.1, first_inference_s=0.1, warmup_ns=[], samples_ns=list(samples), peak_rss_bytes=1, golden=golden,
        facts_before=facts, facts_after=facts,
    )  # fmt: skip
    values: dict[str, Any] = {
        "artifact": f"model-{variant or 0}", "artifact_sha256": f"{variant or 0:064d}", "recipe": "", "format": "onnx",
        "precision": "fp32", "device": "board", "transport": "ssh", "runtime": "onnxruntime", "runtime_version": "1.20",
        "options": {"threads": 1}, "plan": {"threads": 1}, "input": {"source": "golden", "shapes": {"x": [1, 20]}},
        "audio_seconds": None, "identity": IDENTITY, "repetitions": [repetition], "bytes_sent": 0,
        "agent_sha256": "0" * 64, "protocol": 1, "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:00:03+00:00", "tool": "test",
    }  # fmt: skip
    return Measurement(**{**values, **more})


def question(variants: int = 2, **more: Any) -> record.Question:
    made = [record.Subject(name=f"model-{n}", sha256=f"{n:064d}", runtime="onnxruntime") for n in range(variants)]
    return record.Question(variants=made, device="board", seed=0, plan=asdict(PLAN) | {"affinity": []}, **more)


class Board:
    """Measures on a simulated device; ``dies_at`` is the session at which it stops answering."""

    def __init__(self, latencies: tuple[float, ...] = (1.0, 0.8), dies_at: int = -1, **more: Any) -> None:
        self.device, self.dies_at, self.more = SimulatedDevice("quiet", 3, latencies), dies_at, more
        self.ran: list[int | None] = []
        self.plans: list[Plan] = []

    def __call__(self, variant: int | None, plan: Plan) -> Measurement:
        if len(self.ran) == self.dies_at:
            raise AgentDied("the agent's stream just stopped")
        self.ran.append(variant)
        self.plans.append(plan)
        return taken(self.device.session(variant or 0, plan.min_samples), variant, **self.more)


def begin(folder: Path, board: Callable[..., Measurement], **more: Any) -> campaign.Campaign:
    return campaign.Campaign(folder, more.pop("asked", None) or question(**more), PLAN, board, "test")


def test_every_session_is_kept_in_the_order_it_ran_between_shorter_canaries(tmp_path: Path) -> None:
    board = Board()
    held = begin(tmp_path / "out", board)
    outcome = held.carry_out(Rule())
    assert (outcome.ended, outcome.valid) == ("precise", 8)
    assert board.ran[:5] in ([None, 0, None, 1, None], [None, 1, None, 0, None])
    assert [plan.min_samples for plan in board.plans[:3]] == [10, 40, 10]
    stored = record.Comparison.read(tmp_path / "out/compare.json")
    assert [session.variant for run in stored.blocks for session in run.sessions] == board.ran
    files = {session.file for run in stored.blocks for session in run.sessions}
    assert files == {path.name for path in (tmp_path / "out/sessions").iterdir()}
    data = campaign.as_data(stored, outcome)
    assert data["results"][0]["verdict"] == "faster"
    assert data["results"][0]["low"] <= 1.25 <= data["results"][0]["high"]
    assert "median" not in (tmp_path / "out/compare.json").read_text()


@pytest.mark.parametrize("dies_at", [0, 2, 7, 14])
def test_a_comparison_that_was_cut_short_goes_on_where_it_was(tmp_path: Path, dies_at: int) -> None:
    with pytest.raises(AgentDied):
        begin(tmp_path / "out", Board(dies_at=dies_at)).carry_out(Rule())
    whole = dies_at // 5
    board = Board()
    held = begin(tmp_path / "out", board)
    outcome = held.carry_out(Rule())
    assert len(board.ran) == 5 * (8 - whole)
    assert [block.void for block in outcome.blocks if block.void] == [record.INTERRUPTED]
    uncut = begin(tmp_path / "other", Board())
    uncut.carry_out(Rule())
    orders = [run.order for run in held.comparison.blocks if not run.void]
    assert orders == [run.order for run in uncut.comparison.blocks]


def test_a_finished_comparison_is_told_again_without_measuring(tmp_path: Path) -> None:
    outcome = begin(tmp_path / "out", Board()).carry_out(Rule())
    board = Board()
    again = begin(tmp_path / "out", board).carry_out(Rule())
    assert board.ran == []
    assert again.speeds == outcome.speeds


def test_medians_come_from_the_sessions_that_are_read(tmp_path: Path) -> None:
    outcome = begin(tmp_path / "out", Board()).carry_out(Rule())
    path = next((tmp_path / "out/sessions").glob("0000-*-variant-1.json"))
    stored = Measurement.read(path)
    slower = stored.repetitions[0].model_copy(update={"samples_ns": [3 * n for n in stored.repetitions[0].samples_ns]})
    stored.model_copy(update={"repetitions": [slower]}).write(path)
    held = begin(tmp_path / "out", Board())
    assert record.load(tmp_path / "out", held.comparison)[0].samples != outcome.blocks[0].samples
    path.unlink()
    with pytest.raises(RecordError, match="no such file"):
        begin(tmp_path / "out", Board()).carry_out(Rule())


def test_another_question_in_the_same_folder_is_refused_and_a_strangers_folder_too(tmp_path: Path) -> None:
    begin(tmp_path / "out", Board()).carry_out(Rule())
    with pytest.raises(RecordError, match="another comparison: variants differ"):
        begin(tmp_path / "out", Board((1.0, 1.0, 1.0)), variants=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(RecordError, match="is not empty"):
        begin(tmp_path / "mine", Board())


def test_three_variants_are_all_told_against_the_first(tmp_path: Path) -> None:
    held = begin(tmp_path / "out", Board((1.0, 0.8, 1.0)), variants=3)
    found = campaign.as_data(held.comparison, held.carry_out(Rule()))["results"]
    assert [(one["variant"], one["verdict"]) for one in found] == [("model-1", "faster"), ("model-2", "same")]


def test_a_machine_that_moves_within_a_block_voids_it_and_says_so(tmp_path: Path) -> None:
    board = Board()

    def moves(variant: int | None, plan: Plan) -> Measurement:
        found = board(variant, plan)
        if len(board.ran) != 10:  # the last canary of the second block
            return found
        return taken(tuple(int(1.1 * ns) for ns in found.repetitions[0].samples_ns), variant)

    held = begin(tmp_path / "out", moves)
    outcome = held.carry_out(Rule())
    assert [number for number, block in enumerate(outcome.blocks) if block.void] == [1]
    assert outcome.blocks[1].void.startswith("E_CANARY")
    assert outcome.blocks[2].order == outcome.blocks[1].order
    assert record.Comparison.read(tmp_path / "out/compare.json").blocks[1].void == outcome.blocks[1].void


def test_a_reboot_and_a_throttle_flag_void_a_block(tmp_path: Path) -> None:
    board = Board()

    def restless(variant: int | None, plan: Plan) -> Measurement:
        samples = tuple(board(variant, plan).repetitions[0].samples_ns)
        if len(board.ran) == 3:
            return taken(samples, variant, identity={**IDENTITY, "boot_id": "second"})
        return taken(samples, variant, facts={**STATE, "throttled": "0x1" if len(board.ran) == 8 else "0x0"})

    outcome = begin(tmp_path / "out", restless).carry_out(Rule())
    assert "started anew" in outcome.blocks[0].void
    assert outcome.blocks[1].void.startswith("throttled: model-")
    assert [block.void for block in outcome.blocks[2:]] == [""] * 8


def test_samples_of_no_time_void_a_block_and_break_nothing(tmp_path: Path) -> None:
    held = begin(tmp_path / "out", lambda variant, plan: taken((0,) * 40, variant))
    outcome = held.carry_out(Rule(budget_s=1))
    assert {block.void for block in outcome.blocks} == {"the device told samples that took no time"}
    assert campaign.as_data(held.comparison, outcome)["results"] == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"runtime_version": "1.21"}, "runtime: onnxruntime 1.20 and onnxruntime 1.21"),
        ({"plan": {"threads": 2}}, "threads: 1 and 2"),
        ({"plan": {"threads": 1, "scenario": "paced_stream"}}, "scenario: single_stream and paced_stream"),
        ({"identity": {**IDENTITY, "kernel": "6.12"}}, "kernel: 6.1 and 6.12"),
        ({"facts": {**STATE, "governor": {"policy0": "schedutil"}}}, "governor: performance and schedutil"),
        ({"audio_seconds": 2.0}, "seconds of audio: 1 and 2"),
        ({"input": {"source": "golden", "shapes": {"x": [1, 40]}}}, "shapes"),
    ],
)
def test_what_differs_in_more_than_the_model_is_refused(tmp_path: Path, more: dict[str, Any], why: str) -> None:
    board = Board()

    def other(variant: int | None, plan: Plan) -> Measurement:
        samples = tuple(board(variant, plan).repetitions[0].samples_ns)
        seconds = {"audio_seconds": 1.0} if "audio_seconds" in more else {}
        return taken(samples, variant, **({**seconds, **more} if variant == 1 else seconds))

    with pytest.raises(RecipeError, match=why):
        begin(tmp_path / "out", other).carry_out(Rule())


def test_a_canary_of_its_own_may_have_another_input_but_must_stay_the_same(tmp_path: Path) -> None:
    board = Board()
    bird = record.Subject(name="bird", sha256="b" * 64, runtime="tflite")
    versions = iter(["2.14"] * 6 + ["2.15"] * 100)

    def measure(variant: int | None, plan: Plan) -> Measurement:
        samples = tuple(board(variant, plan).repetitions[0].samples_ns)
        if variant is not None:
            return taken(samples, variant)
        own = {"runtime": "tflite", "runtime_version": next(versions), "input": {"source": "random", "shapes": {}}}
        return taken(samples, None, artifact="bird", artifact_sha256="b" * 64, **own)

    with pytest.raises(RecipeError, match=r"tflite 2\.14 and tflite 2\.15"):
        begin(tmp_path / "out", measure, asked=question(canary=bird)).carry_out(Rule())
    assert len(board.ran) == 11


def test_a_file_that_changes_meanwhile_ends_the_comparison(tmp_path: Path) -> None:
    board = Board()

    def measure(variant: int | None, plan: Plan) -> Measurement:
        found = board(variant, plan)
        return found.model_copy(update={"artifact_sha256": "f" * 64}) if len(board.ran) > 8 else found

    with pytest.raises(RecipeError, match="has changed since the comparison began"):
        begin(tmp_path / "out", measure).carry_out(Rule())


# --- what is compared ------------------------------------------------------------------------------------------------
def test_models_of_one_name_are_told_apart_and_one_alone_is_no_comparison(tmp_path: Path) -> None:
    files = [write_model(tmp_path / name / "model.onnx") for name in "ab"]
    found = subjects.targets([*files, files[0]], subjects.Given())
    assert [one.subject.name for one in found] == ["model.onnx", "model.onnx (2)", "model.onnx (3)"]
    with pytest.raises(RecipeError, match="two models at least"):
        subjects.targets(files[:1], subjects.Given())


def test_runtimes_are_not_mixed_unless_that_is_what_is_asked(tmp_path: Path) -> None:
    one, other = write_model(tmp_path / "a.onnx"), tmp_path / "b.tflite"
    other.write_bytes(b"TFL3")
    with pytest.raises(RecipeError, match="different runtimes: onnxruntime, tflite"):
        subjects.targets([one, other], subjects.Given())
    assert len(subjects.targets([one, other], subjects.Given(), across_runtimes=True)) == 2


def test_artifacts_for_unlike_lengths_are_refused(tiny_artifact: Any, tmp_path: Path) -> None:
    artifact, folder = tiny_artifact
    artifact.write(folder / "artifact.json")
    longer = artifact.model_copy(update={"audio": artifact.audio.model_copy(update={"golden_seconds": 5.0})})
    longer.write(tmp_path / "longer/artifact.json")
    with pytest.raises(RecipeError, match="different lengths: 2 s, 5 s"):
        subjects.targets([folder, tmp_path / "longer"], subjects.Given())


# --- the command -----------------------------------------------------------------------------------------------------
def test_compare_measures_keeps_and_goes_on(call: Call, tmp_path: Path) -> None:
    files = [write_model(tmp_path / name, outputs=size) for name, size in (("a.onnx", 4), ("b.onnx", 8))]
    first = call("compare", *files, *BRIEF, "-o", tmp_path / "out", "--json")
    assert first.status == 0
    told = json.loads(first.out)
    assert told["ended"] == "budget"
    assert [one["name"] for one in told["variants"]] == ["a.onnx", "b.onnx"]
    spent = sum(run.seconds for run in record.Comparison.read(tmp_path / "out/compare.json").blocks)
    more = (spent + 0.5) / 60
    again = call("compare", *files, *QUICK, "--budget-minutes", more, "-o", tmp_path / "out", "--json")
    assert json.loads(again.out)["blocks"] > told["blocks"]
    assert "block" in again.err
    assert call("compare", *files, *BRIEF, "--threads", "2", "-o", tmp_path / "out").is_refused()


def test_compare_takes_artifacts_and_a_canary_and_tells_a_person(
    call: Call, tiny_artifact: Any, tiny_model: Path
) -> None:
    artifact, folder = tiny_artifact
    artifact.write(folder / "artifact.json")
    answer = call("compare", folder, folder, "--canary", tiny_model, *BRIEF)
    assert answer.status == 0
    assert "tiny-onnx-fp32 (2)" in answer.out
    assert "undecided" in answer.out
    assert "the budget is spent" in answer.err


def test_compare_sends_given_inputs_to_plain_files_alone(call: Call, tiny_artifact: Any, tiny_model: Path) -> None:
    artifact, folder = tiny_artifact
    artifact.write(folder / "artifact.json")
    assert call("compare", tiny_model, folder, "--dim", "time=3").is_refused()
    assert call("compare", tiny_model, folder, *BRIEF).is_refused()  # random against golden inputs
    assert call("compare", tiny_model, "nothing.onnx").is_refused()
    assert call("compare", tiny_model, tiny_model, "--half-width", "0").is_refused()


def test_compare_runs_strangers_runtimes(call: Call, tiny_model: Path, stranger: Any) -> None:
    name = stranger("doubler", DOUBLER)
    answer = call("compare", tiny_model, tiny_model, "--runtime", name, "--json", *BRIEF)
    assert [one["runtime"] for one in json.loads(answer.out)["variants"]] == [name, name]


def test_compare_goes_over_ssh(call: Call, ssh_device: Any, tiny_model: Path, tmp_path: Path) -> None:
    ssh_device("loopback")
    answer = call("compare", tiny_model, tiny_model, "--on", "loopback", "-o", tmp_path / "out", *BRIEF)
    assert answer.status == 0
    kept = [Measurement.read(path) for path in (tmp_path / "out/sessions").iterdir()]
    assert {(one.transport, one.device) for one in kept} == {("ssh", "loopback")}
