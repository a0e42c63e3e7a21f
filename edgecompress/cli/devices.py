"""``edgecompress device``: make a board known, list what is known, ask one what it is."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from edgecompress.cli import boards

app = typer.Typer(
    help="Make devices known, list them, ask them what they are.", no_args_is_help=True, rich_markup_mode=None
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What the device will be called.")],
    host: Annotated[str, typer.Option(help="Host name, address, or a Host of ~/.ssh/config.")],
    user: Annotated[str, typer.Option(help="User to log in as; default: what ~/.ssh/config says, else yours.")] = "",
    port: Annotated[int, typer.Option(help="Port of its sshd; default: what ~/.ssh/config says, else 22.")] = 0,
    identity: Annotated[str, typer.Option(help="Private key file; default: your ssh agent and keys.")] = "",
    python: Annotated[str, typer.Option(help="Python 3.8 or later on the device.")] = "python3",
    profile: Annotated[
        str, typer.Option(help="Board profile (`edgecompress list devices`); default: by its facts.")
    ] = "",
    site: Annotated[str, typer.Option(help="Folder on the device with more Python packages.")] = "",
    cache: Annotated[str, typer.Option(help="Folder on the device where files are kept.")] = "",
    fingerprint: Annotated[str, typer.Option(help="The host key that you expect (SHA256:...): nothing is asked.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a device of this name and its pinned key.")
    ] = False,
) -> None:
    """Show a device's host key, pin it when you agree, and store how to reach the device.

    Nothing is logged into. Compare the fingerprint with what the board itself prints:
    ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub
    """
    from edgecompress import devices

    given = {"host": host, "user": user, "port": port, "identity": identity, "python": python, "profile": profile}
    values: dict[str, Any] = {key: value for key, value in (given | {"site": site, "cache": cache}).items() if value}
    if not fingerprint:
        devices.config.check_name(name)
        fingerprint = _agreed(host, *devices.fetch_host_key(values))
    devices.add_device(name, values, fingerprint=fingerprint, replace=replace)
    print(f"added {name}; next: edgecompress device probe {name}")


def _agreed(host: str, kind: str, fingerprint: str) -> str:
    """The fingerprint, when a person says that it is the right one."""
    from edgecompress.errors import HostKeyUnknown

    print(f"{host} shows the {kind} key\n  {fingerprint}", file=sys.stderr)
    if not sys.stdin.isatty():
        raise HostKeyUnknown(
            f"the key of {host} is not pinned, and there is nobody to ask",
            hint=f"compare the key with the board's own, then add --fingerprint {fingerprint}",
        )
    if not typer.confirm("Is this the board's key?", err=True):
        raise HostKeyUnknown(
            f"the key of {host} was not accepted", hint="find out which machine answered; nothing was stored"
        )
    return fingerprint


@app.command(name="list")
def list_devices(json: Json = False) -> None:
    """List your devices."""
    from edgecompress import devices
    from edgecompress.cli import say

    found = devices.survey()
    if json:
        say.as_json({name: as_data(one) for name, one in found.items()})
        return
    say.table(("name", "transport", "address", "profile"), [_row(name, one) for name, one in found.items()])


def as_data(found: Any) -> dict[str, Any]:
    """A device's configuration, or why it has none, as JSON values."""
    if isinstance(found, Exception):
        return {"error": str(found)}
    return dict(found.model_dump(mode="json"))


def _row(name: str, found: Any) -> tuple[str, str, str, str]:
    if isinstance(found, Exception):
        return name, "broken", str(found), ""
    return name, found.transport, _address(found), found.profile or "by its facts"


def _address(config: Any) -> str:
    user = f"{config.user}@" if config.user else ""
    port = f":{config.port}" if config.port else ""
    return f"{user}{config.host}{port}" if config.host else "this machine"


@app.command()
def probe(
    name: Annotated[str, typer.Argument(help="A device that is known.")],
    json: Json = False,
    timeout_s: Annotated[float, typer.Option(help="Give up after so many seconds.")] = 60.0,
) -> None:
    """Ask a device what it is: board, cores, limits, meters, which runtimes its Python has and which would fit."""
    from edgecompress import devices, session
    from edgecompress.cli import say

    with devices.open_device(name) as device, say.working(f"asking {name}"):
        found = session.probe(device, timeout_s)
        more = boards.details(device, found.identity, found.profile, timeout_s)
    if json:
        say.as_json(
            {
                "name": found.name,
                "python": found.python,
                "identity": found.identity,
                "state": found.state,
                "runtimes": found.runtimes,
                "absent": found.absent,
                "profile": found.profile.id if found.profile else None,
                **more,
            }
        )
        return
    rows: list[tuple[str, object]] = [
        ("device", found.name),
        ("profile", found.profile.id if found.profile else "none fits"),
    ]
    rows += [("python", found.python)]
    rows += [
        (f"runtime {one}", version or f"absent: {found.absent.get(one, '')}") for one, version in found.runtimes.items()
    ]
    rows += sorted((key, _short(value)) for key, value in (found.identity | found.state).items())
    say.table(("what", "value"), rows + boards.rows(more))


def _short(value: object) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


@app.command()
def remove(name: Annotated[str, typer.Argument(help="A device that is known.")]) -> None:
    """Forget a device. Its pinned host key stays, since another name may use it."""
    from edgecompress import devices

    devices.remove_device(name)
    print(f"removed {name}")


app.command()(boards.calibrate)
app.command()(boards.provision)
app.command()(boards.clean)
