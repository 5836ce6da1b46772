"""Commands about documents: index, search, demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from m2_bert.cli.models import Json
from m2_bert.cli.terminal import print_json, progress, stderr, stdout, warn_if_random

if TYPE_CHECKING:
    from m2_bert.demo import DemoResult
    from m2_bert.search import Hit, IndexReport

SHOWN_SKIPPED = 20
SNIPPET_CHARACTERS = 400

LongDocuments = Annotated[
    str, typer.Option(help="Texts over the model's length: truncate, error or window.")
]
Dtype = Annotated[
    str | None, typer.Option(help="auto: bfloat16 where the device has it; float32, bfloat16.")
]
MaxLength = Annotated[int | None, typer.Option(help="Tokens read of a text; default: the model's.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]


def index(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of documents.")],
    out: Annotated[Path, typer.Option(help="Folder of the index.")],
    model: Annotated[str, typer.Option(help="Folder, weight file, Hub id or random:NAME.")],
    long_documents: LongDocuments = "window",
    max_length: MaxLength = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Most tokens at once: memory.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Hidden files and folders too.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Start anew.")] = False,
    as_json: Json = False,
) -> None:
    """Embed the text, Markdown, HTML, source and PDF files of a folder.

    Run it again after an interruption or a change: only what is new or changed is embedded. Files
    that hold no text are listed, not fatal.
    """
    from m2_bert.embedder import Embedder
    from m2_bert.search import IndexProgress, build_index

    embedder = Embedder(
        model,
        max_length=max_length,
        long_documents=long_documents,
        batch_tokens=batch_tokens,
        dtype=dtype,
        device=device,
    )
    warn_if_random(model)
    with progress("indexing", "files") as tell:

        def follow(state: IndexProgress) -> None:
            tell(state.done, state.total_files)

        options: dict[str, Any] = {"hidden": hidden, "rebuild": rebuild, "progress": follow}
        report = build_index(directory, out, embedder, model_name=model, **options)
    if as_json:
        print_json(_report_to_dict(report))
    else:
        _print_report(report, out)


def search(
    index: Annotated[Path, typer.Argument(metavar="IDX", help="Folder of the index.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Documents to show.")] = 10,
    engine: Annotated[
        str, typer.Option(help="exact, or faiss: approximate, for very many documents.")
    ] = "exact",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Find the documents most similar to QUERY, and the best passage of each."""
    from m2_bert.search import SearchIndex

    opened = SearchIndex.open(index, engine)
    warn_if_random(opened.settings.model)
    if not opened.complete:
        stderr.print("the last indexing run was interrupted: searching what it finished")
    hits = opened.search(query, top_k=top_k, embedder=opened.open_embedder(device=device))
    if as_json:
        print_json([hit.to_dict() for hit in hits])
        return
    for hit in hits:
        _print_hit(hit)
    if not hits:
        stdout.print("nothing found: the index has no documents")


def demo(
    model: Annotated[
        str, typer.Option(help="Folder, weight file, Hub id or random:NAME.")
    ] = "random:small",
    out: Annotated[
        Path, typer.Option(help="Folder for the documents and their index; kept.")
    ] = Path("m2-bert-demo"),
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
    with progress("standard library", "") as tell:
        result = run_demo(model, out, dtype=dtype, device=device, progress=tell)
    if as_json:
        print_json(result.to_dict())
    else:
        _print_demo(result, model, out)


def _print_report(report: IndexReport, out: Path) -> None:
    for message in report.damaged:
        stderr.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)
    for item in report.skipped[:SHOWN_SKIPPED]:
        stderr.print(f"skipped {item.path}: {item.reason}", markup=False, soft_wrap=True)
    if len(report.skipped) > SHOWN_SKIPPED:
        stderr.print(f"... and {len(report.skipped) - SHOWN_SKIPPED} more (--json lists them)")
    if report.cut_documents:
        stderr.print(
            f"warning: {report.cut_documents} documents were cut, {report.cut_tokens:,} tokens "
            "not read: --long-documents window reads all",
            style="yellow",
        )
    stdout.print(
        f"{out}: {report.documents:,} documents, {report.spans:,} passages "
        f"({report.embedded:,} embedded now, {report.unchanged:,} unchanged, "
        f"{report.forgotten:,} forgotten, {len(report.skipped):,} skipped; "
        f"{report.tokens:,} tokens in {report.seconds:.1f} s)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _report_to_dict(report: IndexReport) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)


def _print_hit(hit: Hit) -> None:
    place = hit.path if hit.line is None else f"{hit.path}:{hit.line}"
    stdout.print(f"{hit.rank:>3}. {hit.score:.3f}  [bold]{escape(place)}[/bold]", soft_wrap=True)
    text = hit.note if hit.snippet is None else " ".join(hit.snippet.split())
    if text:
        text = "".join(c for c in text if c.isprintable())  # a file may hold escape sequences
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
        table.add_row(system, *cells)
    stdout.print(table)
    stdout.print(
        f"{result.documents} modules, {result.queries} queries; index in {out}/index. Search it:\n"
        f'    m2-bert search {out}/index "parse command line arguments"',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    warn_if_random(model)


def _score(scores: Mapping[str, float]) -> str:
    return f"{100 * scores['ndcg_at_10']:.1f}" if scores.get("queries", 1) else "-"
