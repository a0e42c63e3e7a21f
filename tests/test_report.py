"""The report of a whole run folder, of folders that lack parts, and of folders whose texts mean harm."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgecompress import report
from edgecompress.errors import RecordError
from edgecompress.records import Run
from tests import report_builder as made


class Reader(HTMLParser):
    """What a browser would see: tags with their attributes, texts, and the bodies of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def figures(self) -> list[dict]:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A whole run with its report written."""
    folder = made.build(tmp_path_factory.mktemp("run"))
    report.write(folder)
    return folder


@pytest.fixture(scope="module")
def page(run) -> Reader:
    return Reader((run / "report" / "index.html").read_text(encoding="utf-8"))


def small(folder: Path, *recipes: made.Made, **kinds: bool) -> Reader:
    """The page of a run of a few recipes."""
    return Reader(report.write(made.build(folder, list(recipes), **kinds)).read_text(encoding="utf-8"))


def test_the_page_refers_to_nothing_outside_itself(page):
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links == ["data:,"]
    policy = next(
        attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes
    )
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_the_policy_allows_exactly_the_two_scripts_of_the_page(page):
    policy = next(
        attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes
    )
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.count("sha256-") == len(page.scripts) - 1 == 2
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]


def test_plotly_is_in_the_page_once_and_each_device_has_its_figures(page):
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    titles = [figure["title"] for figure in page.figures]
    assert titles == 2 * [
        "Latency against multiply-accumulates",
        "Latency against non-zero parameters",
        "Barista slot recall against latency",
        "Barista WER against latency",
    ]


def test_the_headline_answers_from_the_measured_numbers(page):
    assert (
        "of 42 timings of smaller models, 34 are faster than dense beyond the noise, 8 cannot be told from it"
        in page.text
    )
    assert "the fastest within noise of dense is context-12s-ffn-75, 2.0" in page.text
    assert "rank correlation of latency is 0.99" in page.text


def test_every_row_of_the_table_has_its_numbers_with_units(run):
    rows = list(csv.DictReader((run / "report" / "table.csv").open(encoding="utf-8")))
    assert len(rows) == 2 * (2 * len(made.RECIPES) - 1)
    half = next(
        row
        for row in rows
        if row["recipe"] == "ffn-50-activation" and row["device"] == "pi4" and row["precision"] == "fp32"
    )
    truth = next(one for one in made.RECIPES if one.name == "ffn-50-activation")
    assert float(half["latency_median_ms"]) == pytest.approx(1e3 * made.latency_s(truth, "fp32", "pi4"), rel=0.02)
    assert (
        float(half["latency_median_low95_ms"])
        <= float(half["latency_median_ms"])
        <= float(half["latency_median_high95_ms"])
    )
    assert float(half["speedup_over_dense"]) == pytest.approx(1.15 / made.latency_s(truth, "fp32", "pi4"), rel=0.02)
    assert float(half["real_time_factor"]) == pytest.approx(float(half["latency_median_ms"]) / 30e3, rel=1e-4)
    assert half["barista_slot_recall_clips"] == "60"
    assert half["disk_bytes"] == str(made.cost(truth).bytes), "the golden file is not what a device must store"
    assert half["latency_p99_ms"] == "", "240 samples do not support a p99"


def test_the_summary_is_the_table_and_can_be_told_as_json(run):
    rows = report.summary(run)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    with (run / "report" / "table.csv").open(encoding="utf-8") as stream:
        assert list(rows[0]) == next(csv.reader(stream))


def test_plain_and_activation_aware_scores_stand_side_by_side(run):
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    section = text.partition("## Plain against activation-aware")[2].partition("##")[0]
    lines = [
        [cell.strip() for cell in line.split(" | ")]
        for line in section.splitlines()
        if "slot recall" in line and "fp32" in line
    ]
    assert [line[0].lstrip("| ") for line in lines] == ["prune ffn", "prune heads", "factorize"]
    for line in lines:
        plain, aware = float(line[4].split()[0]), float(line[5].split()[0])
        assert plain < 0.2 < aware


def test_only_rows_that_nothing_beats_are_on_the_front(run):
    rows = [row for row in report.summary(run) if row["device"] == "pi4"]
    front = [row for row in rows if row["pareto_front"]]
    assert 0 < len(front) < len(rows)
    for row in rows:
        faster = [one for one in front if one["latency_median_ms"] <= row["latency_median_ms"]]
        assert row["pareto_front"] or max(one["barista_slot_recall"] for one in faster) >= row["barista_slot_recall"]


def test_zeros_and_shorter_inputs_and_failures_are_told(page):
    assert "pi4 · zeros-50 · fp32: 50% zeros, measured 1.0" in page.text
    assert "dense runtimes do not use zeros" in page.text
    assert "one inference takes 12 s where dense takes 30 s" in page.text
    assert "heads-1-l1-onnx-int8" in page.text
    assert "leave the attention projections unquantised" in page.text


def test_conditions_are_told_with_the_reason_where_one_is_unknown(tmp_path):
    bare = {"absent": {"governor": "no cpufreq on this device"}}
    one = made.measurement(
        "dense-x", made.RECIPES[0], "fp32", "board", [made.repetition(0.1, np.random.default_rng(0), facts_before=bare)]
    )
    one.write(tmp_path / "measurements" / "one.json")
    text = Reader(report.write(tmp_path).read_text(encoding="utf-8")).text
    assert "unknown: no cpufreq on this device" in text
    assert "onnxruntime 1.31.1" in text
    assert "Debian GNU/Linux 12 (bookworm)" in text


def test_random_weights_are_named_in_the_title_and_at_every_figure_and_table(tmp_path):
    page = small(tmp_path, *made.RECIPES[:4], random_weights=True)
    tables = sum(tag == "table" for tag, _ in page.tags)
    figures = sum(tag == "figure" for tag, _ in page.tags)
    marks = sum(attributes.get("class") == "random" for _, attributes in page.tags)
    assert figures == 8
    assert marks == 1 + tables + figures
    assert "within the noise of dense" not in page.text
    assert "**Random weights:**" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_a_run_without_scores_still_has_times_and_figures(tmp_path):
    page = small(tmp_path, *made.RECIPES[:6], scored=False)
    assert len(page.figures) == 4
    assert "speed-up" in page.text


def test_a_run_of_which_everything_failed_is_reported(tmp_path):
    Run(name="none", source=made.source(), job={}, recipes=["dense", "thin"], tool=made.TOOL).write(
        tmp_path / "run.json"
    )
    made.failure("thin").write(tmp_path / "failures" / "thin.json")
    page = Reader(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "Nothing here can answer yet" in page.text
    assert [row["recipe"] for row in report.summary(tmp_path)] == ["dense", "thin"]
    assert page.figures == []


def test_measurements_of_a_plain_file_make_a_report_without_a_run(tmp_path):
    one = made.measurement(
        "model.onnx",
        made.RECIPES[0],
        "",
        "local",
        [made.repetition(0.02, np.random.default_rng(0))],
        recipe="",
        audio_seconds=None,
    )
    one.write(tmp_path / "model.json")
    (tmp_path / "notes.json").write_text("[]", encoding="utf-8")
    rows = report.summary(tmp_path)
    assert [(row["recipe"], row["device"], row["real_time_factor"]) for row in rows] == [("model.onnx", "local", None)]
    assert report.write(tmp_path).is_file()


def test_one_broken_record_is_a_warning_and_the_rest_is_reported(tmp_path):
    made.build(tmp_path, made.RECIPES[:3])
    broken = next((tmp_path / "measurements").glob("dense*"))
    broken.write_text(broken.read_text(encoding="utf-8")[:100], encoding="utf-8")
    page = Reader(report.write(tmp_path).read_text(encoding="utf-8"))
    assert f"measurements/{broken.name}: not readable as JSON" in page.text
    assert str(tmp_path) not in page.text


def test_an_empty_folder_and_no_folder_are_refused_with_a_hint(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RecordError) as refused:
            report.write(folder)
        assert refused.value.hint


EVIL = "=1+1|<img src=x onerror=alert(1)>`*[x](javascript:y)</script>{{7*7}}"


def test_texts_from_the_folder_run_no_script_and_make_no_formula(tmp_path):
    evil = made.Made(EVIL, [{"kind": EVIL}], parameters=0.5, macs=0.5, recall=0.7)
    page = small(tmp_path, made.RECIPES[0], evil)
    assert EVIL in page.text
    assert not [tag for tag, _ in page.tags if tag in ("img", "a", "iframe")]
    assert len(page.scripts) == 3
    drawn = [text for figure in page.figures for trace in figure["data"] for text in trace.get("hovertext", [])]
    assert drawn
    assert not [text for text in drawn if "<img" in text]
    with (tmp_path / "report" / "table.csv").open(encoding="utf-8") as stream:
        assert not [cell for row in csv.reader(stream) for cell in row if cell.startswith(("=", "+", "@"))]
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "<img" not in text
    widths = {
        len(re.findall(r"(?<!\\)\|", line))
        for line in text.partition("## On pi4")[2].splitlines()
        if line.startswith("|")
    }
    assert len(widths) == 1, "a bar in a name must not open a new cell"


def test_a_wide_range_is_drawn_on_two_logarithmic_axes_with_plain_ticks(tmp_path):
    tiny = made.Made("tiny", [{"kind": "drop_layers"}], parameters=0.02, macs=0.02, recall=0.1)
    layout = small(tmp_path, made.RECIPES[0], tiny).figures[0]["layout"]
    assert layout["xaxis"]["type"] == layout["yaxis"]["type"] == "log"
    assert all(re.fullmatch(r"\d+(\.\d+)?", text) for text in layout["xaxis"]["ticktext"])


def test_a_recipe_made_twice_shows_both_and_says_so(tmp_path):
    made.build(tmp_path, made.RECIPES[:2])
    old = made.RECIPES[1]
    made.artifact(replace(old, zeros=0.9), "fp32").write(
        tmp_path / "artifacts" / f"{old.name}-onnx-fp32-{'e' * 12}" / "artifact.json"
    )
    names = {row["recipe"] for row in report.summary(tmp_path) if row["precision"] == "fp32"}
    assert names == {"dense", "zeros-30 #eeeeee", "zeros-30 #ffffff"}


def test_a_checkpoint_that_was_scored_but_never_exported_has_a_row(tmp_path):
    one = made.RECIPES[5]
    name = f"{one.name}-0123456789ab"
    made.checkpoint(one).write(tmp_path / "checkpoints" / name / "checkpoint.json")
    made.score(one, name, None, "slot_recall").write(tmp_path / "scores" / f"{name}-slot_recall.json")
    (row,) = report.summary(tmp_path)
    assert (row["recipe"], row["format"], row["barista_slot_recall_clips"]) == ("ffn-75-l1", None, 60)


def test_writing_a_report_does_not_wait_for_torch(run):
    code = f"import sys; from edgecompress import report; report.summary({str(run)!r}); print('torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert told.stdout.strip() == "False"
