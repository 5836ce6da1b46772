"""Commands about documents: index, search, demo."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from m2_bert.cli.models import Json
from m2_bert.cli.terminal import plain, print_json, progress, say, stdout, tell, warn_if_random

if TYPE_CHECKING:
    from m2_bert.demo import DemoResult
    from m2_bert.search import Hit, IndexReport

SHOWN_SKIPPED = 20
SNIPPET_CHARACTERS = 400


class LongDocuments(StrEnum):
    """What becomes of a text over the model's length."""

    TRUNCATE = "truncate"
    ERROR = "error"
    WINDOW = "window"


class Engine(StrEnum):
    """How vectors are searched."""

    EXACT = "exact"
    FAISS = "faiss"


Long = Annotated[LongDocuments, typer.Option(help="Texts over the model's length.")]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Most tokens at once: memory.")]
Dtype = Annotated[
    str | None, typer.Option(help="auto: bfloat16 where the device has it; float32, bfloat16.")
]
MaxLength = Annotated[
    int | None, typer.Option(min=3, help="Tokens read of a text; default: the model's.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]


def index(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of documents.")],
    out: Annotated[Path, typer.Option(help="Folder of the index.")],
    model: Annotated[str, typer.Option(help="Folder, weight file, Hub id or random:NAME.")],
    long_documents: Long = LongDocuments.WINDOW,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = None,
    dtype: Dtype = None,
    device: Device = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Hidden files and folders too.")] = False,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest file that is read.")] = 16 << 20,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Start anew.")] = False,
    as_json: Json = False,
) -> None:
    """Embed the text, Markdown, HTML, source and PDF files of a folder.

    Run it again after an interruption or a change: only what is new or changed is embedded. Files
    that hold no text are listed, not fatal.
    """
    from m2_bert.embedder import Embedder
    from m2_bert.search import IndexProgress, build_index

    if not directory.exists():
        raise FileNotFoundError(f"{directory}: no such folder")
    if Path(model).exists():
        model = str(Path(model).resolve())  # the index is searched from any folder
    embedder = Embedder(
        model,
        max_length=max_length,
        long_documents=str(long_documents),
        batch_tokens=batch_tokens,
        dtype=dtype,
        device=device,
    )
    warn_if_random(model)
    with progress("indexing", "files") as bar:

        def follow(state: IndexProgress) -> None:
            bar(state.done, state.total_files)

        options: dict[str, Any] = {"hidden": hidden, "rebuild": rebuild, "max_bytes": max_bytes}
        options |= {"model_name": model, "progress": follow}
        report = build_index(directory, out, embedder, **options)
    if as_json:
        print_json(_report_to_dict(report))
    else:
        _print_report(report, out)


def search(
    index: Annotated[Path, typer.Argument(metavar="IDX", help="Folder of the index.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Documents to show.")] = 10,
    engine: Annotated[
        Engine, typer.Option(help="faiss is approximate: for very many documents.")
    ] = Engine.EXACT,
    model: Annotated[
        str | None, typer.Option(help="Where the index's model is now; default: where it was.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Find the documents most similar to QUERY, and the best passage of each."""
    from m2_bert.search import SearchIndex

    with progress("faiss index", "documents") as bar:
        opened = SearchIndex.open(index, str(engine), progress=bar)
    model = model or opened.settings.model
    warn_if_random(model)
    if not opened.complete:
        say("the last indexing run was interrupted: searching what it finished", style="yellow")
    embedder = opened.open_embedder(model=model, device=device)
    hits = opened.search(query, top_k=top_k, embedder=embedder)
    if as_json:
        print_json([hit.to_dict() for hit in hits])
        return
    for hit in hits:
        _print_hit(hit)
    if not hits:
        tell("nothing found: the index has no documents")


def demo(
    model: Annotated[
        str, typer.Option(help="Folder, weight file, Hub id or random:NAME.")
    ] = "random:small",
    out: Annotated[
        Path, typer.Option(help="Folder for the documents and their index; kept.")
    ] = Path("m2-bert-demo"),
    subset: Annotated[
        int | None, typer.Option(min=1, help="This many queries, for a quick look.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Index anew.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Search Python's own standard library: 335 long modules, found by their docstrings.

    Builds the task, indexes the modules, searches all queries, and shows nDCG@10 beside BM25 by
    document length. Needs no download.
    """
    from m2_bert.demo import run_demo

    warn_if_random(model)
    with progress("standard library", "modules") as bar:
        options: dict[str, Any] = {"dtype": dtype, "device": device, "rebuild": rebuild}
        result = run_demo(model, out, subset=subset, progress=bar, **options)
    if as_json:
        print_json(result.to_dict())
    else:
        _print_demo(result, model, out)


def _print_report(report: IndexReport, out: Path) -> None:
    for message in report.damaged:
        say(f"warning: {message}", style="yellow")
    for item in report.skipped[:SHOWN_SKIPPED]:
        say(f"skipped {item.path}: {item.reason}")
    if len(report.skipped) > SHOWN_SKIPPED:
        say(f"... and {len(report.skipped) - SHOWN_SKIPPED} more (--json lists them)")
    if report.cut_documents:
        say(
            f"warning: {report.cut_documents} documents were cut, {report.cut_tokens:,} tokens "
            "not read: --long-documents window reads all",
            style="yellow",
        )
    tell(
        f"{out}: {report.documents:,} documents, {report.spans:,} passages "
        f"({report.embedded:,} embedded now, {report.unchanged:,} unchanged, "
        f"{report.forgotten:,} forgotten, {len(report.skipped):,} skipped; "
        f"{report.tokens:,} tokens in {report.seconds:.1f} s)"
    )


def _report_to_dict(report: IndexReport) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)


def _print_hit(hit: Hit) -> None:
    place = hit.path if hit.line is None else f"{hit.path}:{hit.line}"
    line = Text(f"{hit.rank:>3}. {hit.score:.3f}  ").append(plain(place), style="bold")
    stdout.print(line, soft_wrap=True)
    text = hit.note if hit.snippet is None else " ".join(hit.snippet.split())
    if text:
        text = plain(text)  # a file may hold escape sequences
        cut = text if len(text) <= SNIPPET_CHARACTERS else text[:SNIPPET_CHARACTERS] + " ..."
        stdout.print(Text(cut, style="dim"), highlight=False)


def _print_demo(result: DemoResult, model: str, out: Path) -> None:
    table = Table(title="nDCG@10 x 100, by tokens of the answer", title_justify="left")
    labels = list(result.by_length["bm25"])
    counts = result.by_length["bm25"]
    for column in ("", "all", *(f"{label} ({counts[label]['queries']})" for label in labels)):
        table.add_column(column, justify="right" if column else "left")
    for name, system in (("bm25", "BM25, full text"), ("model", model)):
        bins = result.by_length[name]
        cells = [_score(result.scores[name]), *(_score(bins[label]) for label in labels)]
        table.add_row(Text(system), *cells)
    stdout.print(table)
    tell(f"{result.documents} modules, {result.queries} queries; index in {out}/index. Search it:")
    tell(f'    m2-bert search {out}/index "parse command line arguments"')
    warn_if_random(model)


def _score(scores: Mapping[str, float]) -> str:
    return f"{100 * scores['ndcg_at_10']:.1f}" if scores.get("queries", 1) else "-"
