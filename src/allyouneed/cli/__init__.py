"""The command `allyouneed`, a file a command.

What a command needs is imported inside it, so that `list` answers at once.
"""

import typer

from allyouneed.cli import chat, doctor, fetch, listing, report, run, serve, show

app = typer.Typer(
    help="Fifty-one language-model papers as code, each with its claims tried on real data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Help lists them in this order.
app.command("list")(listing.command)
app.command("show")(show.command)
app.command("run")(run.command)
app.command("report")(report.command)
app.command("fetch")(fetch.command)
app.command("chat")(chat.command)
app.command("serve")(serve.command)
app.command("doctor")(doctor.command)


def main() -> None:
    """Run the command line."""
    app()
