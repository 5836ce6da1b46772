"""build_index: what is stored, what is embedded again, and that an interruption loses nothing."""

import errno
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from m2_bert.search import SearchIndex, build_index, store

from tests.m2_bert.search.makers import WordEmbedder, table, word_files, write

REPOSITORY = Path(__file__).parents[3]


def build(root, out, embedder=None, **options):
    """Report of a run, and the texts it embedded."""
    embedder = embedder or WordEmbedder()
    report = build_index(root, out, embedder, model_name="words", **options)
    return report, embedder.seen


def contents(out):
    """Path -> (sha256, spans, embedding and span vectors) of everything in an index."""
    manifest = store.read_manifest(out)
    found = {}
    for shard in manifest.shards:
        opened = store.open_shard(out, shard, manifest.settings.dimension)
        for row, record in enumerate(opened.records):
            assert record.path not in found
            vectors = opened.embeddings[row].tobytes() + opened.spans_of(row).tobytes()
            found[record.path] = (record.sha256, record.spans, vectors)
    return found


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "root", word_files(9))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deep" / "out"


# ---- What is stored ------------------------------------------------------------------------------


def test_vectors_are_those_of_the_document_and_its_passages(tmp_path, out):
    text = "river stone\n\n" * 10 + "lantern engine"
    write(tmp_path / "root", {"a.txt": text})
    report, _ = build(tmp_path / "root", out, passage_characters=40)
    manifest = store.read_manifest(out)
    shard = store.open_shard(out, manifest.shards[0], 64)
    record = shard.records[0]
    embedder = WordEmbedder()
    assert (record.tokens, record.cut_tokens, record.characters) == (24, 0, len(text))
    assert [text[a:b] for a, b in record.spans][-1].endswith("lantern engine")
    np.testing.assert_allclose(np.linalg.norm(shard.embeddings, axis=1), 1, rtol=1e-6)
    parts = [text, *(text[a:b] for a, b in record.spans)]
    expected = embedder.encode(parts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(shard.embeddings[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(shard.spans, expected[1:], atol=1e-3)
    assert (report.documents, report.spans, report.tokens) == (1, len(record.spans), 24)


def test_index_json_says_how_it_was_made(root, out):
    build(root, out)
    content = json.loads((out / "index.json").read_text())
    assert content["settings"] | {"fingerprint": ""} == {
        "model": "words",
        "fingerprint": "",
        "padding": "invariant",
        "max_length": 512,
        "long_documents": "truncate",
        "dtype": "float32",
        "dimension": 64,
        "passage_characters": 1200,
    }
    assert len(content["settings"]["fingerprint"]) == 16
    assert (content["root"], content["complete"]) == (str(root), True)
    assert sorted(os.listdir(out)) == [
        *(".lock", "CACHEDIR.TAG", "index.json", "shard-00000.jsonl", "shard-00000.safetensors")
    ]


@pytest.mark.parametrize("policy", ["truncate", "window", "error"])
def test_long_documents(tmp_path, out, policy):
    words = "river " * 30 + "unaffableness " * 30  # several tokens a word: cut within one
    write(tmp_path / "root", {"long.txt": words, "short.txt": "stone"})
    embedder = WordEmbedder(max_length=35, long_documents=policy)
    report, _ = build(tmp_path / "root", out, embedder, passage_characters=20)
    lines = (out / "shard-00000.jsonl").read_text().splitlines()
    records = {line["path"]: line for line in map(json.loads, lines)}
    assert records["short.txt"]["cut_tokens"] == 0
    if policy == "error":
        assert list(records) == ["short.txt"]
        assert re.search(r"too long: \d+ tokens, the limit is 35", report.skipped[0].reason)
        return
    record = records["long.txt"]
    reach = record["spans"][-1][1]
    if policy == "window":
        assert (reach, report.cut_documents, report.cut_tokens) == (len(words.rstrip()), 0, 0)
    else:
        assert 180 < reach <= 180 + len("unaffableness")
        assert record["cut_tokens"] == record["tokens"] - 35 == report.cut_tokens
        assert report.cut_documents == 1


def test_what_cannot_be_embedded_is_listed(tmp_path, out):
    files = {"a.txt": "river", "b.txt": "poison", "c.txt": "\u200b\u200b", "d.bin": b"\0"}
    write(tmp_path / "root", files | {"e.txt": "stone"})
    report, seen = build(tmp_path / "root", out)
    assert {found.path: found.reason for found in report.skipped} == {
        "b.txt": "cannot be embedded: ValueError: texts: got an embedding that is not finite",
        "c.txt": "empty: no word in it",
        "d.bin": "binary",
    }
    assert seen == ["river", "stone"]
    assert set(contents(out)) == {"a.txt", "e.txt"}


def test_a_passage_without_a_token_is_left_out(tmp_path, out):
    text = "river " + "\u200b" * 200 + " stone"
    write(tmp_path / "root", {"a.txt": text})
    build(tmp_path / "root", out, passage_characters=50)
    spans = contents(out)["a.txt"][1]
    assert {text[a:b].strip("\u200b ") for a, b in spans} == {"river", "stone"}


def test_a_single_file_some_files_and_no_files(root, tmp_path):
    assert build(root / "0/000.txt", tmp_path / "1")[0].documents == 1
    some = ["0/000.txt", str(root / "1/001.txt"), "0/../0/000.txt", "../x"]
    report, _ = build(root, tmp_path / "2", paths=some)
    assert set(contents(tmp_path / "2")) == {"0/000.txt", "1/001.txt"}
    assert [found.path for found in report.skipped] == ["../x"]
    (tmp_path / "empty").mkdir()
    assert build(tmp_path / "empty", tmp_path / "3")[0].documents == 0
    assert len(SearchIndex.open(tmp_path / "3")) == 0


def test_an_index_within_the_folder_is_not_a_document(root):
    assert build(root, root / "idx")[0].documents == 9
    # The tag keeps another index of the same folder from reading this one.
    report, _ = build(root, root / "idx2")
    assert (report.documents, report.skipped) == (9, ())


def test_progress_goes_up_to_the_number_of_files(root, out):
    write(root, {"x.bin": b"\0"})
    seen = []
    build(root, out, shard_documents=4, progress=seen.append)
    assert {found.total_files for found in seen} == {10}
    last = seen[-1]
    assert (last.done, last.embedded, last.skipped, last.unchanged) == (10, 9, 1, 0)
    assert last.tokens > 9 * 22
    assert all(
        a.done <= b.done and a.embedded <= b.embedded and a.tokens <= b.tokens
        for a, b in itertools.pairwise(seen)
    )
    assert {1, 2, 3} <= {found.done for found in seen if found.embedded == 0}  # within a slice


# ---- Runs after the first ------------------------------------------------------------------------


@pytest.mark.parametrize("shard_documents", [1, 4, 100])
def test_only_what_changed_is_embedded_again(root, out, tmp_path, shard_documents):
    options = {"shard_documents": shard_documents}
    assert build(root, out, **options)[0].embedded == 9
    before = contents(out)
    report, seen = build(root, out, **options)
    assert (report.embedded, report.unchanged, seen) == (0, 9, [])
    assert contents(out) == before

    write(root, {"0/003.txt": "violin violin", "new.txt": "harbor"})
    (root / "1/004.txt").unlink()
    write(root, {"2/005.txt": b"\0"})
    os.utime(root / "0/000.txt", (0, 0))
    report, seen = build(root, out, **options)
    assert sorted(seen) == ["harbor", "violin violin"]
    assert (report.embedded, report.unchanged, report.forgotten) == (2, 6, 2)
    assert [found.path for found in report.skipped] == ["2/005.txt"]
    build(root, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
    assert report.documents == len(contents(out)) == 8


def test_many_small_runs_do_not_leave_many_shards(root, out):
    for i in range(5):
        write(root, {f"new{i}.txt": f"river {i}"})
        build(root, out)
    assert len(store.read_manifest(out).shards) == 1
    assert len(list(out.glob("shard-*"))) == 2
    assert len(contents(out)) == 14


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, r"made with fingerprint \w+, not \w+ \(model words, now words\)"),
        ({"max_length": 100}, "made with max_length 512, not 100"),
        ({"long_documents": "window"}, "made with long_documents truncate, not window"),
    ],
    ids=["model", "max_length", "long_documents"],
)
def test_another_model_is_refused_unless_rebuilt(root, out, other, message):
    build(root, out)
    before = contents(out)
    with pytest.raises(ValueError, match=message + ": choose another --out.* --rebuild"):
        build(root, out, WordEmbedder(**other))
    assert contents(out) == before
    report, _ = build(root, out, WordEmbedder(**other), rebuild=True)
    assert (report.embedded, len(contents(out))) == (9, 9)
    assert len(list(out.glob("shard-*"))) == 2


def test_another_folder_is_refused_and_a_moved_one_is_not(root, out, tmp_path):
    build(root, out)
    other = write(tmp_path / "other", {"a.txt": "river"})
    with pytest.raises(ValueError, match=f"is the index of {root}, not of {other}: choose"):
        build(other, out)
    root.rename(tmp_path / "moved")
    report, _ = build(tmp_path / "moved", out)
    assert (report.embedded, report.unchanged) == (0, 9)
    assert SearchIndex.open(out).root == tmp_path / "moved"


def test_the_same_weights_under_another_name(root, out):
    build(root, out)
    report = build_index(root, out, WordEmbedder(), model_name="renamed")
    assert report.embedded == 0
    assert SearchIndex.open(out).settings.model == "renamed"


# ---- Interruptions -------------------------------------------------------------------------------

KILLED = """
import sys
from tests.m2_bert.search.makers import WordEmbedder
from m2_bert.search import build_index
build_index(sys.argv[1], sys.argv[2], WordEmbedder(delay=0.2), model_name="words",
            shard_documents=2)
"""


def test_a_killed_run_continues_and_gives_the_same_index(tmp_path):
    root, out = write(tmp_path / "root", word_files(22)), tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", KILLED, root, out], cwd=REPOSITORY)
    try:
        for _ in range(12_000):
            with_shards = (out / "index.json").exists() and store.read_manifest(out).shards
            if len(with_shards or ()) >= 3:
                break
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    (out / "shard-99999.jsonl").write_text("half")  # what a kill within a write leaves
    (out / ".tmp-1-shard-00009.safetensors").write_text("half")
    done = contents(out)
    assert 6 <= len(done) < 22
    assert not SearchIndex.open(out).complete

    report, seen = build(root, out, shard_documents=2)
    assert (report.embedded, report.unchanged) == (22 - len(done), len(done))
    assert len(seen) == 22 - len(done)
    build(root, tmp_path / "whole", shard_documents=2)
    assert contents(out) == contents(tmp_path / "whole")
    assert SearchIndex.open(out).complete
    assert not list(out.glob(".tmp-*"))
    assert not (out / "shard-99999.jsonl").exists()
    query = table()[[2300, 5000]]
    both = [SearchIndex.open(x).search_vectors(query) for x in (out, tmp_path / "whole")]
    assert both[0] == both[1]


@pytest.mark.parametrize("step", range(1, 40, 3))
def test_a_failure_at_any_replacement_loses_only_the_unfinished(root, out, monkeypatch, step):
    build(root, out, shard_documents=2)
    write(root, {"0/000.txt": "violin", "new.txt": "harbor", "new2.txt": "winter"})
    (root / "1/001.txt").unlink()
    known = {path: entry for path, entry in contents(out).items() if path != "0/000.txt"}
    real, calls = os.fsync, []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    try:
        build(root, out, shard_documents=2)
    except OSError as error:
        message = str(error)
        assert re.fullmatch(r"cannot write \S+ \(No space left on device\): make room .*", message)
    monkeypatch.undo()
    index = SearchIndex.open(out)  # whatever happened, what is there is whole
    paths = [hit.path for hit in index.search_vectors(table()[:1], top_k=50)[0]]
    assert len(set(paths)) == len(paths)
    assert known.keys() - set(paths) <= {"1/001.txt"}
    report, seen = build(root, out, shard_documents=2)
    assert set(seen) <= {"violin", "harbor", "winter"}
    fresh = out.with_name("fresh")
    build(root, fresh)
    assert contents(out) == contents(fresh)
    assert not list(out.glob(".tmp-*"))
    shards = {f"{shard.name}.jsonl" for shard in store.read_manifest(out).shards}
    assert {path.name for path in out.glob("*.jsonl")} == shards
    assert report.documents == 10


def test_ctrl_c_keeps_what_was_embedded(root, out):
    def stop(progress):
        if progress.embedded >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(root, out, shard_seconds=1e9, shard_documents=4, progress=stop)
    assert len(contents(out)) == 4
    assert build(root, out)[0].embedded == 5


def test_shards_are_finished_after_some_time(root, out, monkeypatch):
    monkeypatch.setattr("m2_bert.search.index.SLICE_DOCUMENTS", 1)
    counts = []

    def count(progress):
        if (out / "index.json").exists():
            counts.append(len(store.read_manifest(out).shards))

    build(root, out, shard_seconds=0.0, progress=count)
    assert max(counts) >= 8


@pytest.mark.parametrize("damage", ["cut", "missing", "records", "swapped"])
def test_a_damaged_shard_is_made_again(root, out, damage):
    build(root, out, shard_documents=3)
    before = contents(out)
    victim = out / f"shard-00001.{'jsonl' if damage == 'records' else 'safetensors'}"
    if damage == "missing":
        victim.unlink()
    elif damage == "swapped":
        victim.write_bytes(b"\0" * 100)
    else:
        victim.write_bytes(victim.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{victim.name} is damaged or missing .* run `m2-bert"):
        SearchIndex.open(out)
    report, seen = build(root, out, shard_documents=3)
    assert (len(seen), report.embedded, report.unchanged, len(report.damaged)) == (3, 3, 6, 1)
    assert contents(out) == before


# ---- The folder ----------------------------------------------------------------------------------


def test_two_writers_are_one_too_many(root, out):
    build(root, out)
    with open(out / ".lock", "a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate(0)
        held.write("4711\n")
        held.flush()
        with pytest.raises(BlockingIOError, match="is being written by process 4711: wait"):
            build(root, out)
    assert build(root, out)[0].unchanged == 9  # a lock file without its process is no lock


def test_folders_that_are_no_index_are_left_alone(root, tmp_path):
    mine = write(tmp_path / "mine", {"shard-00000.jsonl": "mine"})
    with pytest.raises(FileExistsError, match="not empty and holds no search index: choose"):
        build(root, mine, rebuild=True)
    assert os.listdir(mine) == ["shard-00000.jsonl"]
    with pytest.raises(FileExistsError, match="is not a folder: choose another --out"):
        build(root, mine / "shard-00000.jsonl")
    with pytest.raises(ValueError, match="got the folder of documents"):
        build(root, root)
    with pytest.raises(FileNotFoundError, match="expected a folder of documents"):
        build(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(root, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"^cannot write .*out \(Permission denied\): "):
        build(root, tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": "other", "version": 1}', "[" * 100_000],
    ids=["empty", "cut", "list", "other", "deep"],
)
def test_a_damaged_manifest(root, out, content):
    build(root, out)
    (out / "index.json").write_text(content)
    for attempt in (lambda: build(root, out), lambda: SearchIndex.open(out)):
        with pytest.raises(ValueError, match=r"index.json is damaged or not ours \(.*--rebuild"):
            attempt()
    assert build(root, out, rebuild=True)[0].embedded == 9


def test_a_manifest_cannot_name_files_elsewhere(root, out):
    build(root, out)
    content = (out / "index.json").read_text()
    (out / "index.json").write_text(content.replace("shard-00000", "../shard-00000"))
    with pytest.raises(ValueError, match="shard name"):
        SearchIndex.open(out)


def test_a_newer_version_is_refused(root, out):
    build(root, out)
    content = (out / "index.json").read_text()
    (out / "index.json").write_text(content.replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version 2, expected 'm2_bert search index', version 1"):
        SearchIndex.open(out)
