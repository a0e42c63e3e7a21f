"""Runtimes for a board without a network, and everything of ours taken back: wheels are strangers' zips."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_remote import unpack
from bench_remote.store import Refusal
from edgecompress import devices, session
from edgecompress.devices import Blob, board, provisioning, wheels
from edgecompress.devices import config as configs
from edgecompress.errors import Busy, DeviceFull, RecipeError
from tests.calling import Call

LIMITS = {"limit_bytes": 1 << 20, "limit_members": 50}
RUNTIME = 'import tinyrt\nreturn None, {"version": tinyrt.VERSION, "import_s": 0.0}'


def wheel(folder: Path, name: str = "tinyrt", tags: str = "py3-none-any", files: dict[str, str] | None = None) -> Path:
    """Write a wheel of one module, whole, with its RECORD."""
    info = f"{name}-1.0.dist-info"
    files = files or {
        f"{name}.py": "VERSION = '1.0'\n",
        f"{name}-1.0.data/scripts/run": "",
        f"{name}-1.0.data/purelib/more.py": "",
    }
    members = files | {f"{info}/WHEEL": "Wheel-Version: 1.0\n", f"{info}/METADATA": f"Name: {name}\nVersion: 1.0\n"}
    rows = [f"{one},sha256={_digest(text)},{len(text)}" for one, text in members.items()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-{tags}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, text in members.items():
            archive.writestr(one, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with one wheel for any device and one for none."""
    wheel(tmp_path / "house", "other", "cp27-cp27m-manylinux1_i686")
    return wheel(tmp_path / "house").parent


def test_a_runtime_that_was_not_there_is_there_after_provisioning_and_gone_after_removal(
    device_home: Path, house: Path, stranger: Callable[[str, str], str]
) -> None:
    name = stranger("tiny", RUNTIME)
    with devices.open_device("local") as device:
        assert session.probe(device).runtimes[name] is None
        done = provisioning.provision(device, (), house)
    assert done.new
    assert done.skipped == ["other-1.0-cp27-cp27m-manylinux1_i686.whl"]
    with devices.open_device("local") as device:
        assert device.config.site == done.site
        assert session.probe(device).runtimes[name] == "1.0"
        assert sorted(os.listdir(done.site))[-3:] == ["more.py", "tinyrt-1.0.dist-info", "tinyrt.py"]
        again = provisioning.provision(device, (), house)
        assert (again.new, again.bytes_sent, again.site) == (False, 0, done.site)
        provisioning.clean(device, remove=True, parts=("site",))
    assert not Path(done.site).exists()
    assert configs.read("local").site == ""
    assert not (configs.home() / "devices/local.toml").exists(), "as it was before"


def test_over_ssh_too(
    ssh_device: Callable[..., devices.Device], house: Path, stranger: Callable[[str, str], str]
) -> None:
    name = stranger("tiny", RUNTIME)
    wheel(house, "numpy", files={"numpy.py": ""})  # a stand-in: every runtime is asked for beside it
    device = ssh_device(site="")
    done = provisioning.provision(device, (), house)
    device = devices.open_device("loopback")
    with device:
        assert device.config.site == done.site
        assert session.probe(device).runtimes[name] == "1.0"
        found = provisioning.clean(device, remove=False)
        assert {one.name for one in found.parts} == {"objects", "site", "lock"}
        assert all(one.bytes > 0 for one in found.parts if one.name != "lock")
        provisioning.clean(device, remove=True)
        assert provisioning.clean(device, remove=True).parts == [], "the second time there is nothing to do"
        assert configs.read("loopback").site == ""
        assert not Path(found.cache).exists()


def test_only_what_is_ours_is_removed(device_home: Path, tmp_path: Path, house: Path) -> None:
    with devices.open_device("local") as device:
        cache = Path(device.config.cache)
        device.transport.put("python3", str(cache), [Blob.of(b"object")])
        (cache / "objects/notes.txt").write_text("mine")
        (cache / "photo.jpg").write_text("mine")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / ("0" * 12)).write_text("mine")
        (cache / "site").symlink_to(tmp_path / "elsewhere")
        found = provisioning.clean(device, remove=True)
        assert [(one.name, one.entries, one.bytes) for one in found.parts] == [("objects", 1, 6)]
        assert found.others == ["objects/notes.txt", "photo.jpg", "site"]
        assert (tmp_path / "elsewhere" / ("0" * 12)).exists()
        assert sorted(path.name for path in cache.rglob("*")) == ["notes.txt", "objects", "photo.jpg", "site"]


def test_nothing_is_removed_while_a_session_measures(device_home: Path) -> None:
    with devices.open_device("local") as device:
        cache = Path(device.config.cache)
        device.transport.put("python3", str(cache), [Blob.of(b"object")])
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(Busy):
                provisioning.clean(device, remove=True)
            assert provisioning.clean(device, remove=False).parts[0].entries == 1
        provisioning.clean(device, remove=True)
        assert not cache.exists()


def test_a_job_that_waits_in_its_folder_is_not_swept_away(device_home: Path) -> None:
    with devices.open_device("local") as device:
        job = Path(device.config.cache) / "jobs" / ("a" * 64)
        job.mkdir(parents=True)
        with (job / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(Busy, match="waits or runs"):
                provisioning.clean(device, remove=True)
        provisioning.clean(device, remove=True)
        assert not job.exists()


def test_a_site_of_the_user_s_is_not_replaced_without_a_word(device_home: Path, house: Path) -> None:
    configs.write(
        "local", configs.make("test", {"transport": "local", "cache": str(device_home / "c"), "site": "/opt/mine"})
    )
    with devices.open_device("local") as device:
        with pytest.raises(RecipeError, match="/opt/mine"):
            provisioning.provision(device, (), house)
        provisioning.clean(device, remove=True)
        assert configs.read("local").site == "/opt/mine"
        provisioning.provision(device, (), house, replace=True)
    assert configs.read("local").site != "/opt/mine"


def evil(path: Path, *members: tuple[str, int] | str) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            name, mode = (member, 0) if isinstance(member, str) else member
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr = name, mode << 16
            archive.writestr(info, f"content of {name}")
    return str(path)


@pytest.mark.parametrize(
    "members",
    [
        ["../out.py"], ["a/../../out.py"], ["/tmp/out.py"], ["a//b.py"], ["./a.py"], ["a\\b.py"], ["c:out.py"],
        ["a\x1b.py"], ["x" * 300], [("link", stat.S_IFLNK | 0o777)], [("pipe", stat.S_IFIFO)], [("null", stat.S_IFCHR)],
        ["Name.py", "name.py"], ["a", "a/b"], [f"f{n}" for n in range(51)], ["x-1.data/platlib/../../../out.py"],
    ],
)  # fmt: skip
def test_a_wheel_that_would_leave_its_folder_or_the_rules_is_refused_whole(members: list[Any], tmp_path: Path) -> None:
    path = evil(tmp_path / "evil.whl", "good.py", *members)
    with pytest.raises((Refusal, OSError)):
        unpack.unpack([path], str(tmp_path / "sites/in/site"), LIMITS)
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["evil.whl"]
    assert not (tmp_path / "sites/in/site").exists()


def test_a_wheel_that_grows_past_the_limit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "bomb.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(LIMITS["limit_bytes"] + 1))
    assert path.stat().st_size < 5000
    with pytest.raises(Refusal, match="too large"):
        unpack.unpack([str(path)], str(tmp_path / "site"), LIMITS)


def test_what_two_wheels_have_alike_is_unpacked_once_and_what_differs_is_refused(tmp_path: Path) -> None:
    one = evil(tmp_path / "one.whl", "shared.py", "one.py")
    two = evil(tmp_path / "two.whl", "shared.py", "two.py")
    unpack.unpack([one, two], str(tmp_path / "site"), LIMITS)
    assert sorted(os.listdir(tmp_path / "site")) == ["one.py", "shared.py", "two.py"]
    with zipfile.ZipFile(tmp_path / "three.whl", "w") as archive:
        archive.writestr("shared.py", "other")
    with pytest.raises(Refusal, match="two wheels"):
        unpack.unpack([one, str(tmp_path / "three.whl")], str(tmp_path / "again"), LIMITS)


def test_a_wheel_that_was_changed_cut_or_doubled_never_leaves_this_machine(device_home: Path, house: Path) -> None:
    path = house / "tinyrt-1.0-py3-none-any.whl"
    good = path.read_bytes()
    for bad, word in ((good[:-30], "not a wheel"), (b"", "not a wheel")):
        path.write_bytes(bad)
        with pytest.raises(RecipeError, match=word):
            provisioning.verify(path)
    path.write_bytes(good)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("extra.py", "not in RECORD")
    with devices.open_device("local") as device:
        with pytest.raises(RecipeError, match=r"extra\.py is not what its RECORD says"):
            provisioning.provision(device, (), house)
        path.write_bytes(good)
        wheel(house, "tinyrt", "py2.py3-none-any")
        with pytest.raises(RecipeError, match="two wheels of tinyrt"):
            provisioning.provision(device, (), house)
        assert not (Path(device.config.cache) / "objects").exists()


def test_an_object_that_rots_before_it_is_unpacked_is_refused(device_home: Path, house: Path) -> None:
    with devices.open_device("local") as device:
        blob = Blob.of(house / "tinyrt-1.0-py3-none-any.whl")
        put = device.transport.put("python3", device.config.cache, [blob])
        place = Path(put.cache) / "objects" / blob.sha256
        place.chmod(0o600)
        place.write_bytes(b"rot" + place.read_bytes()[3:])
        with pytest.raises(devices.provisioning.programs.Refused, match="has changed"):
            provisioning._unpack(device, "0" * 12, [blob.sha256], 60)
        assert not (Path(put.cache) / "site" / ("0" * 12)).exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--wheels", "nowhere"], "no such folder"),
        ([], "no runtime was named"),
        (["--runtime", "nonsense"], "not in our table"),
        (["--remove", "--runtime", "tflite"], "takes everything away"),
    ],
)
def test_wrong_words_are_one_clear_error(call: Call, arguments: list[str], word: str) -> None:
    answer = call("device", "provision", "local", *arguments)
    assert answer.is_refused()
    assert word in answer.err


def test_a_named_runtime_must_be_among_the_wheels(call: Call, house: Path) -> None:
    answer = call("device", "provision", "local", "--wheels", house, "--runtime", "onnxruntime")
    assert answer.is_refused()
    assert "no wheel of onnxruntime" in answer.err


def test_the_command_line_provisions_tells_and_cleans(call: Call, house: Path) -> None:
    done = json.loads(call("device", "provision", "local", "--wheels", house, "--json").out)
    assert list(done["wheels"]) == ["tinyrt-1.0-py3-none-any.whl"]
    there = call("device", "clean", "local")
    assert there.status == 0
    assert "site" in there.out
    assert "--yes" in there.err
    assert Path(done["site"]).exists()
    gone = json.loads(call("device", "clean", "local", "--yes", "--json").out)
    assert gone["removed"]
    assert not Path(done["site"]).exists()
    assert "nothing of ours" in call("device", "clean", "local", "--yes").out


def test_what_a_killed_unpacking_left_is_no_hindrance(tmp_path: Path) -> None:
    left = tmp_path / ".partial-site"
    left.mkdir()
    (left / "half.py").write_text("x =")
    unpack.unpack([evil(tmp_path / "one.whl", "one.py")], str(tmp_path / "site"), LIMITS)
    assert os.listdir(tmp_path / "site") == ["one.py"]
    assert not left.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_too_small_is_told_so_and_left_as_it_was(
    ssh_device: Callable[..., devices.Device], tmp_path: Path
) -> None:
    wheel(tmp_path / "house", "big", files={"big.py": "#" * (8 << 20)})
    device = ssh_device(site="", cache="~/small/cache")
    with pytest.raises(DeviceFull):
        provisioning.provision(device, (), tmp_path / "house")
    assert [one.name for one in provisioning.clean(device, remove=True).parts] == ["objects", "lock"]
    assert configs.read("loopback").site == ""


def test_pip_is_asked_for_the_board_s_python_and_never_for_a_build(
    device_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    class Done:
        returncode, stderr = 1, b"ERROR: \x1b[31m no network"

    monkeypatch.setattr(provisioning.subprocess, "run", lambda argv, **_: (asked.append(argv), Done())[1])
    about = {"version": [3, 9, 2], "implementation": "cpython", "bits": 32, "machine": "aarch64"}
    target = wheels.target(board.parse({"python": about, "glibc": "2.31"}))
    with pytest.raises(RecipeError, match="no network"):
        provisioning.fetch(["tflite"], target, tmp_path)
    assert {"--only-binary=:all:", "--python-version=3.9", "--platform=manylinux_2_31_armv7l"} <= set(asked[0])
    assert asked[0][-2:] == ["tflite-runtime==2.13.0", "numpy<2"]
