"""Devices as configuration, uploads by content hash, and what a host believes of a device. No network."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import devices
from edgecompress.devices import Blob, config, ssh
from edgecompress.devices.fake import FakeTransport, Killed
from edgecompress.devices.objects import put
from edgecompress.errors import AgentFailed, DeviceError, DeviceFull, PluginNotFound, RecipeError, Refused, Unreachable

HOSTILE = st.tuples(
    st.text(max_size=8),
    st.sampled_from([";", "$(", "`", "\n", "\0", "/", " ", "'", '"', "|", "\x1b"]),
    st.text(max_size=8),
)


@given(HOSTILE.map("".join) | st.text(max_size=8).map(lambda rest: "-" + rest))
def test_names_hosts_and_users_that_a_shell_or_path_could_misread_are_refused(hostile: str) -> None:
    with pytest.raises(RecipeError):
        config.check_name(hostile)
    for key in ("host", "user", "profile"):
        with pytest.raises(RecipeError):
            config.make("test", {"host": "board", key: hostile})


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_words_reach_the_device_s_program_as_they_are(words: list[str]) -> None:
    import shlex

    line = ssh.command_line(["python3", *words])
    assert shlex.split(line) == ["exec", "python3", *words]


def test_an_unknown_device_brings_the_nearest_name_and_how_to_add_it(device_home: Path) -> None:
    config.write("kitchen-pi", config.make("test", {"host": "10.0.0.7"}))
    with pytest.raises(PluginNotFound) as missing:
        devices.open_device("kitchenpi")
    assert "kitchen-pi" in missing.value.hint
    assert "device add" in missing.value.hint


def test_local_is_always_there_and_the_user_s_devices_follow(device_home: Path) -> None:
    config.write("zero", config.make("test", {"host": "zero.lan"}))
    assert list(devices.list_devices()) == ["local", "zero"]


def test_a_device_file_is_read_back_as_it_was_written(device_home: Path) -> None:
    made = config.make("test", {"host": "pi.lan", "port": 2222, "python": "~/env/bin/python", "identity": 'a "b" \\c'})
    path = config.write("pi", made)
    assert config.read("pi") == made
    assert set(tomllib.loads(path.read_text())) == {"host", "port", "python", "identity"}


def test_every_bad_key_of_a_device_file_is_named(device_home: Path) -> None:
    path = config.home() / "devices/pi.toml"
    path.parent.mkdir(parents=True)
    path.write_text('host = "pi.lan"\nport = 99999\npasswort = "x"\n')
    with pytest.raises(RecipeError) as refused:
        devices.open_device("pi")
    assert "port" in refused.value.message
    assert "passwort" in refused.value.message


def test_adding_a_device_twice_needs_a_word(device_home: Path) -> None:
    values = {"transport": "local", "cache": str(device_home / "other")}
    devices.add_device("mine", values)
    with pytest.raises(DeviceError, match="already"):
        devices.add_device("mine", values)
    devices.remove_device("mine")
    assert list(devices.list_devices()) == ["local"]


def test_an_upload_goes_on_from_where_it_was_cut(local_device: devices.Device) -> None:
    blob = Blob.of(bytes(range(256)) * 4000)
    assert isinstance(blob.source, bytes)
    part = Path(local_device.config.cache) / "objects" / f"{blob.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(blob.source[:700_000])
    first = local_device.transport.put("python3", local_device.config.cache, [blob])
    again = local_device.transport.put("python3", local_device.config.cache, [blob])
    assert (first.bytes_sent, again.bytes_sent) == (blob.size - 700_000, 0)
    assert part.with_suffix("").read_bytes() == blob.source
    assert not part.exists()


def test_a_partial_upload_of_other_content_is_not_built_upon(local_device: devices.Device) -> None:
    blob = Blob.of(b"right" * 1000)
    part = Path(local_device.config.cache) / "objects" / f"{blob.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"wrong" * 400)
    assert local_device.transport.put("python3", local_device.config.cache, [blob]).bytes_sent == blob.size
    assert part.with_suffix("").read_bytes() == blob.source


def test_an_object_comes_back_as_it_was_put(local_device: devices.Device) -> None:
    blob = Blob.of(b"\0\xff result")
    cache = local_device.config.cache
    local_device.transport.put("python3", cache, [blob])
    assert local_device.transport.get("python3", cache, blob.sha256, 100) == blob.source
    with pytest.raises(DeviceError):
        local_device.transport.get("python3", cache, blob.sha256, 3)


def test_the_oldest_objects_make_room_when_the_cache_is_over_its_limit(
    local_device: devices.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setattr("edgecompress.devices.objects.CACHE_LIMIT_BYTES", 2500)
    blobs = [Blob.of(bytes([number]) * 1000) for number in range(3)]
    objects = Path(local_device.config.cache) / "objects"
    for age, blob in enumerate(blobs):
        local_device.transport.put("python3", local_device.config.cache, [blob])
        os.utime(objects / blob.sha256, (1000 + age, 1000 + age))
    assert sorted(path.name for path in objects.iterdir()) == sorted(blob.sha256 for blob in blobs[1:])


def test_a_device_without_python_is_told_so(device_home: Path) -> None:
    devices.add_device("bare", {"transport": "local", "python": "/nowhere/python3"})
    with pytest.raises(Refused, match="/nowhere/python3"), devices.open_device("bare") as device:
        device.transport.put(device.config.python, str(device_home / "cache"), [Blob.of(b"x")])


@pytest.mark.parametrize(
    ("answer", "error", "word"),
    [
        (b'edgecompress {"error": "full", "message": "no space left in /x"}\n', DeviceFull, "no space"),
        (b'edgecompress {"error": "python", "message": "Python 3.6; 3.8 or newer is needed"}\n', Refused, "3.6"),
        (b'edgecompress {"cache": "../../etc", "have": {}}\n', AgentFailed, "impossible"),
        (b'edgecompress {"cache": "/x\\u001b[2J", "have": {}}\n', AgentFailed, "impossible"),
        (b'edgecompress {"cache": "/x", "have": 7}\n', AgentFailed, "which objects"),
        (b"edgecompress [[[\n", AgentFailed, "not JSON"),
        (b"WELCOME\n", Unreachable, "ended"),
    ],
)
def test_a_bad_answer_to_an_upload_is_an_error_and_not_a_crash(
    answer: bytes, error: type[DeviceError], word: str
) -> None:
    transport = FakeTransport(replies=[answer])
    with pytest.raises(error, match=word):
        put(transport, "python3", "~/x", [Blob.of(b"x")], None)


def test_a_device_s_version_is_made_printable() -> None:
    blob = Blob.of(b"x")
    have = {"cache": "/c", "have": {blob.sha256: "whole"}, "python": "3.9\x1b[2J"}
    transport = FakeTransport(replies=[b"edgecompress " + json.dumps(have).encode() + b"\n"])
    assert put(transport, "python3", "~/x", [blob], None).python == "3.9 [2J"


def test_a_missing_interpreter_is_told_from_a_cut_connection() -> None:
    missing = FakeTransport(replies=[Killed(127, b"bash: python3: command not found")])
    with pytest.raises(Refused, match="command not found"):
        put(missing, "python3", "~/x", [Blob.of(b"x")], None)
    cut = FakeTransport(replies=[Killed(-1)])
    with pytest.raises(Unreachable):
        put(cut, "python3", "~/x", [Blob.of(b"x")], None)


def test_a_device_that_never_ends_its_line_is_cut_off() -> None:
    transport = FakeTransport(replies=[b"x" * (4 << 20)] * 4)
    with pytest.raises(AgentFailed, match="more than"):
        put(transport, "python3", "~/x", [Blob.of(b"x")], None)
    assert transport.processes[0].was_killed


def test_a_login_shell_s_noise_is_passed_over() -> None:
    blob = Blob.of(b"x")
    have = {"cache": "/c", "have": {blob.sha256: "whole"}, "python": "3.9.2"}
    noise = b"WELCOME TO MY PI\n\x1b[31mred\n\n"
    transport = FakeTransport(replies=[noise, b"edgecompress " + json.dumps(have).encode() + b"\n"])
    done = put(transport, "python3", "~/x", [blob], None)
    assert (done.cache, done.bytes_sent, done.python) == ("/c", 0, "3.9.2")
