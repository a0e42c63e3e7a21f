"""Board profiles: data with sources, and nothing that could run."""

from __future__ import annotations

import pytest

from edgecompress.devices import profile, profiles
from edgecompress.devices.profile import Profile, matching, numbers, parse
from edgecompress.errors import PluginNotFound, RecipeError

SMALL = 'schema = "edgecompress.device/1"\nid = "b"\ntitle = "B"\n[cpu]\narch = "aarch64"\n'


def test_every_shipped_profile_is_valid_and_named_as_its_file() -> None:
    from importlib.resources import files

    stems = {entry.name.removesuffix(".toml") for entry in files("device_profiles").iterdir() if ".toml" in entry.name}
    assert set(profiles()) == stems
    assert {"rpi4b", "rpi5-8gb", "orangepi5", "n100", "x86-64"} <= stems


def test_a_number_without_a_source_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"memory\.ram_mb: .*source"):
        parse("b.toml", SMALL + "[memory]\nram_mb = { value = 4 }\n")


@pytest.mark.parametrize(
    "more",
    ["unverified = true", 'reason = "memory"', 'source = "x", reason = "y"', 'source = ""', "unverified = false"],
)
def test_what_nobody_checked_says_so_and_why(more: str) -> None:
    with pytest.raises(RecipeError, match=r"memory\.ram_mb"):
        parse("b.toml", SMALL + f"[memory]\nram_mb = {{ value = 4, {more} }}\n")
    told = parse("b.toml", SMALL + '[memory]\nram_mb = { value = 4, unverified = true, reason = "from memory" }\n')
    assert told.memory.ram_mb is not None
    assert told.memory.ram_mb.unverified


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_number_that_no_board_can_have_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match=r"memory\.ram_mb\.value"):
        parse("b.toml", SMALL + f'[memory]\nram_mb = {{ value = {value}, source = "x" }}\n')


@pytest.mark.parametrize("board", profiles().values(), ids=lambda board: board.id)
def test_every_number_of_a_board_has_a_source_or_says_that_it_is_unverified(board: Profile) -> None:
    for path, number in numbers(board).items():
        assert bool(number.source) != number.unverified, path
        assert len(number.source or number.reason) > 5, path
    known = len(board.cpu.cluster)
    assert len(numbers(board)) >= known, "the walk over a profile finds at least the clocks"


# Facts as the boards' own device trees, /proc/cpuinfo and /proc/meminfo give them: the compatible strings are those of
# the kernel's arch/arm64/boot/dts and, for Jetsons, of NVIDIA/jetson-gpio's tables. Memory in MiB is what such a board
# leaves to Linux, by order of magnitude only.
RECORDED = {
    "rpi3bplus": (["raspberrypi,3-model-b-plus", "brcm,bcm2837"], ["0x41/0xd03"], 906),
    "rpizero2w": (["raspberrypi,model-zero-2-w", "brcm,bcm2837"], ["0x41/0xd03"], 416),
    "rpi4b": (["raspberrypi,4-model-b", "brcm,bcm2711"], ["0x41/0xd08"], 3792),
    "rpi5-8gb": (["raspberrypi,5-model-b", "brcm,bcm2712"], ["0x41/0xd0b"], 8060),
    "orangepi5": (["xunlong,orangepi-5", "rockchip,rk3588s"], ["0x41/0xd05", "0x41/0xd0b"], 7900),
    "rock5b": (["radxa,rock-5b", "rockchip,rk3588"], ["0x41/0xd05", "0x41/0xd0b"], 15700),
    "beagleplay": (["beagle,am625-beagleplay", "ti,am625"], ["0x41/0xd03"], 1900),
    "coral-dev-board": (["google,imx8mq-phanbell", "fsl,imx8mq"], ["0x41/0xd03"], 983),
    "jetson-nano": (["nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210"], ["0x41/0xd07"], 3956),
    "jetson-xavier-nx": (["nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"], ["0x4e/0x004"], 6850),
    "jetson-orin-nano": (["nvidia,p3768-0000+p3767-0005", "nvidia,tegra234"], ["0x41/0xd42"], 7620),
    "jetson-orin-nx": (["nvidia,p3768-0000+p3767-0000-super", "nvidia,tegra234"], ["0x41/0xd42"], 15656),
    "jetson-agx-orin": (["nvidia,p3737-0000+p3701-0005", "nvidia,tegra234"], ["0x41/0xd42"], 62800),
    "aarch64": (["friendlyarm,nanopi-m4", "rockchip,rk3399"], ["0x41/0xd03", "0x41/0xd08"], 3800),
    "n100": (None, ["Intel(R) N100"], 15700),
    "x86-64": (None, ["AMD EPYC"], 24000),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_board_is_fitted_best_by_its_own_profile_alone(name: str) -> None:
    compatible, cpu, mem_mb = RECORDED[name]
    facts = {
        "machine": "x86_64" if compatible is None else "aarch64", "cpu": cpu, "mem_total_bytes": mem_mb << 20,
        **({} if compatible is None else {"compatible": compatible}),
    }  # fmt: skip
    fitting = sorted((board for board in profiles().values() if board.fits(facts)), key=Profile.specificity)
    assert fitting[-1].id == name
    assert [board.id for board in fitting if board.specificity() == fitting[-1].specificity()] == [name]


def test_every_profile_has_a_recorded_board() -> None:
    assert set(RECORDED) == set(profiles())


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
    other = matching(facts | {"mem_total_bytes": 2000 << 20})
    assert other is not None
    assert other.id == "aarch64", "a Pi 5 of 2 GB is no Pi 5 of 8 GB"


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
