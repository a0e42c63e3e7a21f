"""Plans: levels by name, what is asked beside them, and what no plan can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.errors import RecipeError
from edgecompress.job import Measure
from edgecompress.recipe import read_job
from edgecompress.session import Plan, cool_down
from edgecompress.session.plan import LEVELS


@pytest.mark.parametrize(
    ("level", "numbers"),
    [("smoke", (1, 1, 2.0)), ("quick", (3, 64, 5.0)), ("default", (5, 64, 20.0)), ("publish", (10, 1024, 60.0))],
)
def test_a_level_is_a_plan_with_a_name(level: str, numbers: tuple[int, int, float]) -> None:
    plan = Plan.of(level, ambient_celsius=21.0)
    assert (plan.repetitions, plan.min_samples, plan.min_seconds, plan.level) == (*numbers, level)


def test_what_is_asked_beside_a_level_comes_first_and_less_of_it_is_no_longer_that_level() -> None:
    assert Plan.of("quick", threads=4, repetitions=None).level == "quick"
    assert Plan.of("quick", repetitions=9).level == "quick"
    less = Plan.of("quick", repetitions=2)
    assert (less.repetitions, less.min_samples, less.level) == (2, 64, "custom")
    assert Plan.of("smoke", repetitions=9).level == "smoke"
    assert Plan.of("publish", ambient_celsius=21.0, cooldown_s=0.0).level == "custom"


def test_the_bounds_in_seconds_follow_the_one_that_is_asked() -> None:
    assert (Plan.of("default", max_seconds=1.0).min_seconds, Plan.of("quick", min_seconds=90.0).max_seconds) == (1, 90)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scenario": "multi"}, "no scenario is called 'multi'"),
        ({"scenario": "paced_stream"}, "needs hop_s"),
        ({"hop_s": 0.1}, "needs hop_s, and nothing else has one"),
        ({"scenario": "paced_stream", "hop_s": 0.0}, r"hop_s = 0\.0"),
        ({"batch": 2}, "batch = 2 in single_stream"),
        ({"scenario": "offline", "batch": 0}, "batch = 0"),
        ({"seconds": -1.0}, r"seconds = -1\.0"),
        ({"ambient_celsius": 400.0}, "ambient_celsius"),
    ],
)
def test_what_no_plan_can_be_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Plan(**asked)


def test_what_is_published_says_how_warm_the_room_was() -> None:
    with pytest.raises(RecipeError, match="how warm"):
        Plan.of("publish")


def test_a_level_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(RecipeError, match="no level is called 'fast'") as refused:
        Plan.of("fast")
    assert all(name in refused.value.hint for name in LEVELS)


def test_between_measurements_it_is_waited_as_long_as_the_plan_has_it() -> None:
    slept: list[float] = []
    heard: list[str] = []
    cool_down(Plan(), heard.append, slept.append)
    cool_down(Plan(cooldown_s=30.0), heard.append, slept.append)
    assert (slept, heard) == ([30.0], ["cooling down for 30 s"])


def test_a_job_names_a_level_and_numbers_beside_it(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "examples/quickstart.toml").read_text()
    head, _, table = text.partition("[measure]\n")
    (tmp_path / "job.toml").write_text(f'{head}[measure]\nlevel = "quick"\nmin_samples = 100\n')
    asked = read_job(tmp_path / "job.toml").measure
    assert table
    assert asked is not None
    plan = Plan.of(**asked.model_dump(exclude={"devices"}))
    assert (plan.level, plan.repetitions, plan.min_samples) == ("quick", 3, 100)
    (tmp_path / "job.toml").write_text(f'{head}[measure]\nlevel = "fast"\n')
    with pytest.raises(RecipeError, match="level"):
        read_job(tmp_path / "job.toml")


def test_a_job_can_ask_for_all_that_a_plan_takes_but_what_is_for_one_file() -> None:
    for_one_file = {"spinning", "busy_wait_s", "profile_operators"}
    assert set(Plan.__dataclass_fields__) - for_one_file == set(Measure.model_fields) - {"devices"}
