"""Commands about models: info, convert, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from m2_bert.cli.terminal import plain, print_json, stdout, tell

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, weight file, Hub id or random:NAME.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def info(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As above; without one: this machine.")
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """What a model is: sizes, length, padding policy, fingerprint; without MODEL, what is built."""
    from m2_bert.checkpoint import describe_model

    if model is None:
        from monarch_kernels import info as kernels

        kernels.main(["--json"] if as_json else [])
        return
    facts = describe_model(model, revision=revision)
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        shown = f"{value:,}" if type(value) is int else plain(str(value))
        table.add_row(name.replace("_", " "), Text(shown))
    stdout.print(table)


def convert(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    length: Annotated[
        int | None, typer.Option(help="Extend to this many tokens (8192 -> 32768).")
    ] = None,
    revision: Revision = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT, with everything that is in it.")
    ] = False,
) -> None:
    """Write a clean safetensors folder: loads in transformers and sentence-transformers.

    After `import m2_bert`, without remote code: `AutoModel.from_pretrained(OUT)`,
    `SentenceTransformer(OUT)`, or `m2_bert.load(OUT)`.
    """
    from m2_bert.checkpoint import build_model, extend_length, read_checkpoint
    from m2_bert.folder import save_folder

    checkpoint = read_checkpoint(model, revision=revision)
    loaded = build_model(checkpoint)
    if length is not None:
        loaded = extend_length(loaded, length)
    # A card may be published: no paths in it.
    base = Path(model).name if Path(model).exists() else checkpoint.source
    written = save_folder(loaded, out, overwrite=overwrite, base=base)
    tell(f"wrote {written}")


def verify(
    model: Model,
    golden: Annotated[
        bool,
        typer.Option("--golden", help="Compare published vectors whatever the model's name is."),
    ] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Check a model's files: shapes, values, vocabulary, and published vectors.

    The vectors are those of m2-bert-80M-8k-retrieval, and compared with a model of that name.
    Exit code 1 if a check fails.
    """
    from m2_bert.verify import GOLDEN, verify_model

    chosen = GOLDEN if golden else "auto"
    verification = verify_model(model, revision=revision, golden=chosen)
    if as_json:
        print_json(verification.to_dict())
    else:
        table = Table(show_header=False, box=None, pad_edge=False)
        marks = {True: "[green]ok[/green]", False: "[red]FAILED[/red]", None: "skipped"}
        for check in verification.checks:
            table.add_row(marks[check.passed], Text(check.name), Text(plain(check.detail)))
        stdout.print(table)
    if not verification.passed:
        raise typer.Exit(1)
