"""The published table: its figures, the rows that the techniques make of a model of the real size, and what a miss does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks import published_table
from benchmarks.published_table import FIGURES, Built, Row, build, count, dense_model, differences, published
from edgecompress import cost
from edgecompress.model import Model

FIGURES_SHA256 = "5a9d64a5f13430a1c51046e49a86d21efe35908a436e597756afa81774df0a11"
SLICED = [row for row in published() if not row.zeros]


@pytest.fixture(scope="module")
def dense() -> Model:
    return dense_model()


def the(method: str, **figures: object) -> Row:
    """The one row of a method with these figures."""
    found = [row for row in published() if row.method == method and replace(row, **figures) == row]  # type: ignore[arg-type]
    assert len(found) == 1
    return found[0]


def as_published(row: Row) -> Built:
    gmacs = row.gmacs_per_second
    return Built(row.layers, row.heads, (row.units,) * row.layers, row.parameters, row.parameters, gmacs, gmacs, 1.0)


def test_the_figures_are_the_published_ones_to_the_letter() -> None:
    assert hashlib.sha256(FIGURES.read_bytes()).hexdigest() == FIGURES_SHA256
    assert len(published()) == 34


def test_the_dense_model_has_no_zero_that_could_pass_for_a_pruned_weight(dense: Model) -> None:
    assert cost.parameters(dense).nonzero == cost.parameters(dense).total == the("dense").parameters


@pytest.mark.parametrize("row", SLICED, ids=lambda row: f"{row.method}-{row.configuration}")
def test_edits_alone_give_a_published_structure_its_parameters_and_macs(row: Row, dense: Model) -> None:
    shape = dense.skeleton()
    shape.keep_layers(range(row.layers))
    for layer in shape.layers:
        shape.keep_heads(layer.number, range(row.heads // row.layers))
        shape.keep_units(layer.number, range(row.units))
    assert differences(row, count(shape, sparse=False, started=0.0)) == []


@pytest.mark.parametrize(
    "row",
    [
        the("truncation", layers=2),
        the("combination", units=512),
        the("head_pruning", heads=12),
        the("weight_pruning", zeros=0.94),
    ],
    ids=lambda row: row.method,
)
def test_techniques_make_the_published_model(row: Row, dense: Model) -> None:
    assert differences(row, build(row, dense)) == []


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda built: replace(built, parameters=built.parameters + 1, nonzero=built.nonzero + 1),
        lambda built: replace(built, parameters=built.parameters + 1),
        lambda built: replace(built, gmacs_per_second=built.gmacs_per_second * 1.011),
        lambda built: replace(built, layers=5, units=(512,) * 5),
        lambda built: replace(built, units=(512,) * 5 + (511,)),
    ],
    ids=["parameters", "zeros-left-in-place", "macs", "layers", "units"],
)
def test_what_differs_is_marked_and_fails_the_run(
    spoilt: Callable[[Built], Built], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = the("combination", units=512)
    monkeypatch.setattr(published_table, "dense_model", lambda seed: None)
    monkeypatch.setattr(published_table, "build", lambda one, dense: as_published(one))
    assert published_table.main(["--only", "combination"]) == 0
    monkeypatch.setattr(
        published_table, "build", lambda one, dense: spoilt(as_published(row)) if one == row else as_published(one)
    )
    assert published_table.main(["--only", "combination"]) == 1
    assert "6 of 7 rows as published" in capsys.readouterr().out
    built = spoilt(as_published(row))
    assert (
        published_table.markdown([(row, built)])
        .splitlines()[-1]
        .endswith(f"| **{'; '.join(differences(row, built))}** |")
    )
