"""SearchIndex: exact results in a fixed order, the best passage, and faiss beside it."""

import itertools
import json
import sys
import warnings

import numpy as np
import pytest
from m2_bert import M2BertForEmbedding
from m2_bert.embedder import Embedder
from m2_bert.search import SearchIndex, build_index, store
from m2_bert.search.shards import Record, open_shard, write_shard

from tests.m2_bert.makers import WORDS, small_config, small_model, text_of
from tests.m2_bert.search.makers import DIMENSION, WordEmbedder, word_files, write


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "root", word_files(20))


@pytest.fixture
def index(root, tmp_path):
    build_index(root, tmp_path / "out", WordEmbedder(), model_name="words", shard_documents=3)
    return SearchIndex.open(tmp_path / "out")


def made_index(folder, vectors, shards=1, names=None):
    """An index of given embeddings, without documents."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names = names or [f"{i:06d}" for i in range(len(vectors))]
    settings = store.Settings("m", "0" * 16, "invariant", 8, "truncate", "float32", DIMENSION, 9)
    folder.mkdir(exist_ok=True)
    written = []
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        records = [Record(names[i], 1, "0", 1, 3, 0, ()) for i in rows]
        empty = [np.zeros((0, DIMENSION))] * len(rows)
        written.append(write_shard(folder, number, records, list(vectors[rows]), empty))
    store.write_manifest(folder, store.Manifest(settings, str(folder), tuple(written), True))
    return folder


def random_vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


# ---- Exact search --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [0, 7, 19])
def test_finds_the_document_of_a_word(index, word):
    hits = index.search(WORDS[word], embedder=WordEmbedder(), top_k=5)
    assert hits[0].path == f"{word % 3}/{word:03d}.txt"
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert hits[0].score > 0.9 > hits[1].score
    assert all(a.score >= b.score for a, b in itertools.pairwise(hits))


@pytest.mark.parametrize("shards", [1, 3, 50])
@pytest.mark.parametrize("top_k", [1, 10, 100, 1000])
def test_equals_sorting_all_cosines(tmp_path, shards, top_k):
    vectors, queries = random_vectors(300), random_vectors(4, seed=1)
    index = SearchIndex.open(made_index(tmp_path, vectors, shards))
    found = index.search_vectors(queries, top_k=top_k, snippets=False)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(queries, axis=1)[:, None]
    cosines = (queries.astype(np.float64) @ vectors.T) / norms
    for hits, cosine in zip(found, cosines, strict=True):
        order = np.argsort(-cosine)[:top_k]
        assert [hit.path for hit in hits] == [f"{i:06d}" for i in order]
        np.testing.assert_allclose([hit.score for hit in hits], cosine[order], atol=1e-6)


@pytest.mark.parametrize("engine", ["exact", "faiss"])
@pytest.mark.parametrize("shards", [1, 4, 11])
def test_equal_scores_are_ordered_by_path(tmp_path, engine, shards):
    vectors = np.repeat(random_vectors(2), 8, axis=0)
    names = [f"{(i * 7) % 16:02d}" for i in range(16)]
    index = SearchIndex.open(made_index(tmp_path, vectors, shards, names), engine)
    hits = index.search_vectors(vectors[:1], top_k=5, snippets=False)[0]
    assert [hit.path for hit in hits] == sorted(names[:8])[:5]
    assert len({hit.score for hit in hits}) == 1


def test_several_queries_are_several_lists(index):
    embedder = WordEmbedder()
    queries = [WORDS[1], WORDS[2]]
    one_by_one = [index.search(query, embedder=embedder, top_k=3) for query in queries]
    assert index.search(queries, embedder=embedder, top_k=3) == one_by_one
    assert index.search([], embedder=embedder) == []


def test_the_later_shard_counts_where_a_run_was_interrupted(tmp_path):
    vectors = random_vectors(6)
    names = ["a", "b", "c", "a", "d", "e"]
    index = SearchIndex.open(made_index(tmp_path, vectors, 2, names))
    assert len(index) == 5
    for row in (0, 3):
        hits = index.search_vectors(vectors[row : row + 1], top_k=9, snippets=False)[0]
        assert sorted(hit.path for hit in hits) == ["a", "b", "c", "d", "e"]
        score = next(hit.score for hit in hits if hit.path == "a")
        assert (score > 0.999) == (row == 3)


def test_an_index_of_nothing(tmp_path):
    (tmp_path / "root").mkdir()
    build_index(tmp_path / "root", tmp_path / "out", WordEmbedder(), model_name="words")
    for engine in ("exact", "faiss"):
        index = SearchIndex.open(tmp_path / "out", engine)
        assert index.search("river") == []
        assert index.search(["river", "stone"]) == [[], []]
        assert index.search_vectors(random_vectors(2)) == [[], []]


# ---- Passages ------------------------------------------------------------------------------------


def test_best_span_line_and_snippet(tmp_path):
    lines = [f"{word} {word} {word}" for word in WORDS[:12]]
    root = write(tmp_path / "root", {"a.txt": "\r\n".join(lines), "b.txt": "rocket"})
    out = tmp_path / "out"
    build_index(root, out, WordEmbedder(), model_name="words", passage_characters=30)
    index = SearchIndex.open(out)
    for number in (0, 5, 11):
        hits = index.search(WORDS[number], embedder=WordEmbedder())
        hit = next(hit for hit in hits if hit.path == "a.txt")
        assert hit.snippet == lines[number]
        assert hit.line == number + 1
        start, end = hit.span
        assert "\r\n".join(lines)[start:end] == lines[number]
        assert hit.span_score == pytest.approx(1, abs=2e-3)
        assert hit.note is None


def test_lines_are_those_of_the_file_only(tmp_path):
    page = "<html>\n\n\n<p>river river\n\n<p>stone"
    root = write(tmp_path / "root", {"a.html": page, "b.md": "river river\n\nstone"})
    build_index(root, tmp_path / "out", WordEmbedder(), model_name="words", passage_characters=15)
    hits = SearchIndex.open(tmp_path / "out").search("stone", embedder=WordEmbedder())
    assert {hit.path: (hit.snippet, hit.line) for hit in hits} == {
        "a.html": ("stone", None),
        "b.md": ("stone", 3),
    }


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ("edit", "the file has changed since it was indexed"),
        ("grow", "the file has changed since it was indexed"),
        ("delete", "it does not exist"),
        ("escape", "it lies outside the folder"),
    ],
)
def test_a_changed_file_is_said_to_be_changed(root, index, tmp_path, change, note):
    path = root / "1/007.txt"
    text = path.read_text()
    if change == "edit":
        path.write_text(text.upper())
    elif change == "grow":
        path.write_text(text + "more")
    else:
        path.unlink()
    if change == "escape":
        outside = write(tmp_path, {"outside.txt": text}) / "outside.txt"
        path.symlink_to(outside)
    hit = index.search(WORDS[7], embedder=WordEmbedder())[0]
    assert hit.path == "1/007.txt"
    assert (hit.snippet, hit.line) == (None, None)
    assert hit.note.startswith(note)


def test_results_are_json(index):
    hit = index.search(WORDS[3], embedder=WordEmbedder(), top_k=1)[0]
    content = json.loads(json.dumps(hit.to_dict()))
    assert content == {**vars(hit), "span": list(hit.span)}
    assert isinstance(content["score"], float)


# ---- faiss ---------------------------------------------------------------------------------------


def test_faiss_finds_what_exact_search_finds(tmp_path):
    folder = made_index(tmp_path, random_vectors(4000), shards=5)
    queries = random_vectors(50, seed=1)
    exact, near = (
        SearchIndex.open(folder, engine).search_vectors(queries, snippets=False)
        for engine in ("exact", "faiss")
    )
    common = [len(set(a) & set(b)) for a, b in zip(exact, near, strict=True)]
    assert sum(common) / 500 > 0.95


def test_faiss_index_is_kept_and_made_again_after_a_change(root, tmp_path, monkeypatch):
    import faiss

    built = []
    real = faiss.IndexHNSWFlat
    monkeypatch.setattr(faiss, "IndexHNSWFlat", lambda *args: built.append(1) or real(*args))
    out = tmp_path / "out"

    def first_hit(word):
        hits = SearchIndex.open(out, engine="faiss").search(word, embedder=WordEmbedder())
        return hits[0].path, len(built), len(list(out.glob("ann-*.faiss")))

    build_index(root, out, WordEmbedder(), model_name="words")
    assert first_hit(WORDS[4]) == ("1/004.txt", 1, 1)
    assert first_hit(WORDS[5]) == ("2/005.txt", 1, 1)
    write(root, {"new.txt": f"{WORDS[4]} " * 9})
    build_index(root, out, WordEmbedder(), model_name="words")
    assert first_hit(WORDS[4]) == ("new.txt", 2, 1)
    file = next(out.glob("ann-*.faiss"))
    file.write_bytes(file.read_bytes()[:100])
    assert first_hit(WORDS[4]) == ("new.txt", 3, 1)


def test_faiss_index_of_other_vectors_is_not_used(tmp_path):
    for seed in (0, 1):  # the same records
        vectors = random_vectors(500, seed)
        index = SearchIndex.open(made_index(tmp_path, vectors), engine="faiss")
        found = index.search_vectors(vectors[:50], top_k=1, snippets=False)
        assert [hits[0].path for hits in found] == [f"{i:06d}" for i in range(50)]


def test_faiss_index_of_other_records_is_not_used(tmp_path):
    vectors = random_vectors(600)
    for dead in (0, 299):  # the same vectors, of which the first, or the 300th, does not count
        names = [f"{i:06d}" for i in range(600)]
        names[-1] = names[dead]
        folder = made_index(tmp_path, vectors, 2, names)
        index = SearchIndex.open(folder, engine="faiss")
        found = index.search_vectors(vectors[1:299], top_k=1, snippets=False)
        assert [hits[0].path for hits in found] == names[1:299]


def test_faiss_index_goes_with_the_vectors(root, tmp_path):
    out = tmp_path / "out"

    def graphs(**options):
        build_index(root, out, WordEmbedder(), model_name="words", shard_documents=10, **options)
        return len(list(out.glob("ann-*.faiss")))

    graphs()
    SearchIndex.open(out, engine="faiss")
    assert graphs() == 1
    assert graphs(rebuild=True) == 0
    SearchIndex.open(out, engine="faiss")
    write(root, {f"new{i}": f"river {i}" for i in range(10)})
    assert graphs() == 0


def test_faiss_tells_its_progress_and_reads_vectors_only_to_build(tmp_path, monkeypatch):
    folder = made_index(tmp_path, random_vectors(2500), shards=2)
    seen = []
    SearchIndex.open(folder, "faiss", progress=lambda *at: seen.append(at))
    assert seen == [(1024, 2500), (1250, 2500), (2274, 2500), (2500, 2500)]
    monkeypatch.setattr(SearchIndex, "_live", lambda self: (1 / 0 for _ in self._rows))
    index = SearchIndex.open(folder, "faiss", progress=lambda *at: seen.append(at))
    assert len(seen) == 4
    hits = index.search_vectors(random_vectors(2500)[7:8], top_k=1, snippets=False)[0]
    assert hits[0].path == "000007"


@pytest.mark.parametrize("engine", ["exact", "faiss"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e20], ids=str)
def test_damaged_embeddings_are_an_error(tmp_path, engine, value):
    vectors = random_vectors(5)
    made_index(tmp_path, vectors)
    file = tmp_path / "shard-00000.safetensors"
    content = file.read_bytes()
    at = len(content) - 4 * vectors.size  # there are no spans
    file.write_bytes(content[:at] + np.float32(value).tobytes() + content[at + 4 :])
    with pytest.raises(ValueError, match=r"00000.safetensors is damaged .*run `m2-bert index`"):
        SearchIndex.open(tmp_path, engine).search_vectors(random_vectors(1, 1), snippets=False)


def test_faiss_without_permission_to_keep_the_index(root, index, tmp_path, monkeypatch):
    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.warns(UserWarning, match="Permission denied.* made again next time"):
        index = SearchIndex.open(tmp_path / "out", engine="faiss")
    assert index.search(WORDS[4], embedder=WordEmbedder())[0].path == "1/004.txt"


def test_faiss_missing_names_the_extra(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install monarch-kernels\[faiss\]"):
        SearchIndex.open(index.folder, engine="faiss")


# ---- Wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", " \n", ["river", ""], [3]], ids=repr)
def test_empty_queries(index, query):
    with pytest.raises(ValueError, match=r"query: got .* expected words"):
        index.search(query, embedder=WordEmbedder())


@pytest.mark.parametrize("top_k", [0, -1, 1.0, True], ids=repr)
def test_top_k_below_one(index, top_k):
    with pytest.raises(ValueError, match="top_k: got"):
        index.search("river", top_k=top_k, embedder=WordEmbedder())


def test_wrong_vectors(index):
    with pytest.raises(ValueError, match=r"got shape \(1, 3\), expected \(queries, 64\)"):
        index.search_vectors(np.ones((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        index.search_vectors(np.full((1, DIMENSION), np.nan))


def test_wrong_engine_and_no_index(index, tmp_path):
    with pytest.raises(ValueError, match="engine: got 'annoy', expected 'exact' or 'faiss'"):
        SearchIndex.open(index.folder, engine="annoy")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"no index.json\): make one with"):
            SearchIndex.open(path)


def test_another_model_is_refused(index):
    with pytest.raises(ValueError, match=r"was made with words \(\w+\): pass that model, or"):
        index.search("river", embedder=WordEmbedder(seed=1))


def test_shards_merged_while_they_are_opened(index, root, monkeypatch):
    real, calls = open_shard, []

    def meanwhile(*args):
        if not calls:
            calls.append(1)
            write(root, {"0/000.txt": "changed"})
            build_index(root, index.folder, WordEmbedder(), model_name="words")
        return real(*args)

    monkeypatch.setattr("m2_bert.search.query.open_shard", meanwhile)
    assert len(SearchIndex.open(index.folder)) == 20


# ---- With the model ------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["invariant", "max_length"])
@pytest.mark.parametrize("policy", ["truncate", "window"])
def test_with_a_real_model(tmp_path, padding, policy):
    files = {f"{i}.txt": text_of(20 * i + 5, seed=i) for i in range(6)}
    root, out = write(tmp_path / "root", files), tmp_path / "out"
    embedder = Embedder(small_model(padding=padding), long_documents=policy)
    report = build_index(root, out, embedder, model_name="small", passage_characters=60)
    assert report.documents == 6
    assert (report.cut_documents > 0) == (policy == "truncate")
    index = SearchIndex.open(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hits = index.search(list(files.values()), embedder=embedder, top_k=2)
        vectors = embedder.encode(list(files.values()), normalize=True)
    for name, found in zip(files, hits, strict=True):
        assert found[0].path == name
        assert found[0].score == pytest.approx(1, abs=1e-5)
    cosines = np.sort(vectors @ vectors.T, axis=1)[:, ::-1]
    np.testing.assert_allclose([[h.score for h in f] for f in hits], cosines[:, :2], atol=1e-5)


def test_the_index_opens_its_own_model(tmp_path):
    from m2_bert.folder import save_folder

    folder = save_folder(small_model(padding="invariant"), tmp_path / "model")
    root = write(tmp_path / "root", word_files(4))
    embedder = Embedder(folder, max_length=20, long_documents="window")
    build_index(root, tmp_path / "out", embedder, model_name=str(folder))
    index = SearchIndex.open(tmp_path / "out")
    opened = index.open_embedder()
    assert (opened.max_length, opened.long_documents) == (20, "window")
    assert index.search("river", top_k=2) == index.search("river", top_k=2, embedder=embedder)
    other = M2BertForEmbedding(small_config(padding="invariant"))
    save_folder(other, tmp_path / "model2")
    (tmp_path / "model").rename(tmp_path / "model1")
    (tmp_path / "model2").rename(tmp_path / "model")
    with pytest.raises(ValueError, match="got a model of fingerprint"):
        SearchIndex.open(tmp_path / "out").search("river")
    moved = index.open_embedder(model=tmp_path / "model1")
    assert SearchIndex.open(tmp_path / "out").search("river", embedder=moved)
