"""The application: its commands, and how errors and warnings look."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m2_bert.cli import models, search
from m2_bert.cli.loco import app as loco
from m2_bert.cli.terminal import one_line, say


class Commands(TyperGroup):
    """Turns expected errors into one line and exit code 1; `--debug` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("m2-bert: interrupted; what was finished is kept", style="yellow")
            raise typer.Exit(130) from None
        except Exception as error:
            # Exit, Abort and wrong usage are the framework's own, not errors of a command.
            framework = isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "exit_code")
            if framework or ctx.params.get("debug"):
                raise
            say(f"m2-bert: {one_line(error)}", style="red")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Long-document embeddings and search without attention (M2-BERT, arXiv 2402.07440).

    MODEL is a folder, a weight file, a Hugging Face id, or [bold]random:small[/bold]
    (untrained: for trying things out).
    """,
    rich_markup_mode="rich",
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    # Other packages' deprecations are their developers' business.
    if issubclass(category, UserWarning):
        say(f"warning: {one_line(message)}", style="yellow")


MODELS, DOCUMENTS = "Models", "Documents"
app.command(rich_help_panel=MODELS)(models.info)
app.command(rich_help_panel=MODELS)(models.convert)
app.command(rich_help_panel=MODELS)(models.verify)
app.command(rich_help_panel=DOCUMENTS)(search.index)
app.command(rich_help_panel=DOCUMENTS)(search.search)
app.command(rich_help_panel=DOCUMENTS)(search.demo)
app.add_typer(loco, name="loco", rich_help_panel=DOCUMENTS)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(app())
