"""Search over a folder of long documents: `build_index`, then `SearchIndex.open(...).search(...)`.

files.py      finding and reading files       passages.py   cutting a text into spans
documents.py  their text                      vectors.py    documents to unit vectors
store.py      the folder of an index          shards.py     its vectors and records
disk.py       replacing files                 writer.py     shards, one commit at a time
index.py      build_index                     query.py      SearchIndex
hits.py       what a search finds             ann.py        faiss
"""

from m2_bert.search.documents import Document, read_document, read_documents
from m2_bert.search.files import Skipped
from m2_bert.search.hits import Hit
from m2_bert.search.index import IndexProgress, IndexReport, build_index
from m2_bert.search.passages import split_passages
from m2_bert.search.query import SearchIndex
from m2_bert.search.store import Settings

__all__ = [
    "Document",
    "Hit",
    "IndexProgress",
    "IndexReport",
    "SearchIndex",
    "Settings",
    "Skipped",
    "build_index",
    "read_document",
    "read_documents",
    "split_passages",
]
