"""What heads attend to, how alike layers are, and who survives pruning: held against maps and orders known beforehand."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from edgecompress import PruneHeads, audio
from edgecompress.analysis import analyze, write
from edgecompress.analysis.attention import evenly, look, measures, watching
from edgecompress.analysis.record import Analysis, Head
from edgecompress.analysis.relations import answer, categories, relations
from edgecompress.analysis.similarity import linear_cka, similarities
from edgecompress.analysis.survival import ORDERS, survival
from edgecompress.errors import AudioError, ModelError
from edgecompress.model import Model
from edgecompress.records import Source
from edgecompress.techniques import Context, compress
from tests.calling import Call
from tests.library import library_network, ours
from tests.models import FAMILIES, HEADS, HIDDEN, LAYERS, noise_clip, tiny

T = 12
CLIPS = [noise_clip(seconds, seed) for seed, seconds in enumerate((0.5, 0.3))]
IDENTITY = torch.eye(T)
COLUMN = torch.zeros(T, T).index_fill(1, torch.tensor([T // 2]), 1.0)
UNIFORM = torch.full((T, T), 1 / T)


def silent(text: str) -> None:
    pass


# --- what a map is like ----------------------------------------------------------------------------------------------
def test_the_identity_is_most_diagonal_one_column_most_vertical_and_uniform_most_global() -> None:
    found = measures(torch.stack([IDENTITY, COLUMN, UNIFORM]))
    assert [int(found[name].argmax()) for name in ("diagonality", "verticality", "globalness", "entropy")] == [
        0,
        1,
        2,
        2,
    ]
    assert int(found["cumulative_diagonality"].argmax()) == 0


def test_maps_known_by_heart_have_the_values_of_the_definitions() -> None:
    found = {name: values.tolist() for name, values in measures(torch.stack([IDENTITY, COLUMN, UNIFORM])).items()}
    mean_distance = (T * T - 1) / (3 * T)
    assert found["globalness"] == pytest.approx([0, 0, math.log(T)], abs=1e-6)
    assert found["entropy"] == pytest.approx([0, 0, 1], abs=1e-6)
    assert found["verticality"] == pytest.approx([-math.log(T), 0, -math.log(T)], abs=1e-6)
    assert found["diagonality"][0] == 0
    assert found["diagonality"][2] == pytest.approx(-mean_distance / T)


def test_any_map_has_the_values_of_the_definitions_written_out_the_long_way() -> None:
    weights = torch.softmax(torch.randn(T, T, generator=torch.Generator().manual_seed(0)) * 2, -1)
    rows = weights.double().numpy()
    far = sum(abs(q - k) * rows[q, k] for q in range(T) for k in range(T))
    column = rows.mean(0)
    found = {name: float(values[0]) for name, values in measures(weights[None]).items()}
    assert found["diagonality"] == pytest.approx(-far / T**2, rel=1e-6)
    assert found["verticality"] == pytest.approx((column * np.log(column)).sum(), rel=1e-6)
    assert found["globalness"] == pytest.approx(np.mean([-(row * np.log(row)).sum() for row in rows]), rel=1e-6)


def test_cumulative_diagonality_is_the_integral_of_what_lies_within_a_growing_band() -> None:
    weights = torch.softmax(torch.randn(T, T, generator=torch.Generator().manual_seed(1)), -1)
    distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
    steps = (np.arange(20000) + 0.5) / 20000
    inside = [float((weights * (distance <= r * (T - 1))).sum() / T) for r in steps]
    assert float(measures(weights[None])["cumulative_diagonality"]) == pytest.approx(np.mean(inside), abs=1e-3)


def test_a_head_goes_into_the_category_where_it_ranks_highest() -> None:
    found = measures(torch.stack([IDENTITY, COLUMN, UNIFORM]))
    heads = [head(0, i, **{name: float(values[i]) for name, values in found.items()}) for i in range(3)]
    assert categories(heads) == ["diagonal", "vertical", "global"]


# --- looking ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "melhubert"])
def test_the_weights_that_are_watched_are_those_of_the_library(family: str) -> None:
    network = library_network(family)
    model = ours(network)
    values = model.features(CLIPS[0])
    module = network.encoder if family == "whisper" else network
    with torch.no_grad():
        wanted = module(values, output_attentions=True).attentions
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad(), watching(model, seen.__setitem__):
        model.hidden_states(values)
    assert sorted(seen) == list(range(LAYERS))
    if family == "wavlm":  # the library tells the mean over heads there
        seen = {number: weights.mean(1, keepdim=True) for number, weights in seen.items()}
    assert all(torch.allclose(seen[i].expand_as(wanted[i]), wanted[i], atol=1e-6) for i in range(LAYERS))


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_changes_nothing_and_ends(family: str) -> None:
    model = tiny(family)
    values = model.features(CLIPS[0])
    with torch.no_grad():
        before = model.hidden_states(values)[-1]
        with watching(model, lambda number, weights: None):
            inside = model.hidden_states(values)[-1]
    assert torch.equal(before, inside)
    assert all(layer.attention.watch is None for layer in model.layers)


def test_whispers_padding_is_left_out_of_the_maps_and_told_apart() -> None:
    model = tiny("whisper")
    frames = model.filled_frames(CLIPS[1])
    maps: dict[int, torch.Tensor] = {}
    with torch.no_grad(), watching(model, maps.__setitem__):
        model.hidden_states(model.features(CLIPS[1]))
    whole = maps[0][0]
    own = whole[:, :frames, :frames]
    found = look(model, [CLIPS[1]], silent)
    assert whole.shape[-1] > (frames or 0) == found.frames
    assert found.heads[0]["padding"].tolist() == pytest.approx((1 - own.sum(-1).mean(-1)).tolist(), abs=1e-5)
    wanted = measures(own / own.sum(-1, keepdim=True))["diagonality"]
    assert found.heads[0]["diagonality"].tolist() == pytest.approx(wanted.tolist())


def test_every_clip_weighs_the_same_however_long_it_is() -> None:
    model = tiny("hubert")
    apart = [look(model, [clip], silent).heads[1]["verticality"] for clip in CLIPS]
    assert torch.allclose(look(model, CLIPS, silent).heads[1]["verticality"], (apart[0] + apart[1]) / 2)


def test_frames_are_taken_evenly_and_never_twice() -> None:
    assert evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly(3, 9).tolist() == [0, 1, 2]


# --- likeness --------------------------------------------------------------------------------------------------------
def features(seed: int, frames: int = 200, width: int = 16) -> torch.Tensor:
    return torch.randn(frames, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


@pytest.mark.parametrize("frames", [200, 10])
def test_cka_does_not_see_rotations_scale_and_shift(frames: int) -> None:
    one = features(0, frames)
    rotation = torch.linalg.qr(features(1, 16)).Q
    assert linear_cka(one, 3 * one @ rotation + 5) == pytest.approx(1, abs=1e-4)


def test_cka_sees_what_a_map_that_is_no_rotation_does_and_strangers_are_unlike() -> None:
    one = features(0, 4000)
    stretched = one @ torch.diag(torch.logspace(0, 2, 16))
    assert linear_cka(one, stretched) < 0.9
    assert linear_cka(one, features(2, 4000)) < 0.05


def test_cka_is_the_formula_written_out_by_gram_matrices() -> None:
    one, other = features(0, 50), features(1, 50) + features(0, 50)
    grams = []
    for x in (one, other):
        centred = (x - x.mean(0)).double()
        grams.append(centred @ centred.T)
    wanted = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    assert linear_cka(one, other) == pytest.approx(float(wanted), abs=1e-5)


def test_likeness_is_symmetric_one_on_the_diagonal_and_zero_for_what_never_changes() -> None:
    found = np.array(similarities([features(0), features(0) + features(1), torch.full((200, 16), 0.3)]))
    assert np.array_equal(found, found.T)
    assert found.diagonal().tolist() == pytest.approx([1, 1, 0])
    assert found[0, 2] == 0


# --- survival --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("score", "scope"), ORDERS)
def test_the_rounds_are_those_in_which_prune_heads_removes_each_head(score: Any, scope: Any) -> None:
    model = tiny("wavlm")
    found = survival(model, Context(clips=CLIPS), score, scope)
    context = Context(clips=CLIPS)
    rates = tuple((number + 1) / HEADS for number in range(HEADS - 1))
    compress(model.clone(), [PruneHeads(rounds=rates, score=score, scope=scope)], context)
    wanted = {
        (int(layer), one): done["round"]
        for done in context.rounds
        for layer, heads in done["removed"].items()
        for one in heads
    }
    assert found.rounds == HEADS - 1
    assert {key: value for key, value in found.rounds_of.items() if value <= found.rounds} == wanted
    assert sorted(number for (number, _), value in found.rounds_of.items() if value == HEADS) == list(range(LAYERS))


def test_the_model_stays_as_it_was() -> None:
    model = tiny("hubert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    analyze(model, CLIPS)
    assert model.edits == ()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- the whole -------------------------------------------------------------------------------------------------------
def head(layer: int, number: int, **values: Any) -> Head:
    names = ("entropy", "globalness", "verticality", "diagonality", "cumulative_diagonality", "padding")
    return Head(layer=layer, head=number, **{**dict.fromkeys(names, 0.0), "survival": {"l1_layer": 1}, **values})


def record(heads: list[Head]) -> Analysis:
    return Analysis(
        source=Source(name="toy", sha256="0" * 64), family="hubert", clips=1, seconds=1, frames=50, width=8,
        compared_frames=50, layers=sorted({one.layer for one in heads}), heads=heads, rounds={"l1_layer": 7},
        similarity=[[1.0]], tool="edgecompress",
    )  # fmt: skip


def test_diagonal_heads_that_stay_longer_are_said_to_and_a_layer_effect_is_told_apart() -> None:
    # Layer 1 is more diagonal and lives longer as a whole; inside a layer it is the other way round.
    heads = [
        head(layer, i, diagonality=layer + i / 100, survival={"l1_layer": 10 * layer + 8 - i})
        for layer in (0, 1)
        for i in range(8)
    ]
    found = next(one for one in relations(record(heads)) if one.measure == "diagonality")
    assert found.pooled is not None
    assert found.within is not None
    assert found.pooled.value > 0.4
    assert found.pooled.n == found.within.n == 16
    assert found.within.value == pytest.approx(-1)
    said = answer(record(heads), relations(record(heads)))
    assert said.endswith("with heads ranked within their layers: longer by 0, shorter by 1, undecided by 0.")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_analyzed_also_after_pruning_with_original_numbers(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    model.keep_heads(1, [1, 3])
    model.keep_heads(0, [])
    model.keep_layers([0, 1])
    found = analyze(model, CLIPS)
    assert [(one.layer, one.head) for one in found.heads] == [(1, 1), (1, 3)]
    assert np.array(found.similarity).shape == (3, 3)
    assert found.width == HIDDEN
    assert (max(one.padding for one in found.heads) > 0) == (family == "whisper")
    write(found, tmp_path / "out")
    assert Analysis.read(tmp_path / "out" / "analysis.json") == found
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "heads.csv").read_text())))
    assert [(row["layer"], row["head"], row["round_l1_global"]) for row in rows] == [
        (str(one.layer), str(one.head), str(one.survival["l1_global"])) for one in found.heads
    ]


def test_a_model_without_heads_and_clips_that_are_too_short_are_refused() -> None:
    model = tiny("hubert")
    with pytest.raises(AudioError, match="none of 1 clips"):
        analyze(model, [noise_clip(0.05)])
    for layer in model.layers:
        model.keep_heads(layer.number, [])
    with pytest.raises(ModelError, match="no attention heads left"):
        analyze(model, CLIPS)


# --- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number, clip in enumerate(audio.synthetic(2, 0.6).arrays):
        soundfile.write(folder / f"{number}.wav", clip, 16000)
    return folder


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-hubert"
    library_network("hubert").save_pretrained(folder)
    return folder


def test_analyze_answers_in_a_sentence_and_writes_a_page_that_needs_no_network(
    call: Call, hubert: Path, recordings: Path, tmp_path: Path
) -> None:
    said = call("analyze", hubert, "--audio", recordings, "--limit", 1, "-o", tmp_path / "out")
    assert said.status == 0
    assert any(
        line.startswith("Do diagonal heads survive longer? Of 8 pruning orders over 12 heads") for line in said.lines
    )
    assert said.lines[-1] == str(tmp_path / "out" / "index.html")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "default-src 'none'" in html.unescape(page)
    assert "<script src" not in page
    assert '<link rel="stylesheet' not in page
    drawn = json.loads(page.split('<script type="application/json" id="figures">')[1].split("</script>")[0])
    titles = [figure["title"] for figure in drawn]
    assert {"Diagonality", "Verticality", "Globalness", "Entropy", "Likeness of hidden states"} <= set(titles)
    assert sum(title.startswith("Removal by") for title in titles) == 8
    assert page.count('class="plot"') == len(drawn)
    assert all(np.shape(figure["data"][0]["z"]) == (LAYERS, HEADS) for figure in drawn[:-1])
    left = next(figure for figure in drawn if figure["title"] == "Heads left by l1, global")["data"][0]["z"]
    assert [sum(column) for column in zip(*left, strict=True)] == [LAYERS * (HEADS - done) for done in range(HEADS)]
    assert call("analyze", hubert, "--audio", recordings, "--limit", 1, "-o", tmp_path / "out").status == 0


def test_analyze_refuses_in_one_line_what_it_cannot_look_at(
    call: Call, hubert: Path, recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert call("analyze", hubert, "--audio", tmp_path / "none").is_refused()
    assert call("analyze", tmp_path / "none", "--audio", recordings).is_refused()
    assert call("analyze", hubert, "--audio", recordings, "--limit", 0).is_refused()
    assert call("analyze", hubert, "--audio", recordings, "-o", tmp_path / "full").is_refused()
    assert (tmp_path / "full" / "mine.txt").exists()


def test_a_checkpoint_is_analyzed_as_it_is(call: Call, recordings: Path, tmp_path: Path) -> None:
    from edgecompress.model import save

    model: Model = tiny("hubert")
    model.keep_heads(2, [0, 3])
    (tmp_path / "thin").mkdir()
    save(model, tmp_path / "thin")
    facts = json.loads(call("analyze", tmp_path / "thin", "--audio", recordings, "--json").out)
    assert [one["head"] for one in facts["heads"] if one["layer"] == 2] == [0, 3]
    assert facts["source"]["random_weights"] is True
