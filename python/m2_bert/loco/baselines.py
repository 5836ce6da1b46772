"""BM25, the baseline to beat."""

from __future__ import annotations

from m2_bert.loco.task import Ranking, RetrievalTask
from m2_bert.loco.tokens import first_tokens as keep_first_tokens


def bm25_ranking(
    task: RetrievalTask,
    *,
    first_tokens: int | None = None,
    top_k: int = 100,
    k1: float = 0.9,
    b: float = 0.4,
    progress: bool = False,
) -> Ranking:
    """Documents ranked by BM25 (bm25s, variant "lucene"), English stemmer and stopwords.

    Args:
        task: what to search.
        first_tokens: content tokens (BERT uncased) kept of each document; None: all of it.
        top_k: documents kept for a query. Those that share no term with it are left out.
        k1, b: term saturation and length normalisation.
        progress: whether bm25s shows its progress bars.

    Raises:
        ImportError: bm25s or PyStemmer is missing.
        ValueError: ``first_tokens`` or ``top_k`` is below 1, or the documents have no terms.
    """
    try:
        import bm25s
        import Stemmer
    except ImportError:
        raise ImportError(
            "BM25 needs bm25s and PyStemmer: pip install monarch-kernels[eval]"
        ) from None
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    ids, texts = list(task.documents), list(task.documents.values())
    if first_tokens is not None:
        texts = keep_first_tokens(texts, first_tokens)

    stemmer = Stemmer.Stemmer("english")

    def terms(strings):
        return bm25s.tokenize(strings, stopwords="english", stemmer=stemmer, show_progress=progress)

    corpus = terms(texts)
    if not any(corpus.ids):
        raise ValueError(f"task {task.name}: BM25 found no terms in its documents")
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    index.index(corpus, show_progress=progress)
    # The NumPy backend: "auto" takes JAX where it is installed, which breaks ties otherwise.
    found, scores = index.retrieve(
        terms(list(task.queries.values())),
        k=min(top_k, len(ids)),
        backend_selection="numpy",
        show_progress=progress,
    )
    return {
        query: sorted(
            ((ids[i], float(score)) for i, score in zip(row, row_scores, strict=True) if score > 0),
            key=lambda hit: (-hit[1], hit[0]),
        )
        for query, row, row_scores in zip(task.queries, found, scores, strict=True)
    }
