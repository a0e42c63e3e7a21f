"""Board profiles: data with sources, and nothing that could run."""

from __future__ import annotations

import pytest

from edgecompress.devices import profile, profiles
from edgecompress.devices.profile import matching, parse
from edgecompress.errors import PluginNotFound, RecipeError

SMALL = 'schema = "edgecompress.device/1"\nid = "b"\ntitle = "B"\n[cpu]\narch = "aarch64"\n'


def test_every_shipped_profile_is_valid_and_named_as_its_file() -> None:
    from importlib.resources import files

    stems = {entry.name.removesuffix(".toml") for entry in files("device_profiles").iterdir() if ".toml" in entry.name}
    assert set(profiles()) == stems
    assert {"rpi4b", "rpi5-8gb", "orangepi5", "n100", "x86-64"} <= stems


def test_a_number_without_a_source_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"memory\.ram_mb\.source"):
        parse("b.toml", SMALL + "[memory]\nram_mb = { value = 4 }\n")


def test_all_unknown_keys_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as refused:
        parse("b.toml", SMALL + 'clock = 3\n[power]\ncommand = "reboot"\n')
    assert "cpu.clock" in refused.value.message
    assert "power.command" in refused.value.message


def test_a_board_is_recognised_by_its_device_tree_and_memory() -> None:
    facts = {
        "compatible": ["raspberrypi,5-model-b", "brcm,bcm2712"],
        "mem_total_bytes": 8060 << 20,
        "machine": "aarch64",
    }
    found = matching(facts)
    assert found is not None
    assert found.id == "rpi5-8gb"
    assert matching(facts | {"mem_total_bytes": 2000 << 20}) is None


def test_a_named_board_wins_over_a_kind_of_boards() -> None:
    found = matching({"machine": "x86_64", "cpu": ["Intel(R) N100"], "mem_total_bytes": 8 << 30})
    assert found is not None
    assert found.id == "n100"


@pytest.mark.parametrize("odd", [None, 5, True, "x86_64", [5, None], {"a": 1}, [["raspberrypi,5-model-b"]]])
def test_facts_of_any_shape_match_no_board_and_break_nothing(odd: object) -> None:
    for key in ("compatible", "machine", "mem_total_bytes", "cpu"):
        assert matching({key: odd}) is None or key == "machine"
    full = {"compatible": odd, "machine": "x86_64", "mem_total_bytes": odd, "cpu": odd}
    found = matching(full)
    assert found is not None
    assert found.id == "x86-64", "what it asks for is there, whatever the rest is"


def test_a_misspelt_profile_brings_the_nearest_name() -> None:
    with pytest.raises(PluginNotFound) as missing:
        profile("rpi4")
    assert "rpi4b" in missing.value.hint
