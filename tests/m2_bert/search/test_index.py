"""build_index: what is stored, what is embedded again, and that an interruption loses nothing."""

import contextlib
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
from m2_bert.search.shards import open_shard

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
        opened = open_shard(out, shard, manifest.settings.dimension)
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
    shard = open_shard(out, manifest.shards[0], 64)
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


def test_some_files_say_nothing_about_the_others(root, out):
    build(root, out)
    write(root, {"0/000.txt": "violin"})
    (root / "1/001.txt").unlink()
    (root / "2/002.txt").unlink()
    report, seen = build(root, out, paths=["0/000.txt", "1/001.txt"])
    assert (seen, report.forgotten, report.documents) == (["violin"], 1, 8)
    assert "2/002.txt" in contents(out)
    assert "1/001.txt" not in contents(out)
    flat = write(out.parent / "flat", {"a.txt": "river", "b.txt": "stone"})
    build(flat, out.parent / "idx")
    assert build(flat / "a.txt", out.parent / "idx")[0].documents == 2


def test_a_folder_without_any_of_its_documents_is_not_believed(root, out):
    build(root, out)
    before = contents(out)
    away = root.rename(root.with_name("away"))
    root.mkdir()
    message = f"{root} holds none of the 9 documents of {out} any more.*mount.*--rebuild"
    with pytest.raises(ValueError, match=message):
        build(root, out)
    assert contents(out) == before
    root.rmdir()
    away.rename(root)
    assert build(root, out)[0].unchanged == 9
    for path in root.glob("*/*"):
        path.unlink()
    assert build(root, out, rebuild=True)[0].documents == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("what", ["file", "folder", "root"])
def test_what_cannot_be_read_for_now_is_kept(root, out, monkeypatch, number, what):
    build(root, out)
    before = contents(out)
    (root / "1/001.txt").unlink()
    name, call = {
        "file": ("0/000.txt", "open"),
        "folder": (f"{root.name}/0", "listdir"),
        "root": (root.name, "listdir"),
    }[what]
    real = getattr(os, call)

    def refuse(path, *rest):
        if os.fspath(path).rstrip("/").endswith(name):
            raise OSError(number, os.strerror(number))
        return real(path, *rest)

    monkeypatch.setattr(os, call, refuse)
    report, _ = build(root, out)
    monkeypatch.undo()
    assert len(report.skipped) == 1
    assert report.skipped[0].transient
    forgotten = set() if what == "root" else {"1/001.txt"}
    assert contents(out).keys() == before.keys() - forgotten
    assert report.forgotten == len(forgotten)
    assert build(root, out)[0].unchanged == 8


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


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt, SystemExit])
def test_whatever_stops_the_embedder_keeps_what_was_embedded(root, out, monkeypatch, error):
    monkeypatch.setattr("m2_bert.search.index.SLICE_DOCUMENTS", 2)
    embedder = WordEmbedder()
    real, calls = embedder.encode_with_spans, []

    def fail(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise error("out of memory")
        return real(*args, **options)

    embedder.encode_with_spans = fail
    with pytest.raises(error, match="out of memory"):
        build(root, out, embedder)
    assert len(contents(out)) == 4
    assert build(root, out)[0].embedded == 5


def test_a_full_disk_does_not_hide_what_stopped_the_run(root, out, monkeypatch):
    def stop(progress):
        if progress.embedded == 9:
            monkeypatch.setattr(os, "fsync", full)
            raise RuntimeError("the first error")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RuntimeError, match="the first error"):
        build(root, out, progress=stop)


def test_a_slow_model_gets_small_slices(tmp_path, out, monkeypatch):
    root = write(tmp_path / "root", dict.fromkeys(map(str, range(40)), "river " * 200))
    sizes = []
    for seconds in (0.2, 1e6):
        monkeypatch.setattr("m2_bert.search.index.SLICE_SECONDS", seconds)
        embedder = WordEmbedder(delay=0.04)
        real = embedder.encode_with_spans

        def count(texts, *args, real=real, **options):
            sizes[-1].append(len(texts))
            return real(texts, *args, **options)

        embedder.encode_with_spans = count
        sizes.append([])
        build(root, out, embedder, rebuild=True)
    # A text counts as about 300 tokens: 7 are 2048 of them; at 40 ms each, 5 are 0.2 s.
    assert sizes == [[7, 7, 7, 7, 7, 5], [7, 33]]


# ---- Rebuilding ----------------------------------------------------------------------------------


def failing_after(count):
    def stop(progress):
        if progress.embedded >= count:
            raise RuntimeError("stopped")

    return stop


def test_a_failing_rebuild_leaves_the_old_index_and_continues(root, out):
    build(root, out, shard_documents=2)
    before = contents(out)
    other = {"max_length": 100}
    options = {"progress": failing_after(4), "shard_documents": 2, "rebuild": True}
    with pytest.raises(RuntimeError, match="stopped"):
        build(root, out, WordEmbedder(**other), **options)
    assert contents(out) == before
    assert SearchIndex.open(out).complete
    with pytest.raises(ValueError, match="made with max_length 512, not 100"):
        build(root, out, WordEmbedder(**other))
    report, _ = build(root, out, WordEmbedder(**other), rebuild=True)
    assert (report.embedded, report.unchanged, len(contents(out))) == (5, 4, 9)
    assert SearchIndex.open(out).settings.max_length == 100
    assert sorted(path.suffix for path in out.glob("[!.C]*")) == [".json", ".jsonl", ".safetensors"]


@pytest.mark.parametrize("after", ["the old settings", "a third model"])
def test_an_interrupted_rebuild_is_dropped(root, out, after):
    build(root, out)
    with pytest.raises(RuntimeError, match="stopped"):
        build(root, out, WordEmbedder(max_length=100), rebuild=True, progress=failing_after(4))
    assert (out / "rebuild.json").exists()
    if after == "the old settings":
        report, _ = build(root, out)
        assert (report.embedded, report.unchanged) == (0, 9)
    else:
        report, _ = build(root, out, WordEmbedder(max_length=50), rebuild=True)
        assert (report.embedded, report.unchanged) == (9, 0)
    assert not (out / "rebuild.json").exists()
    assert len(list(out.glob("shard-*"))) == 2
    assert len(contents(out)) == 9


@pytest.mark.parametrize("step", range(1, 30, 2))
def test_a_rebuild_that_fails_at_any_replacement_keeps_an_index(root, out, monkeypatch, step):
    build(root, out, shard_documents=4)
    before = contents(out)
    real, calls = os.fsync, []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) >= step:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with contextlib.suppress(OSError):
        build(root, out, shard_documents=4, rebuild=True)
    monkeypatch.undo()
    assert contents(out) == before
    assert build(root, out, rebuild=True)[0].documents == 9
    assert contents(out) == before


# ---- Damage --------------------------------------------------------------------------------------


def overwrite(path, content, position):
    with open(path, "r+b") as file:
        file.seek(position, os.SEEK_END if position < 0 else os.SEEK_SET)
        file.write(content)


@pytest.mark.parametrize("where", ["embeddings", "spans"])
def test_overwritten_vectors_are_found(root, out, where):
    build(root, out)
    before = contents(out)
    file = out / "shard-00000.safetensors"
    if where == "spans":
        overwrite(file, b"\xff" * 128 * 9, -128 * 9)
    else:
        overwrite(file, b"\xff" * 256, -128 * 9 - 256)
    query = table()[[2300]]
    with pytest.raises(
        ValueError, match=r"00.safetensors is damaged .*cosine of nan.* index` again"
    ):
        SearchIndex.open(out).search_vectors(query)
    report, seen = build(root, out)
    assert (len(seen), len(report.damaged)) == (9, 1)
    assert contents(out) == before


def test_a_flipped_bit_is_found_at_the_next_run(root, out):
    build(root, out)
    before = contents(out)
    file = out / "shard-00000.safetensors"
    last = file.read_bytes()[-2]
    overwrite(file, bytes([last ^ 1]), -2)
    assert contents(out) != before
    report, _ = build(root, out)
    assert (report.embedded, len(report.damaged)) == (9, 1)
    assert "SHA-256" in report.damaged[0]
    assert contents(out) == before


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
    ["", "{", "[]", f'{{"format": "{store.FORMAT}", "version": 2}}', "[" * 100_000],
    ids=["empty", "cut", "list", "fields", "deep"],
)
def test_a_damaged_manifest(root, out, content):
    build(root, out)
    (out / "index.json").write_text(content)
    for attempt in (lambda: build(root, out), lambda: SearchIndex.open(out)):
        with pytest.raises(ValueError, match=r"index.json is damaged \(.*--rebuild"):
            attempt()
    assert build(root, out, rebuild=True)[0].embedded == 9


def test_a_manifest_cannot_name_files_elsewhere(root, out):
    build(root, out)
    content = (out / "index.json").read_text()
    (out / "index.json").write_text(content.replace("shard-00000", "../shard-00000"))
    with pytest.raises(ValueError, match="shard name"):
        SearchIndex.open(out)


@pytest.mark.parametrize("version", [1, 3])
def test_another_version_is_refused_unless_rebuilt(root, out, version):
    build(root, out)
    content = (out / "index.json").read_text()
    (out / "index.json").write_text(content.replace('"version": 2', f'"version": {version}'))
    for attempt in (lambda: build(root, out), lambda: SearchIndex.open(out)):
        with pytest.raises(ValueError, match=f"version {version}, expected 2: .* with --rebuild"):
            attempt()
    assert build(root, out, rebuild=True)[0].embedded == 9
    assert len(SearchIndex.open(out)) == 9
    assert len(list(out.glob("shard-*"))) == 2


@pytest.mark.parametrize("content", ['{"format": "other", "version": 2}', "{}", "<html>", "[]"])
def test_a_foreign_index_json_is_left_alone(root, tmp_path, content):
    mine = write(tmp_path / "web", {"index.json": content, "shard-00001.safetensors": "mine"})
    for rebuild in (False, True):
        with pytest.raises(FileExistsError, match="holds no search index: choose another --out"):
            build(root, mine, rebuild=rebuild)
    with pytest.raises(ValueError, match="is not of a search index of m2_bert: choose another"):
        SearchIndex.open(mine)
    assert {path.name: path.read_text() for path in mine.iterdir()} == {
        "index.json": content,
        "shard-00001.safetensors": "mine",
    }


@pytest.mark.parametrize("which", ["root", "out", "file"])
def test_paths_that_are_not_utf8_are_refused_at_once(root, tmp_path, which):
    bad = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    if which == "file":
        (root / bad.name).write_text("river")
        report, _ = build(root / bad.name, tmp_path / "out")
        assert [found.path for found in report.skipped] == ["\\xff"]
        return
    paths = (root, bad)
    if which == "root":
        paths = (write(bad, {"a.txt": "river"}), tmp_path / "out")
    with pytest.raises(ValueError, match=rf"{which}: got '.*/\\xff', a path that is not UTF-8"):
        build(*paths)
    assert not (tmp_path / "out").exists()
    assert bad.exists() == (which == "root")
    with pytest.raises(ValueError, match=r"path: got '.*, a path that is not UTF-8"):
        SearchIndex.open(bad)
