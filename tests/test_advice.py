"""The adviser: what instruction sets let expect, what a probe measured, and which of the two is believed."""

from __future__ import annotations

import json
import sys
import venv
from pathlib import Path

import numpy
import pytest

from benchmarks import roofline
from edgecompress import advice, devices, session
from edgecompress.advice import PRODUCTS, WORTH, Core, Measured, Opinion, core_of, probing
from edgecompress.advice.rules import Rule, precisions, rules
from edgecompress.devices import profile, profiles
from edgecompress.stats import Estimate
from tests.calling import Call
from tests.device_fixtures import ONCE, write_model

VNNI = {"machine": "x86_64", "isa": "avx avx2 avx512bw avx512f avx512_vnni fma"}
AVX2 = {"machine": "x86_64", "isa": "avx avx2 fma"}
QUICK = ["--rounds", "1", "--min-seconds", "0"]


def opinions(core: Core, *measured: Measured) -> dict[str, Opinion]:
    return {one.precision: one for one in advice.advise(core, measured).opinions}


def verdicts(core: Core) -> dict[str, str]:
    return {name: one.verdict for name, one in opinions(core).items()}


def measured(low: float, value: float, high: float, part: str = PRODUCTS, precision: str = "int8") -> Measured:
    return Measured(precision, part, Estimate(value, low, high, 40), 10.0, 10.0 / value, 4, "onnxruntime 1, 1 thread")


def test_a_pi_4_is_not_a_pi_5() -> None:
    four, five = (opinions(core_of(profile=profile(name))) for name in ("rpi4b", "rpi5-8gb"))
    assert (four["int8"].verdict, five["int8"].verdict) == ("undecided", "pays")
    assert (four["fp16"].verdict, five["fp16"].verdict) == ("does not pay", "pays")
    assert "no dot product (Cortex-A53, A57, A72)" in four["int8"].reason
    assert five["int8"].rule is not None
    assert five["int8"].rule.name == "NEON dot product"


def test_int8_pays_with_vnni_and_is_undecided_with_avx2_alone() -> None:
    assert verdicts(core_of(VNNI))["int8"] == verdicts(core_of(VNNI))["int8-static"] == "pays"
    alone = opinions(core_of(AVX2))["int8"]
    assert alone.verdict == "undecided"
    assert "saturate" in alone.reason


def test_a_newer_instruction_goes_before_an_older_one() -> None:
    new = core_of({"machine": "aarch64", "isa": "asimd asimddp asimdhp i8mm"})
    named = opinions(new)["int8"].rule
    assert named is not None
    assert named.name == "NEON i8mm"


def test_flags_that_nobody_told_leave_a_verdict_open_and_are_named() -> None:
    found = opinions(core_of(profile=profile("x86-64")))["int8"]
    assert (found.verdict, found.by, found.rule) == ("undecided", "nothing", None)
    assert "avx512_vnni" in found.reason
    assert verdicts(core_of({"machine": "x86_64"})) == dict.fromkeys(precisions(), "undecided")


def test_a_kind_of_processor_without_rules_is_undecided() -> None:
    found = opinions(core_of({"machine": "riscv64", "isa": "rv64imafdcv"}))["int8"]
    assert found.verdict == "undecided"
    assert "riscv64" in found.reason
    assert "architecture not known" in opinions(core_of())["int8"].reason


def test_an_unknown_flag_that_would_change_nothing_does_not_stop_a_verdict() -> None:
    """Nobody says whether a Pi 5 without its list of missing flags has i8mm: int8 pays either way."""
    core = Core("aarch64", frozenset({"asimd", "asimddp"}))
    assert verdicts(core)["int8"] == "pays"
    assert verdicts(core)["fp16"] == "undecided"


def test_the_device_is_believed_where_its_profile_says_otherwise() -> None:
    core = core_of({"machine": "aarch64", "isa": "asimd asimddp"}, profile("rpi4b"))
    assert verdicts(core)["int8"] == "pays"
    assert any("has asimddp" in note for note in advice.advise(core).notes)
    assert any("lacks crc32" in note for note in core.notes)


@pytest.mark.parametrize("odd", [None, 5, "", ["avx2"], {"avx2": True}])
def test_flags_of_any_shape_break_nothing(odd: object) -> None:
    assert not core_of({"machine": odd, "isa": odd}).whole
    assert core_of({"isa": odd}, profile("rpi4b")).absent >= {"asimddp", "i8mm"}


def test_what_was_measured_beats_the_rule_and_the_disagreement_is_told() -> None:
    found = opinions(core_of(VNNI), measured(0.78, 0.80, 0.82))["int8"]
    assert (found.verdict, found.by, found.agrees) == ("does not pay", "measured", False)
    assert found.reason.startswith("measured 0.80 [0.78, 0.82] times as fast as fp32, against the rule (pays)")


def test_a_measurement_decides_where_the_rule_does_not() -> None:
    found = opinions(core_of(profile=profile("rpi4b")), measured(1.2, 1.3, 1.4))["int8"]
    assert (found.verdict, found.by, found.agrees) == ("pays", "measured", None)


def test_an_agreeing_measurement_beyond_the_expected_range_is_told() -> None:
    found = opinions(core_of(VNNI), measured(1.15, 1.2, 1.25))["int8"]
    assert (found.verdict, found.agrees) == ("pays", True)
    assert "outside of what was expected (1.5 to 4)" in found.reason


def test_a_measurement_too_uncertain_to_contradict_leaves_the_rule_standing() -> None:
    found = opinions(core_of(VNNI), measured(0.6, 1.8, 5.0))["int8"]
    assert (found.verdict, found.by, found.agrees) == ("pays", "rule", None)
    assert "too uncertain" in found.reason


def test_a_measurement_at_the_edge_of_worth_that_excludes_the_rule_is_undecided() -> None:
    found = opinions(core_of(VNNI), measured(1.05, 1.1, 1.15))["int8"]
    assert (found.verdict, found.by) == ("undecided", "measured")


def test_a_single_process_decides_nothing() -> None:
    one = Measured("int8", PRODUCTS, Estimate(3.0, None, None, 5), 9.0, 3.0, 1, "onnxruntime 1, 1 thread")
    found = opinions(core_of(AVX2), one)["int8"]
    assert found.verdict == "undecided"
    assert "3.00 (no interval)" in found.reason


def test_a_convolution_is_told_and_decides_nothing() -> None:
    given = advice.advise(core_of(AVX2), [measured(2, 3, 4, "convolution", "int8-static")])
    assert [one.part for one in given.others] == ["convolution"]
    assert {one.by for one in given.opinions} == {"rule"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: f"{rule.precision}: {rule.name}")
def test_a_rule_promises_no_more_than_its_range(rule: Rule) -> None:
    if rule.verdict == "pays":
        assert rule.low is None or rule.low >= WORTH
        assert rule.high is None or rule.high >= WORTH
    elif rule.verdict == "does not pay":
        assert rule.high is not None
        assert rule.high < WORTH
    else:
        assert (rule.low or 0) < WORTH <= (rule.high or WORTH)
    assert not set(rule.needs) & set(rule.lacks)


def test_every_board_that_names_its_flags_is_spoken_for() -> None:
    without_flags = {rule.precision for rule in rules() if not rule.needs and not rule.lacks}
    for board in profiles().values():
        known = {one.precision for one in advice.advise(core_of(profile=board)).opinions if one.rule}
        assert known == set(precisions()) if board.cpu.isa else known <= without_flags, board.id


def test_the_probe_computes_the_same_in_every_precision(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    answers, kinds = {}, {}
    for name, file in probing.write(tmp_path).items():
        runtime = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (given,) = runtime.get_inputs()
        x = numpy.random.default_rng(7).standard_normal(given.shape)
        (answer,) = runtime.run(None, {given.name: x.astype("float16" if "float16" in given.type else "float32")})
        answers[name] = answer.astype("float64").ravel()
        kinds[name] = {node.op_type for node in onnx.load(str(file)).graph.node}
    for name, answer in answers.items():
        reference = answers[name.partition(", ")[0] + ", fp32"]
        cosine = answer @ reference / (numpy.linalg.norm(answer) * numpy.linalg.norm(reference))
        assert cosine > 0.998, name
    assert "MatMulInteger" in kinds[f"{PRODUCTS}, int8"]
    assert {"QuantizeLinear", "MatMul"} <= kinds[f"{PRODUCTS}, int8-static"]
    assert {"QuantizeLinear", "Conv"} <= kinds["convolution, int8-static"]


def test_a_device_is_probed_and_advised_on(call: Call) -> None:
    answer = call("advise", "--json", *QUICK)
    assert answer.status == 0
    told = json.loads(answer.out)
    assert (told["schema"], told["device"], told["measured"]) == ("edgecompress.advice/1", "local", True)
    assert set(told) == {
        "schema", "device", "profile", "core", "measured", "unmeasured", "precisions", "others", "notes",
    }  # fmt: skip
    assert set(told["precisions"]) == set(precisions())
    assert {name for name, one in told["precisions"].items() if one["measured"]} == {"int8", "int8-static", "fp16"}
    for one in told["precisions"].values():
        assert set(one) == {"verdict", "by", "agrees", "reason", "measured", "rule"}
        assert one["verdict"] in ("pays", "does not pay", "undecided")
    seen = told["precisions"]["int8"]["measured"]
    assert 0 < seen["low"] <= seen["speedup"] <= seen["high"]
    assert seen["speedup"] == pytest.approx(seen["fp32_ms"] / seen["latency_ms"])
    assert (seen["processes"], seen["runtime"].split()[0]) == (2, "onnxruntime")
    assert [one["part"] for one in told["others"]] == ["convolution"]
    assert told["core"]["whole"]


def test_without_a_probe_the_rule_speaks_and_says_that_it_is_not_measured(call: Call) -> None:
    answer = call("advise", "--no-probe")
    assert answer.status == 0
    assert answer.lines[0].split() == ["precision", "verdict", "measured", "rule", "of"]
    assert [line.split()[0] for line in answer.lines[1:5]] == precisions()
    assert "not measured: no probe was asked for" in answer.out


def test_a_board_that_is_not_here_is_asked_by_its_profile(call: Call) -> None:
    told = json.loads(call("advise", "--profile", "rpi4b", "--json").out)
    assert (told["device"], told["profile"], told["measured"]) == (None, "rpi4b", False)
    assert told["unmeasured"] == "a board that is not here"
    assert told["precisions"]["int8"]["rule"]["sources"]
    assert "cortex-a72" in told["core"]["names"]


def test_a_device_without_the_runtime_is_advised_on_by_rule(call: Call, device_home: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    python = str(tmp_path / "bare/bin/python")
    devices.add_device("bare", {"transport": "local", "python": python, "cache": str(tmp_path / "cache")})
    answer = call("advise", "--on", "bare")
    assert answer.status == 0
    assert "not measured: bare has no onnxruntime" in answer.out


def test_a_host_without_onnx_advises_by_rule(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    answer = call("advise", *QUICK)
    assert answer.status == 0
    assert "not measured: the probe is made with onnx, which is not installed here" in answer.out


def test_a_file_that_the_device_cannot_run_is_told_and_leaves_the_others(
    local_device: devices.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = write_model(tmp_path / "good.onnx"), tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    files = {f"{PRODUCTS}, fp32": good, f"{PRODUCTS}, fp16": bad, f"{PRODUCTS}, int8": good}
    monkeypatch.setattr(probing, "write", lambda folder: files)
    found, notes = probing.probe(local_device, ONCE, rounds=2)
    assert [(one.precision, one.processes) for one in found] == [("int8", 2)]
    assert [note.partition(": ")[0] for note in notes if "measured" in note] == [
        f"{PRODUCTS}, fp16 could not be measured"
    ]


def test_the_state_of_the_device_that_was_probed_is_told(
    local_device: devices.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_model(tmp_path / "good.onnx")
    monkeypatch.setattr(probing, "write", lambda folder: {f"{PRODUCTS}, fp32": good, f"{PRODUCTS}, int8": good})
    virtual = bool(session.probe(local_device).identity.get("virtual"))
    _, notes = probing.probe(local_device, ONCE, rounds=1)
    assert any(note.startswith("A virtual machine") for note in notes) == virtual


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--on", "local", "--profile", "rpi4b"], "exclude each other"),
        (["--profile", "rpi4"], "did you mean 'rpi4b'?"),
        (["--on", "kitchen"], "no device is called 'kitchen'"),
        (["--rounds", "0"], "--rounds"),
        (["--threads", "0"], "threads = 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(call: Call, device_home: Path, asked: list[str], said: str) -> None:
    answer = call("advise", *asked)
    assert answer.is_refused()
    assert said in answer.err


def test_a_device_that_cannot_be_used_gives_one_error(call: Call, device_home: Path) -> None:
    devices.add_device("bare", {"transport": "local", "python": "/nowhere/python3"})
    answer = call("advise", "--on", "bare")
    assert answer.is_refused()
    assert "/nowhere/python3" in answer.err


def test_the_roof_is_the_best_of_what_was_run() -> None:
    roof = roofline.peak(threads=1, seconds=0.0, shapes=[(32, 64, 32), (64, 64, 64)])
    assert {one["precision"] for one in roof["runs"]} == {"fp32", "int8"}
    for precision in ("fp32", "int8"):
        rates = [one["gmacs_per_s"] for one in roof["runs"] if one["precision"] == precision]
        assert roof[precision]["gmacs_per_s"] == max(rates) > 0
    assert {tuple(one["shape"]) for one in roof["runs"]} == {(32, 64, 32), (64, 64, 64)}
    with pytest.raises(ValueError, match="0 threads"):
        roofline.peak(threads=0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_roofs_products_are_products(precision: str) -> None:
    import onnxruntime

    shape = (20, 256, 32)
    x, w = roofline.operands(shape)
    runtime = onnxruntime.InferenceSession(roofline.product(shape, precision), providers=["CPUExecutionProvider"])
    (answer,) = runtime.run(None, {"x": x})
    assert numpy.abs(answer - x @ w).mean() < (1e-3 if precision == "fp32" else 0.05 * numpy.abs(x @ w).mean())
