"""TFLite: fixed lengths in one file, padding that is not heard, five precisions, and the function that a device runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench_remote import tensors
from bench_remote.tflite import tflite as device_function
from edgecompress.errors import ExportError
from edgecompress.exporters import Options, Order, export, tflite_file, tflite_graph
from edgecompress.exporters.parity import distances, tolerance_of
from edgecompress.exporters.tflite import TfliteExporter
from edgecompress.exporters.tflite_versions import GREATEST_2_14
from edgecompress.exporters.tracing import evaluating
from edgecompress.model import Model
from edgecompress.model.forms import form_of
from tests.models import noise_clip, tiny

BUCKETS = (40, 80, 160)
WIDTH = 512
HOP = 4


class Frames(nn.Module):
    """Four samples a frame, then matrices; a frame that is not real is zero. Answers how many are real, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv = nn.Conv1d(1, 16, 1), nn.Conv1d(16, WIDTH, HOP, HOP)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = nn.functional.gelu(self.conv(self.first(values[:, None]))).transpose(1, 2)
        frames = torch.div(lengths, HOP, rounding_mode="floor")
        real = torch.arange(hidden.shape[1], device=values.device) < frames[:, None]
        mean = (hidden * real[..., None]).sum(1, keepdim=True) / frames[:, None, None]
        return self.down(torch.tanh(self.up(hidden - mean))) * real[..., None], frames


@pytest.fixture(scope="module")
def frames() -> Iterator[Frames]:
    with torch.no_grad():
        yield Frames().eval().requires_grad_(False)


def traced(module: Frames, *lengths: int) -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    return {f"samples_{n}": (module, (torch.randn(1, n), torch.tensor([n]))) for n in lengths}


NAMES = ("input_values", "lengths"), ("logits", "frames")


@pytest.fixture(scope="module")
def file(frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three lengths in one file."""
    file = tmp_path_factory.mktemp("buckets") / "model.tflite"
    tflite_graph.convert(traced(frames, *BUCKETS), *NAMES, file)
    tflite_file.finish(file, {"edgecompress.recipe": "half — ½"})
    return file


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, length)).astype(np.float32)


def said_by_torch(frames: Frames, values: np.ndarray) -> np.ndarray:
    return frames(torch.from_numpy(values), torch.tensor([values.shape[1]]))[0].numpy()


@pytest.mark.parametrize("length", [4, 7, 39, 40, 41, 79, 80, 100, 159, 160])
def test_any_length_up_to_the_largest_bucket_says_what_torch_says(file: Path, frames: Frames, length: int) -> None:
    run, _ = device_function(str(file), {"threads": 1})
    said = run({"input_values": noise(length)})
    wanted = said_by_torch(frames, noise(length))
    assert said["logits"].shape == wanted.shape
    assert np.abs(said["logits"] - wanted).max() < 1e-5
    assert said["frames"].tolist() == [length // HOP]


def test_lengths_may_say_that_less_of_a_row_is_audio(file: Path, frames: Frames) -> None:
    run, _ = device_function(str(file), {"threads": 1})
    loud = np.concatenate([noise(60), 100 * noise(40, seed=1)], axis=1)
    said = run({"input_values": loud, "lengths": np.array([60])})["logits"]
    assert np.abs(said - said_by_torch(frames, noise(60))).max() < 1e-5


def test_whole_numbers_of_64_bits_are_taken_where_they_fit_in_the_files_32(file: Path) -> None:
    run, _ = device_function(str(file), {"threads": 1})
    wide, narrow = ({"input_values": noise(60), "lengths": np.array([60], dtype)} for dtype in (np.int64, np.int32))
    np.testing.assert_array_equal(run(wide)["logits"], run(narrow)["logits"])
    with pytest.raises(tensors.BadInput, match="lengths has numbers that do not fit in the 32 bits"):
        run({"input_values": noise(60), "lengths": np.array([2**32 + 60])})


def test_counting_adds_no_trace_of_its_own_because_it_is_done_in_32_bits(frames: Frames) -> None:
    named = tflite_graph.Named(frames, *NAMES)
    values, lengths = torch.randn(1, 40), torch.tensor([40], dtype=torch.int32)
    program = torch.export.export(named, (), {"input_values": values, "lengths": lengths})
    counted = [node for node in program.graph.nodes if "arange" in str(node.target)]
    assert counted
    assert {node.meta["val"].dtype for node in counted} == {torch.int32}


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_tokens_and_images_are_taken_as_torch_takes_them(family: str, tmp_path: Path) -> None:
    artifact = export(tiny(family), "tflite", tmp_path / "made")
    assert [tensor.dtype for tensor in artifact.inputs] == (["int32"] * 2 if family == "bert" else ["float32"])
    assert artifact.lineage["signatures"] == (["tokens_40"] if family == "bert" else ["images"])


def test_half_precision_leaves_what_makes_log_mel_frames_in_float(tmp_path: Path) -> None:
    export(tiny("melhubert"), "tflite", tmp_path / "made", precision="fp16", options=Options(seconds=(1.0,)))
    graph = tflite_file.read(tmp_path / "made" / "model.tflite").subgraphs[0]
    spectra = {257, 514}  # sizes of the power spectrum and of the transform behind it
    halves = [each for each in graph.tensors if tflite_file.type_name(each) == "FLOAT16"]
    assert halves
    assert not [each.name for each in halves if spectra & set(each.shape)]


def test_a_length_beyond_the_largest_is_refused_and_the_buckets_are_named(file: Path) -> None:
    run, _ = device_function(str(file), {"threads": 1})
    with pytest.raises(tensors.BadInput, match=r"161 long.* 1 to 160 \(buckets: 40, 80, 160\)"):
        run({"input_values": noise(161)})


def test_three_lengths_share_the_weights_of_one(file: Path, frames: Frames, tmp_path: Path) -> None:
    single = tmp_path / "single.tflite"
    tflite_graph.convert(traced(frames, 40), *NAMES, single)
    tflite_file.finish(single, {})
    assert single.stat().st_size > WIDTH * WIDTH * 4
    assert file.stat().st_size < 1.1 * single.stat().st_size


def test_a_signature_has_the_names_it_was_given_and_the_file_its_metadata(file: Path) -> None:
    tables = tflite_file.read(file)
    found = tflite_file.signatures(tables)
    assert list(found) == ["samples_40", "samples_80", "samples_160"]
    for inputs, outputs in found.values():
        assert (set(inputs), set(outputs)) == ({"input_values", "lengths"}, {"logits", "frames"})
    assert tflite_file.metadata(tables)["edgecompress.recipe"] == "half — ½"


def test_metadata_that_is_written_again_replaces_the_old(file: Path) -> None:
    tables = tflite_file.read(file)
    tflite_file.set_metadata(tables, {"edgecompress.recipe": "other"})
    assert tflite_file.metadata(tables)["edgecompress.recipe"] == "other"
    assert [entry.name for entry in tables.metadata].count(b"edgecompress.recipe") == 1


def test_the_device_function_says_why_it_has_no_profile_of_operators(file: Path) -> None:
    _, about = device_function(str(file), {"threads": 1, "profile": "profile"})
    assert "LiteRT" in about["operators_absent"]
    assert "operators_absent" not in device_function(str(file), {"threads": 1})[1]


def test_the_device_function_tells_versions_buckets_and_free_dimensions(file: Path) -> None:
    assert device_function("", {})[0] is None
    assert device_function("", {})[1]["version"]
    _, about = device_function(str(file), {"threads": 2})
    assert about["options"]["num_threads"] == 2
    assert about["options"]["buckets"] == {"samples_40": 40, "samples_80": 80, "samples_160": 160}
    assert {each["name"]: (each["dtype"], each["shape"]) for each in about["inputs"]} == {
        "input_values": ("float32", [1, None]),
        "lengths": ("int32", [1]),
    }
    assert {each["name"]: each["shape"] for each in about["outputs"]} == {"logits": [1, None, 8], "frames": [1]}
    tensors.check(about["inputs"], {"input_values": noise(5), "lengths": np.array([5])})


def test_xnnpack_runs_the_graph_unless_told_otherwise(file: Path) -> None:
    _, on = device_function(str(file), {"threads": 1})
    run, off = device_function(str(file), {"threads": 1, "xnnpack": False})
    assert on["options"]["delegates"] > 0
    assert off["options"]["delegates"] == 0
    assert run({"input_values": noise(80)})["logits"].shape == (1, 20, 8)


def test_parts_that_can_be_quantised_go_by_short_names_and_can_be_left_out(file: Path, tmp_path: Path) -> None:
    names = tflite_graph.quantizable(file)
    assert sorted(names) == ["module/conv", "module/down", "module/up"]
    all_of_it, less = tmp_path / "all.tflite", tmp_path / "less.tflite"
    tflite_graph.quantize(file, all_of_it, "int8")
    tflite_graph.quantize(file, less, "int8", float_nodes=["module/up"])
    weights = {
        (tflite_file.scope_of(each.name), tflite_file.type_name(each.weight))
        for each in tflite_file.weighted(tflite_file.read(less))
    }
    first = ("module/first", "FLOAT32")  # of one channel: not among what is quantised
    assert weights == {first, ("module/conv", "INT8"), ("module/up", "FLOAT32"), ("module/down", "INT8")}
    quantised = [tflite_file.small_weights(tflite_file.finish(each, {})) for each in (all_of_it, less)]
    assert quantised[1] == quantised[0] - 1


def test_a_float_node_that_is_not_there_is_refused_and_the_nearest_is_offered(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no part of the model is called 'module/upp'"):
        tflite_graph.quantize(file, tmp_path / "x.tflite", "int8", float_nodes=["module/upp"])


def test_nothing_left_to_quantise_is_an_error(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no weight was quantised"):
        tflite_graph.quantize(file, tmp_path / "x.tflite", "int8", float_nodes=["module"])


def test_int8_with_row_scales_asks_for_a_runtime_that_reads_them(file: Path, tmp_path: Path) -> None:
    rows, whole = tmp_path / "rows.tflite", tmp_path / "whole.tflite"
    tflite_graph.quantize(file, rows, "int8")
    tflite_graph.quantize(file, whole, "int8", row_scales=False)
    needed = [tflite_file.operators(tflite_file.finish(each, {})) for each in (rows, whole)]
    assert tflite_file.runtimes(needed[0]) == ["ai-edge-litert"]
    assert tflite_file.runtimes(needed[1]) == ["ai-edge-litert", "tflite-runtime 2.14"]
    with pytest.raises(ExportError, match=r"tflite-runtime 2.14 does not have FULLY_CONNECTED version 12"):
        tflite_file.refuse_beyond_2_14(needed[0])


def test_an_operator_that_the_old_runtime_never_had_is_beyond_it() -> None:
    assert tflite_file.beyond_2_14({"DILATE": 1, "RESHAPE": 1}) == {"DILATE": 1}
    assert tflite_file.beyond_2_14(GREATEST_2_14) == {}


def test_a_module_that_cannot_be_lowered_is_an_export_error(tmp_path: Path) -> None:
    class Sorted(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(values)

    with pytest.raises(ExportError, match="litert-torch cannot convert this model"):
        tflite_graph.convert(
            {"a": (Sorted().eval(), (torch.randn(3, 3),))}, ["values"], ["logits"], tmp_path / "x.tflite"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as others make them: int8 in and out, one nameless signature, no length in any name."""
    from ai_edge_quantizer import quantizer, recipe

    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(1)
    with torch.no_grad():
        buckets = {"serving_default": (nn.Linear(10, 4).eval(), (torch.randn(1, 10),))}
        tflite_graph.convert(buckets, ["x"], ["y"], folder / "float.tflite")
    work = quantizer.Quantizer(str(folder / "float.tflite"), recipe.static_wi8_ai8())
    with pytest.warns(UserWarning, match="preserve_all_tensors"):
        ranges = work.calibrate({"serving_default": [{"x": noise(10, seed)} for seed in range(4)]}, num_threads=1)
    work.quantize(ranges, serialize_to_path=str(folder / "int8.tflite"), enable_progress_report=False)
    tables = tflite_file.read(folder / "int8.tflite")
    tables.signatureDefs = None
    tflite_file.write(tables, folder / "bare.tflite")
    return folder


@pytest.mark.filterwarnings("ignore:.*preserve_all_tensors")
def test_a_foreign_file_runs_at_its_fixed_shape_with_or_without_a_signature(foreign: Path) -> None:
    given = np.arange(10, dtype=np.int8)[None]
    signed, about = device_function(str(foreign / "int8.tflite"), {"threads": 1})
    assert about["inputs"] == [{"name": "x", "dtype": "int8", "shape": [1, 10]}]
    assert about["outputs"] == [{"name": "y", "dtype": "int8", "shape": [1, 4]}]
    bare, about = device_function(str(foreign / "bare.tflite"), {"threads": 1})
    (name,) = [each["name"] for each in about["inputs"]]
    (answer,) = bare({name: given}).values()
    assert answer.dtype == np.int8
    assert answer.tolist() == signed({"x": given})["y"].tolist()


def uneven(model: Model) -> Model:
    """Heads and units gone unevenly, and matrices of low rank."""
    model.keep_heads(0, [1, 3])
    model.keep_heads(1, [])
    model.keep_units(0, range(7, 30))
    model.factor(1, "up", 9)
    model.factor(2, "q_proj", 9)
    model.factor(0, "out_proj", 5)
    return model


FAMILIES_HERE = (
    ("hubert", "dense", None), ("hubert", "uneven", None), ("wav2vec2", "uneven", None), ("wavlm", "uneven", None),
    ("data2vec-audio", "uneven", None), ("melhubert", "uneven", "waveform"), ("melhubert", "uneven", "features"),
    ("whisper", "uneven", None),
)  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES_HERE, ids=lambda each: "-".join(map(str, each)))
def order(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Order:
    """A family's fp32 file of one length, and the order that made it."""
    family, shape, takes = request.param
    model = tiny(family)
    if shape == "uneven":
        uneven(model)
    form = form_of(model, takes)
    folder = tmp_path_factory.mktemp(f"{family}-{shape}-{takes}")
    seconds = () if family == "whisper" else (0.5,)
    clips = [noise_clip(1.0, seed) for seed in range(2)]
    made = Order(model, form, "fp32", folder, {"edgecompress.tool": "test"}, None, Options(seconds=seconds), clips)
    with evaluating(model):
        written = TfliteExporter().write(made)
    assert written.quantized_nodes is None
    return replace(made, full=folder / written.model_file)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-static", "int8-weights"])
def test_every_family_says_what_torch_says_at_every_precision(order: Order, precision: str, tmp_path: Path) -> None:
    asked = replace(order, precision=precision, folder=tmp_path)
    if precision != "fp32":
        written = TfliteExporter().write(asked)
        assert (tmp_path / written.model_file).stat().st_size < order.full.stat().st_size  # type: ignore[union-attr]
        assert (written.quantized_nodes is None) == (precision == "fp16")
        assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]
    run = TfliteExporter().open(order.full if precision == "fp32" else tmp_path / "model.tflite")  # type: ignore[arg-type]
    length = (order.lengths() or [2 * int(order.model.context_positions or 0)])[0]
    clip = np.resize(noise_clip(2.0, seed=9), length if order.form.unit == "samples" else 32000)
    values = order.form.example(order.model, 1, length)[0].numpy()
    inputs = [values] if order.form.unit != "samples" else [values, clip[None].astype(np.float32)]
    for each in inputs:
        feeds = {order.form.input_name: each}
        ((name, wanted),) = order.form.answer(order.model, feeds).items()
        apart, allowed = distances(run(feeds)[name], wanted), tolerance_of(precision)
        assert apart["cosine"] >= allowed.cosine
        assert apart["relative"] <= allowed.relative


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-static", "int8-weights"])
def test_an_order_for_the_old_runtime_is_written_such_that_it_can_read_it(
    order: Order, precision: str, tmp_path: Path
) -> None:
    asked = replace(
        order, precision=precision, folder=tmp_path, options=replace(order.options, for_runtime="tflite-runtime")
    )
    written = TfliteExporter().write(asked)
    assert "tflite-runtime 2.14" in written.lineage["runtimes"]


def test_a_runtime_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    model = tiny("hubert")
    asked = Order(model, form_of(model), "fp32", tmp_path, options=Options(for_runtime="tflite-runtme"))
    with pytest.raises(ExportError, match="no runtime is called 'tflite-runtme'"):
        TfliteExporter().write(asked)


def test_a_length_that_is_also_another_dimension_is_refused(tmp_path: Path) -> None:
    model = tiny("whisper")
    asked = Order(model, form_of(model), "fp32", tmp_path, options=Options(seconds=(0.8,)))
    with pytest.raises(ExportError, match="80 mel frames are as many as another dimension"):
        TfliteExporter().write(asked)
