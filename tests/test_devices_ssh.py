"""Over a real sshd: trust, keys, jumps, and every way in which the way there, or the device, may fail."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecompress import devices, session
from edgecompress.devices import Blob, hostkeys
from edgecompress.errors import (
    AgentDied,
    AgentFailed,
    DeviceFull,
    DeviceTimeout,
    HostKeyChanged,
    HostKeyUnknown,
    RecipeError,
    Refused,
    RuntimeMissing,
    Unreachable,
)
from edgecompress.session import stream
from tests import sshd
from tests.device_fixtures import ONCE, QUICK, SLEEPER, gone, write_artifact, write_model

Add = Callable[..., devices.Device]
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


def test_an_artifact_is_measured_over_ssh_and_the_second_run_sends_nothing(ssh_device: Add, tiny_artifact: Any) -> None:
    artifact, folder = tiny_artifact
    device = ssh_device()
    first = session.measure(device, artifact, folder, QUICK)
    again = session.measure(device, artifact, folder, ONCE)
    assert (first.transport, first.runtime, len(first.repetitions)) == ("ssh", "onnxruntime", 2)
    assert first.repetitions[0].golden[0].passed
    assert first.bytes_sent > sum(file.bytes for file in artifact.files.values())
    assert again.bytes_sent == 0


def test_a_plain_model_is_measured_and_nothing_of_ours_stays_running(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path
) -> None:
    measurement = session.measure_file(ssh_device(), tiny_model, ONCE, {"time": 12})
    assert measurement.input["shapes"] == {"x": [1, 12, 16]}
    assert gone(loopback.processes())


def test_a_probe_tells_board_python_and_runtimes(ssh_device: Add) -> None:
    probed = session.probe(ssh_device())
    assert probed.identity["machine"] == os.uname().machine
    assert probed.runtimes["onnxruntime"]
    assert probed.python.startswith("3.")


# --- trust -----------------------------------------------------------------------------------------------------------
def test_an_unknown_host_key_is_refused_with_its_fingerprint(
    loopback: sshd.Sshd, device_home: Path, tiny_model: Path
) -> None:
    devices.config.write("stranger", devices.config.make("test", loopback.values()))
    _, fingerprint = devices.fetch_host_key(loopback.values())
    with pytest.raises(HostKeyUnknown, match="SHA256:") as refused, devices.open_device("stranger") as device:
        session.measure_file(device, tiny_model, ONCE)
    assert fingerprint in refused.value.message
    assert "device add" in refused.value.hint


def test_a_changed_host_key_is_refused_before_anything_is_sent(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, tmp_path: Path
) -> None:
    device = ssh_device(cache=str(loopback.home / "never"))
    sshd._write_key(tmp_path / "other")
    kind, key = (tmp_path / "other.pub").read_text().split()
    hostkeys.pins_path().write_text(f"[127.0.0.1]:{loopback.port} {kind} {key}\n")
    with pytest.raises(HostKeyChanged, match="nothing was sent"):
        session.measure_file(device, tiny_model, ONCE)
    assert not (loopback.home / "never").exists()


def test_a_key_that_nobody_agreed_to_is_not_pinned(loopback: sshd.Sshd, device_home: Path) -> None:
    with pytest.raises(HostKeyChanged, match="agreed was SHA256:other"):
        devices.add_device("pi", loopback.values(), fingerprint="SHA256:other")
    assert not hostkeys.pins_path().exists()
    assert list(devices.list_devices()) == ["local"]


def test_the_user_s_known_hosts_count_even_with_lines_that_cannot_be_read(
    loopback: sshd.Sshd, device_home: Path, tmp_path: Path
) -> None:
    key = (loopback.base / "keys/hostkey.pub").read_text().strip()
    lines = f"@cert-authority *.lan {key}\nbroken ssh-ed25519 AAAA\n# note\n[127.0.0.1]:{loopback.port} {key}\n"
    (tmp_path / "user/.ssh/known_hosts").write_text(lines)
    devices.config.write("pi", devices.config.make("test", loopback.values()))
    with devices.open_device("pi") as device:
        assert device.transport.put(device.config.python, str(loopback.home / "kh"), [Blob.of(b"x")]).bytes_sent == 1


def test_a_revoked_host_key_is_refused(ssh_device: Add, loopback: sshd.Sshd, tmp_path: Path) -> None:
    device = ssh_device()
    key = (loopback.base / "keys/hostkey.pub").read_text().strip()
    (tmp_path / "user/.ssh/known_hosts").write_text(f"@revoked * {key}\n[127.0.0.1]:{loopback.port} {key}\n")
    log = loopback.base / "sshd.log"
    before = log.read_text().count("Accepted publickey")
    with pytest.raises(HostKeyChanged, match="revoked"):
        device.transport.start(["true"])
    assert log.read_text().count("Accepted publickey") == before, "refused before anybody logged in"
    with pytest.raises(HostKeyChanged, match="revoked"):
        ssh_device("again")


def test_a_refused_key_says_whose(ssh_device: Add, tmp_path: Path, tiny_model: Path) -> None:
    sshd._write_key(tmp_path / "uninvited")
    device = ssh_device(identity=str(tmp_path / "uninvited"))
    with pytest.raises(Refused, match=r"refuses .*'s key") as refused:
        session.measure_file(device, tiny_model, ONCE)
    assert "authorized_keys" in refused.value.hint


def test_a_key_file_that_is_not_there_is_named_before_anything_is_connected(device_home: Path) -> None:
    devices.config.write("pi", devices.config.make("test", {"host": "127.0.0.1", "port": 1, "identity": "~/.ssh/gone"}))
    with pytest.raises(Refused, match=r"no key file ~/\.ssh/gone"), devices.open_device("pi") as device:
        device.transport.start(["true"])


def test_a_key_file_that_only_ssh_config_names_may_be_missing(
    loopback: sshd.Sshd, device_home: Path, tmp_path: Path
) -> None:
    lines = f"Host board\n  HostName 127.0.0.1\n  Port {loopback.port}\n  User {loopback.user}\n"
    keys = f"  IdentityFile {tmp_path / 'gone'}\n  IdentityFile {loopback.identity}\n"
    (tmp_path / "user/.ssh/config").write_text(lines + keys)
    _, fingerprint = devices.fetch_host_key({"host": "board"})
    devices.add_device("board", {"host": "board"}, fingerprint=fingerprint)
    with devices.open_device("board") as device:
        assert device.transport.start(["true"]).wait() == 0


@pytest.mark.parametrize("config", ["", "Host *\n  Port 2222\n"])
def test_a_user_without_a_name_on_this_machine_is_told_what_to_set(
    device_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 987_654)
    if config:
        (tmp_path / "user/.ssh/config").write_text(config)
    with pytest.raises(RecipeError, match="no user name") as refused:
        devices.fetch_host_key({"host": "127.0.0.1"})
    assert "USER=" in refused.value.hint


@pytest.mark.skipif(not shutil.which("ssh-agent"), reason="no ssh-agent is installed here")
def test_a_key_that_only_the_ssh_agent_holds_opens_the_device(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as place:  # a socket's path must be short
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", f"{place}/agent"], stdout=subprocess.DEVNULL)
        try:
            while not Path(place, "agent").exists():
                assert agent.poll() is None, "ssh-agent ended"
                time.sleep(0.01)
            monkeypatch.setenv("SSH_AUTH_SOCK", f"{place}/agent")
            subprocess.run(["ssh-add", "-q", str(loopback.identity)], check=True, stderr=subprocess.DEVNULL)
            assert session.measure_file(ssh_device(identity=""), tiny_model, ONCE).repetitions
        finally:
            agent.terminate()
            agent.wait()


def test_no_key_at_all_is_told_apart(loopback: sshd.Sshd, ssh_device: Add) -> None:
    with pytest.raises(Refused, match="no key to show"):
        ssh_device(identity="").transport.start(["true"])


# --- the way there ---------------------------------------------------------------------------------------------------
def test_a_port_where_nothing_listens_is_unreachable(loopback: sshd.Sshd, device_home: Path) -> None:
    values = loopback.values(port=sshd._free_port())
    with pytest.raises(Unreachable, match="nothing answers"):
        devices.fetch_host_key(values)


def test_a_host_that_accepts_and_says_nothing_is_unreachable_in_time(loopback: sshd.Sshd, device_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        values = loopback.values(port=silent.getsockname()[1], connect_timeout_s=1.0)
        with pytest.raises(Unreachable, match="does not talk SSH"):
            devices.fetch_host_key(values)


def write_ssh_config(folder: Path, loopback: sshd.Sshd, **names: str) -> None:
    common = (
        f"  HostName 127.0.0.1\n  Port {loopback.port}\n  User {loopback.user}\n  IdentityFile {loopback.identity}\n"
    )
    text = "".join(f"Host {name}\n{common}{f'  ProxyJump {jump}' if jump else ''}\n" for name, jump in names.items())
    (folder / "user/.ssh/config").write_text(text)


def test_ssh_config_and_a_proxy_jump_lead_there(
    loopback: sshd.Sshd, device_home: Path, tmp_path: Path, tiny_model: Path
) -> None:
    write_ssh_config(tmp_path, loopback, bastion="", board="bastion")
    device_cache = str(loopback.home / "cache-jump")
    values = {"host": "board", "python": loopback.python, "site": str(loopback.site), "cache": device_cache}
    with pytest.raises(HostKeyUnknown):
        devices.fetch_host_key(values)  # the bastion is not known yet, and it is asked first
    _, fingerprint = devices.fetch_host_key({"host": "bastion"})
    devices.add_device("bastion", {"host": "bastion"}, fingerprint=fingerprint)
    devices.add_device("board", values, fingerprint=fingerprint)
    before = (loopback.base / "sshd.log").read_text().count("Accepted publickey")
    with devices.open_device("board") as device:
        assert session.measure_file(device, tiny_model, ONCE).repetitions
    assert (loopback.base / "sshd.log").read_text().count("Accepted publickey") == before + 2


def test_jumps_in_a_circle_are_an_error(loopback: sshd.Sshd, device_home: Path, tmp_path: Path) -> None:
    write_ssh_config(tmp_path, loopback, a="b", b="a")
    with pytest.raises(devices.config.RecipeError, match="jumps"):
        devices.fetch_host_key({"host": "a"})


# --- endings ---------------------------------------------------------------------------------------------------------
def test_a_job_over_its_time_leaves_no_process(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, stranger: Any
) -> None:
    seen: list[int] = []
    name = stranger("sleeper", SLEEPER)
    with pytest.raises(DeviceTimeout, match="2 s"):
        session.measure_file(
            ssh_device(), tiny_model, replace(ONCE, timeout_s=2), runtime=name,
            progress=lambda _: seen.extend(loopback.processes()),
        )  # fmt: skip
    assert len(set(seen)) >= 2
    assert gone(loopback.processes())


def test_an_agent_that_cannot_end_itself_is_killed_over_a_second_channel(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, stranger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "GRACE_S", 0.5)
    name = stranger("stopper", "os.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(600)")
    with pytest.raises(DeviceTimeout, match="last event 'clock'"):
        session.measure_file(ssh_device(), tiny_model, replace(ONCE, timeout_s=2), runtime=name)
    assert gone(loopback.processes())


def test_a_caller_that_gives_up_leaves_no_process(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, stranger: Any
) -> None:
    def give_up(word: str) -> None:
        if "loaded" in word:
            assert len(loopback.processes()) >= 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.measure_file(ssh_device(), tiny_model, ONCE, runtime=stranger("sleeper", SLEEPER), progress=give_up)
    assert gone(loopback.processes())


def test_a_killed_agent_is_reported_with_its_last_event(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, stranger: Any
) -> None:
    def kill(word: str) -> None:
        if "loaded" in word:
            for pid in loopback.processes():
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(AgentDied, match="exit status -1 after 'loaded'"):
        session.measure_file(ssh_device(), tiny_model, ONCE, runtime=stranger("sleeper", SLEEPER), progress=kill)


def test_a_device_without_the_runtime_says_how_to_get_it(ssh_device: Add, tiny_model: Path) -> None:
    device = ssh_device(site="")
    with pytest.raises(RuntimeMissing, match="No module named") as missing:
        session.measure_file(device, tiny_model, ONCE)
    assert "pip install onnxruntime" in missing.value.hint
    assert session.probe(device).runtimes["onnxruntime"] is None


def test_a_device_without_python_says_so(ssh_device: Add, tiny_model: Path) -> None:
    with pytest.raises(Refused, match="cannot run 'python9'"):
        session.measure_file(ssh_device(python="python9"), tiny_model, ONCE)


def test_a_wrong_golden_output_is_found_on_the_device(ssh_device: Add, tmp_path: Path) -> None:
    artifact, folder = write_artifact(tmp_path / "wrong", error=0.5)
    with pytest.raises(AgentFailed, match="golden"):
        session.measure(ssh_device(), artifact, folder, ONCE)


def test_a_login_shell_that_prints_disturbs_nothing(ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path) -> None:
    bashrc = loopback.home / ".bashrc"
    bashrc.write_text('echo "WELCOME TO MY PI"\nprintf "no newline {"\n')
    try:
        device = ssh_device()
        assert session.measure_file(device, tiny_model, ONCE).repetitions
        assert session.measure_file(device, tiny_model, ONCE).bytes_sent == 0
    finally:
        bashrc.write_text("")


# --- disks -----------------------------------------------------------------------------------------------------------
@NEEDS_ROOT
def test_a_full_disk_is_told_and_nothing_partial_stays(ssh_device: Add, loopback: sshd.Sshd, tmp_path: Path) -> None:
    model = write_model(tmp_path / "large.onnx", extra_bytes=8 << 20)
    device = ssh_device(cache=str(loopback.home / "small"))
    with pytest.raises(DeviceFull, match="no space left"):
        session.measure_file(device, model, ONCE)
    assert listed(device, "small") == []
    assert session.measure_file(device, write_model(tmp_path / "less.onnx"), ONCE).repetitions


@NEEDS_ROOT
def test_a_disk_that_fills_while_receiving_is_told_too(ssh_device: Add, loopback: sshd.Sshd) -> None:
    device = ssh_device(cache=str(loopback.home / "inodes"))
    blobs = [Blob.of(bytes([number]) * 100_000) for number in range(6)]
    with pytest.raises(DeviceFull, match="no space left"):
        device.transport.put(device.config.python, device.config.cache, blobs)
    assert not [name for name in listed(device, "inodes") if name.endswith(".part")]


def listed(device: devices.Device, disk: str) -> list[str]:
    """Objects on a disk that only the device can see."""
    process = device.transport.start(["ls", f"{disk}/objects"])
    found = []
    while (line := process.line(10)) is not None:
        found.append(line.decode())
    return found


def test_an_upload_cut_by_the_network_goes_on_where_it_was(
    ssh_device: Add, loopback: sshd.Sshd, tmp_path: Path
) -> None:
    device = ssh_device()
    model = write_model(tmp_path / "large.onnx", extra_bytes=32 << 20)

    def cut(sent: int, total: int) -> None:
        if sent > 4 << 20:
            device.transport._clients[-1].get_transport().sock.close()  # type: ignore[attr-defined]

    with pytest.raises(Unreachable, match="ended during an upload"):
        device.transport.put(device.config.python, device.config.cache, [Blob.of(model)], cut)
    put = device.transport.put(device.config.python, device.config.cache, [Blob.of(model)])
    assert 0 < put.bytes_sent < model.stat().st_size
    assert (Path(put.cache) / "objects" / Blob.of(model).sha256).stat().st_size == model.stat().st_size
