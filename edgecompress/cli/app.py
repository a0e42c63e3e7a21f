"""The commands by name. Help and parsing need typer alone; each command imports its rooms when it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgecompress.cli import advise, analysis, comparing, devices, listing, models, parity, predict, runs, transcribe

app = typer.Typer(
    name="edgecompress",
    help="Compress speech Transformers, export them, and measure on the device what was won and lost.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: rich's boxes cost 60 ms of import before the first word, and help is what is asked for most often.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from edgecompress import __version__

        print(f"edgecompress {__version__}")
        raise typer.Exit


app.command()(models.inspect)
app.command()(models.compress)
app.command()(models.export)
app.command()(parity.parity)
app.command()(models.score)
app.command()(transcribe.transcribe)
app.command()(analysis.analyze)
app.command()(advise.advise)
app.command()(predict.predict)
app.command()(runs.bench)
app.command()(comparing.compare)
app.command()(comparing.history)
app.command()(runs.report)
app.command()(runs.run)
app.add_typer(devices.app, name="device")
app.command(name="list")(listing.list_plugins)
app.command()(listing.doctor)


def command() -> Any:
    """The command that ``main`` calls."""
    return typer.main.get_command(app)
