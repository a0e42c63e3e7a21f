"""Devices over SSH: host keys checked, the user's ssh config, keys and agent used, jumps taken, time limits everywhere.

No password is ever asked for or sent, no agent is forwarded, and nothing is sent before the host key is known.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.devices import hostkeys
from edgecompress.devices.config import DeviceConfig
from edgecompress.devices.ssh_config import Target, resolve
from edgecompress.devices.transport import Process, Transport
from edgecompress.errors import DeviceTimeout, HostKeyChanged, Refused, Unreachable

if TYPE_CHECKING:
    from paramiko import Channel, PKey, SSHClient

# paramiko logs a traceback for every host that hangs up; what matters of it is in our errors.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

KEEPALIVE_S = 5
# paramiko's keepalive never looks for an answer: a cut link hung for 40 s and more. With TCP_USER_TIMEOUT at 4 s the
# cut was noticed after 4.9 s; 20 s leaves room for Wi-Fi.
USER_TIMEOUT_MS = 20000
SEND_TIMEOUT_S = 60.0
END_GRACE_S = 3.0


class SshTransport(Transport):
    """One connection, made when first used, with a channel for each program."""

    kind = "ssh"

    def __init__(self, config: DeviceConfig) -> None:
        self._config = config
        self._clients: list[SSHClient] = []  # the way there: bastions first, the device last

    def start(self, argv: Sequence[str]) -> Process:
        """Run a program on a channel of its own; every word is quoted for the login shell."""
        return SshProcess(self, self.channel(command_line(argv)))

    def channel(self, command: str) -> Channel:
        """A channel with ``command`` running."""
        from paramiko import SSHException

        target = resolve(self._config)
        if not self._clients or not _alive(self._clients[-1]):
            self.close()
            self._clients = connect(target)
        try:
            transport = self._clients[-1].get_transport()
            assert transport is not None
            channel = transport.open_session(timeout=target.connect_timeout_s)
            channel.exec_command(command)
        except (SSHException, OSError, EOFError) as cause:
            self.close()
            raise Unreachable(f"the connection to {target.host} ended: {cause}", hint="run again") from cause
        return channel

    def close(self) -> None:
        """Close the connection and those it leads through."""
        for client in reversed(self._clients):
            client.close()
        self._clients = []


class SshProcess(Process):
    """A program on a channel."""

    def __init__(self, transport: SshTransport, channel: Channel) -> None:
        super().__init__()
        self._transport, self._channel = transport, channel
        channel.settimeout(SEND_TIMEOUT_S)

    def send(self, data: bytes) -> None:
        """Write everything; OSError when the channel is gone or nothing is taken for a minute."""
        from paramiko import SSHException

        self._channel.settimeout(SEND_TIMEOUT_S)
        try:
            self._channel.sendall(data)
        except (EOFError, SSHException) as cause:
            raise ConnectionResetError(str(cause) or "the link is gone") from cause

    def end_input(self) -> None:
        """Send end of file."""
        from paramiko import SSHException

        with contextlib.suppress(OSError, EOFError, SSHException):
            self._channel.shutdown_write()

    def _receive(self, timeout_s: float) -> bytes:
        until = time.monotonic() + timeout_s
        while True:
            self._drain_stderr()
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(min(left, 0.5))
            try:
                block = self._channel.recv(1 << 16)
            except TimeoutError:
                continue
            if not block:
                self._drain_stderr()
            return block

    def _drain_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            block = self._channel.recv_stderr(1 << 16)
            if not block:
                return
            self._keep_stderr(block)

    def wait(self) -> int:
        """Exit status; -1 for a signal, a killed sshd, or a lost link, which SSH does not tell apart here."""
        self._channel.status_event.wait(5)
        self._drain_stderr()
        return int(self._channel.exit_status)

    def kill(self) -> None:
        """End of input (the agent then ends its group); if that does not help, a second channel kills the group."""
        self.end_input()
        ended = self._channel.status_event.wait(END_GRACE_S)
        with contextlib.suppress(OSError, EOFError):
            self._channel.close()
        if not ended and self.group is not None and self.group > 1:
            with contextlib.suppress(Unreachable, Refused, DeviceTimeout, HostKeyChanged):
                killer = self._transport.channel(f"kill -s KILL -- -{int(self.group)}")
                killer.status_event.wait(END_GRACE_S)
                killer.close()


def command_line(argv: Sequence[str]) -> str:
    """Words quoted for a POSIX login shell, which they replace; ``~/`` in front of the first is the user's home."""
    first = argv[0]
    word = '"$HOME"/' + shlex.quote(first[2:]) if first.startswith("~/") else shlex.quote(first)
    return " ".join(["exec", word, *map(shlex.quote, argv[1:])])


def host_key(config: DeviceConfig) -> hostkeys.HostKey:
    """The key that a device's host shows, without logging in to it (bastions on the way must be known)."""
    from paramiko import SSHException
    from paramiko import Transport as Wire

    target = resolve(config)
    clients = connect(target.jump) if target.jump else []
    try:
        wire = Wire(_road(target, clients))
        try:
            wire.start_client(timeout=target.connect_timeout_s)
            return hostkeys.HostKey.of(wire.get_remote_server_key())
        except (SSHException, OSError, EOFError) as cause:
            raise _no_ssh(target, cause) from cause
        finally:
            wire.close()
    finally:
        for client in reversed(clients):
            client.close()


def pin(config: DeviceConfig, fingerprint: str, *, replace: bool) -> None:
    """Pin the key that the host shows now, if it has the fingerprint that a person agreed to."""
    target, shown = resolve(config), host_key(config)
    if shown.fingerprint != fingerprint:
        text = f"{target.host} shows the host key {shown.fingerprint}, agreed was {fingerprint or 'none'}"
        raise HostKeyChanged(
            text, hint="compare the fingerprint on the device: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
        )
    name = hostkeys.entry_name(target.key_name, target.key_port)
    hostkeys.refuse_revoked(name, shown.base64)
    hostkeys.pin(name, shown, replace=replace)


def connect(target: Target) -> list[SSHClient]:
    """Log in: the clients on the way there, the target's last.

    Raises:
        Unreachable, HostKeyUnknown, HostKeyChanged, Refused
    """
    clients = connect(target.jump) if target.jump else []
    try:
        clients.append(_log_in(target, _road(target, clients)))
    except BaseException:
        for client in reversed(clients):
            client.close()
        raise
    return clients


def _alive(client: SSHClient) -> bool:
    transport = client.get_transport()
    return transport is not None and transport.is_active()


def _road(target: Target, clients: list[SSHClient]) -> Any:
    """Something like a socket that ends at the target's sshd: a bastion's channel, a proxy command, or TCP."""
    from paramiko import ProxyCommand, SSHException

    try:
        if clients:
            bastion = clients[-1].get_transport()
            assert bastion is not None
            there = (target.host, target.port)
            return bastion.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=target.connect_timeout_s)
        if target.proxy_command:
            return ProxyCommand(target.proxy_command)
        road = socket.create_connection((target.host, target.port), timeout=target.connect_timeout_s)
    except (OSError, SSHException) as cause:
        hint = "is it switched on and on this network? its address and port are in the device's file"
        raise Unreachable(f"nothing answers at {target.host} port {target.port}: {cause}", hint=hint) from cause
    harden(road)
    return road


def harden(road: socket.socket) -> None:
    """Have the kernel notice a link that is cut, also while nothing is sent, and send small packets at once."""
    road.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    road.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    own = (("TCP_KEEPIDLE", KEEPALIVE_S), ("TCP_KEEPINTVL", KEEPALIVE_S), ("TCP_KEEPCNT", 4))
    for option, value in (*own, ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS)):
        if hasattr(socket, option):  # not every system has each of them
            road.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _log_in(target: Target, road: Any) -> SSHClient:
    from paramiko import AuthenticationException, BadHostKeyException, MissingHostKeyPolicy, SSHClient, SSHException

    name = hostkeys.entry_name(target.key_name, target.key_port)

    class RefuseUnknown(MissingHostKeyPolicy):
        """Not even a question: pinning is `device add`'s work."""

        def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:
            hostkeys.refuse_revoked(name, key.get_base64())
            raise hostkeys.unknown(name, key)

    client = SSHClient()
    client.set_missing_host_key_policy(RefuseUnknown())
    client.get_host_keys()._entries.extend(hostkeys.known(name)._entries)
    limit = target.connect_timeout_s
    try:
        client.connect(
            target.key_name, port=target.key_port, sock=road, username=target.user,
            key_filename=list(target.identities) or None, allow_agent=not target.identities_only,
            look_for_keys=not target.identities, timeout=limit, banner_timeout=limit, auth_timeout=limit,
        )  # fmt: skip
    except BadHostKeyException as cause:
        client.close()
        hostkeys.refuse_revoked(name, cause.key.get_base64())
        raise hostkeys.changed(name, cause.key, cause.expected_key) from cause
    except AuthenticationException as cause:
        client.close()
        hint = f"is the key in {target.user}'s authorized_keys there? an encrypted one must be in ssh-agent"
        raise Refused(f"{target.host} refuses {target.user}'s key: {cause}", hint=hint) from cause
    except (SSHException, OSError, EOFError) as cause:
        client.close()
        raise _no_ssh(target, cause) from cause
    except BaseException:
        client.close()
        raise
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(KEEPALIVE_S)
    return client


def _no_ssh(target: Target, cause: Exception) -> Unreachable | Refused:
    if "No authentication methods" in str(cause):
        return Refused(
            f"there is no key to show to {target.host}", hint="set `identity` in the device's file, or use ssh-agent"
        )
    text = f"{target.host} port {target.port} does not talk SSH in time: {cause or type(cause).__name__}"
    return Unreachable(text, hint="is an SSH server running there?")
