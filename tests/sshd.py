"""A real OpenSSH server on loopback that changes nothing on this machine: the ssh device of tests and examples.

    python -m tests.sshd ensure                                  fetch what is needed, once, into .tools/
    python -m tests.sshd serve --home DIR --name loopback        start one, add it as a device, stay until killed

It logs in an ordinary user with a key made at each start. Run as root, that user is uid 2001, who exists only in a
private mount namespace; run as an ordinary user, it is that same user. Without an installed server its Debian packages
are unpacked into ``.tools/sshd``. The device's Python is the system's, with a module folder of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
PACKAGES = ("openssh-server", "openssh-sftp-server", "libwrap0")
DEVICE_UID = 2001
ENDS_WITH_US = ("setpriv", "--pdeathsig", "TERM")  # a killed test run leaves no server behind
CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {keys}/hostkey
AuthorizedKeysFile {keys}/authorized_keys
PidFile none
UsePAM no
StrictModes no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
LogLevel VERBOSE
MaxStartups 100:30:200
MaxSessions 100
"""


class CannotServe(Exception):
    """This machine lacks something that a loopback device needs."""


def ensure_sshd() -> Path | None:
    """The folder of an unpacked server, or None when one is installed. Downloads it the first time."""
    if Path("/usr/sbin/sshd").exists():
        return None
    place = TOOLS / "sshd"
    if (place / "usr/sbin/sshd").exists():
        return place
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise CannotServe("no OpenSSH server here and no apt-get to fetch one: install openssh-server")
    TOOLS.mkdir(exist_ok=True)
    as_is = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(dir=TOOLS) as beside:
        subprocess.run(
            ["apt-get", "-q", *as_is, "download", *PACKAGES], cwd=beside, check=True, stdout=subprocess.DEVNULL
        )
        unpacked = Path(beside) / "root"
        for package in Path(beside).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)
        with contextlib.suppress(OSError):  # another process was first
            unpacked.rename(place)
    return place


def device_python() -> tuple[str, str]:
    """A Python 3.8+ that an ordinary user can run, and its version ``X.Y``: the system's, not our environment's."""
    for candidate in ("/usr/bin/python3", "/usr/local/bin/python3", getattr(sys, "_base_executable", sys.executable)):
        if not Path(candidate).exists() or (os.geteuid() == 0 and str(Path(candidate).resolve()).startswith("/root")):
            continue
        code = "import sys; print('%d.%d' % sys.version_info[:2] if sys.version_info >= (3, 8) else '')"
        version = subprocess.run([candidate, "-c", code], capture_output=True, text=True).stdout.strip()
        if version:
            return candidate, version
    raise CannotServe("no Python 3.8 or newer that an ordinary user may run: install python3")


def ensure_device_site() -> Path:
    """A module folder with onnxruntime and numpy for the device's Python; installed the first time."""
    version = device_python()[1]
    place = TOOLS / f"device-site-{version}"
    if place.exists():
        return place
    TOOLS.mkdir(exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:"]
    pinned = ["-c", str(ROOT / "constraints.txt")]
    with tempfile.TemporaryDirectory(dir=TOOLS) as beside:
        target = Path(beside) / "site"
        install = [*pip, "--target", str(target), "--python-version", version, "onnxruntime", "numpy"]
        if subprocess.run([*install, *pinned]).returncode:  # the system's Python may be older than our pins allow
            subprocess.run(install, check=True)
        target.chmod(0o755)
        with contextlib.suppress(OSError):
            target.rename(place)
    return place


@dataclass
class Sshd:
    """A running server. ``home`` is the device user's home; ``port``, ``user`` and ``identity`` lead there."""

    base: Path
    port: int
    user: str
    process: subprocess.Popen[bytes]
    python: str

    @property
    def home(self) -> Path:
        """Home of the device's user."""
        return self.base / "home"

    @property
    def identity(self) -> Path:
        """The private key that is let in."""
        return self.base / "keys/id"

    @property
    def site(self) -> Path:
        """Module folder with the runtime."""
        return self.base / "site"

    def values(self, **more: object) -> dict[str, object]:
        """Keys of a device's configuration."""
        usual: dict[str, object] = {
            "host": "127.0.0.1", "port": self.port, "user": self.user, "identity": str(self.identity),
            "python": self.python, "site": str(self.site),
        }  # fmt: skip
        return usual | more

    def processes(self) -> list[int]:
        """Processes on the device that carry its home in their command line: our agent and its workers."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes()
                    if str(self.home).encode() in words and not words.startswith(b"sshd"):
                        found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """End the server and every login on it, and remove its folder."""
        ours = [*_descendants(self.process.pid), *self.processes()]
        self.process.terminate()
        self.process.wait()
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.base, ignore_errors=True)


def start(bashrc: str = "", small_disk_mb: int = 4) -> Sshd:
    """Start a server on a free port with fresh keys.

    Args:
        bashrc: what the login shell runs for every command.
        small_disk_mb: as root, size of a tmpfs at ``home/small``; beside it ``home/inodes`` has room for few files.

    Raises:
        CannotServe: this machine lacks a server, a Python, or (as root) mount namespaces.
    """
    unpacked, site, python = ensure_sshd(), ensure_device_site(), device_python()[0]
    base = Path(tempfile.mkdtemp(prefix="edgecompress-device-", dir="/tmp"))
    base.chmod(0o755)
    for name in ("home", "keys", "site", "sshd"):
        (base / name).mkdir()
    _write_key(base / "keys/hostkey")
    _write_key(base / "keys/id")
    shutil.copy(base / "keys/id.pub", base / "keys/authorized_keys")
    port = _free_port()
    (base / "sshd_config").write_text(CONFIG.format(port=port, keys=base / "keys"))
    (base / "home/.bashrc").write_text(bashrc)
    as_root = os.geteuid() == 0
    user = "device" if as_root else pwd.getpwuid(os.geteuid()).pw_name
    tools = base / "sshd" if unpacked else Path("/")
    server = [str(tools / "usr/sbin/sshd"), "-D", "-f", str(base / "sshd_config"), "-E", str(base / "sshd.log")]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(base / "home")}
    if unpacked:
        environment["LD_LIBRARY_PATH"] = str(tools / "usr/lib" / _multiarch(unpacked))
    if as_root:
        server = _as_other_user(base, unpacked, site, small_disk_mb, server)
    else:
        server = [*(ENDS_WITH_US if shutil.which("setpriv") else []), *server]
        (base / "site").rmdir()
        (base / "site").symlink_to(site)
        if unpacked:
            (base / "sshd").rmdir()
            (base / "sshd").symlink_to(unpacked)
    process = subprocess.Popen(server, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    running = Sshd(base, port, user, process, python)
    try:
        _wait_for(running)
    except BaseException:
        running.stop()
        raise
    return running


def _as_other_user(base: Path, unpacked: Path | None, site: Path, disk_mb: int, server: list[str]) -> list[str]:
    """The command that runs the server as uid 2001, in a mount namespace where that user and our folders exist.

    The checkout may be where that user cannot go, so its folders are bound to places that it can reach.
    """
    (base / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\n"
        "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
        f"device:x:{DEVICE_UID}:{DEVICE_UID}:device:{base}/home:/bin/bash\n"
    )
    (base / "group").write_text(f"root:x:0:\ndevice:x:{DEVICE_UID}:\nnogroup:x:65534:\n")
    for path in (base / "home", base / "keys", base / "keys/hostkey", base / "home/.bashrc"):
        os.chown(path, DEVICE_UID, DEVICE_UID)
    (base / "sshd.log").touch()
    os.chown(base / "sshd.log", DEVICE_UID, DEVICE_UID)
    for name in ("small", "inodes"):
        (base / "home" / name).mkdir()
    owner = f"uid={DEVICE_UID},gid={DEVICE_UID},mode=700"
    steps = [
        ["mount", "--bind", str(base / "passwd"), "/etc/passwd"],
        ["mount", "--bind", str(base / "group"), "/etc/group"],
        ["mount", "--bind", str(site), str(base / "site")],
        *([["mount", "--bind", str(unpacked), str(base / "sshd")]] if unpacked else []),
        ["mount", "-t", "tmpfs", "-o", f"size={disk_mb}m,{owner}", "tmpfs", str(base / "home/small")],
        ["mount", "-t", "tmpfs", "-o", f"nr_inodes=4,{owner}", "tmpfs", str(base / "home/inodes")],
    ]
    user = [*ENDS_WITH_US, f"--reuid={DEVICE_UID}", f"--regid={DEVICE_UID}", "--clear-groups"]
    script = 'set -e; while [ "$1" != -- ]; do eval "$1"; shift; done; shift; exec "$@"'
    commands = [shlex.join(step) for step in steps]
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *commands, "--", *user, *server]


def _multiarch(unpacked: Path) -> str:
    found = next(iter(sorted(unpacked.glob("usr/lib/*/libwrap.so.0"))), None)
    return found.parent.name if found else "."


def _write_key(path: Path) -> None:
    """A fresh Ed25519 pair in OpenSSH's own format, without ssh-keygen."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(running: Sshd) -> None:
    for _ in range(200):
        if running.process.poll() is not None:
            log = running.base / "sshd.log"
            said = log.read_text() if log.exists() else ""
            raise CannotServe(
                f"sshd ended with status {running.process.returncode}; as root it needs mount namespaces. {said}"
            )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", running.port), timeout=1) as wire:
            if wire.recv(4) == b"SSH-":
                return
        time.sleep(0.05)
    raise CannotServe("sshd does not answer after 10 s")


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, todo = [], [pid]
    while todo:
        children = [child for child, parent in parents.items() if parent == todo[0]]
        todo = todo[1:] + children
        found += children
    return found


@contextlib.contextmanager
def serving(home: Path, name: str) -> Iterator[Sshd]:
    """A server that is the device ``name`` in the configuration folder ``home`` while the block runs."""
    from edgecompress import devices

    os.environ["EDGECOMPRESS_HOME"] = str(home)
    running = start()
    try:
        _, fingerprint = devices.fetch_host_key(running.values())
        devices.add_device(name, running.values(), fingerprint=fingerprint, replace=True)
        yield running
    finally:
        running.stop()


def main() -> None:
    """The two commands of the module's docstring."""
    parser = argparse.ArgumentParser(description="a loopback ssh device")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("ensure", help="fetch what is needed, once")
    serve = verbs.add_parser("serve", help="start one, add it as a device, stay until killed")
    serve.add_argument("--home", type=Path, required=True, help="EDGECOMPRESS_HOME to add it to")
    serve.add_argument("--name", default="loopback")
    options = parser.parse_args()
    try:
        if options.verb == "ensure":
            print(f"server: {ensure_sshd() or '/usr/sbin/sshd'}\nmodules: {ensure_device_site()}")
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with serving(options.home.resolve(), options.name) as running:
            print(f"device {options.name!r}: {running.user}@127.0.0.1 port {running.port}", flush=True)
            print(
                f"use it: EDGECOMPRESS_HOME={options.home.resolve()} edgecompress bench FILE --on {options.name}",
                flush=True,
            )
            running.process.wait()
    except KeyboardInterrupt:
        pass
    except CannotServe as why:
        sys.exit(f"error: {why}")


if __name__ == "__main__":
    main()
