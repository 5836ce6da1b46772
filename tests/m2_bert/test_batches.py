"""Cutting, windows, padded lengths, batches, tokenisation in slices, and spans of tokens."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from m2_bert import batches
from m2_bert.batches import Piece, cut, pad, padded_length, plan_batches, tokenize, window_starts
from m2_bert.spans import add_states, token_ranges
from m2_bert.tokenizer import load_tokenizer

from tests.m2_bert.makers import text_of

CLS, SEP = 101, 102


def _ids(tokens: int) -> np.ndarray:
    return np.array([CLS, *range(1000, 1000 + tokens), SEP], dtype=np.int32)


@pytest.mark.parametrize(
    ("tokens", "capacity", "starts"),
    [
        (17, 16, [0, 1]),
        (30, 16, [0, 14]),
        (31, 16, [0, 14, 15]),
        (40, 16, [0, 14, 24]),
        (3, 1, [0, 1, 2]),
        (510 * 3, 510, [0, 447, 894, 1020]),
    ],
)
def test_windows_begin_a_stride_apart_and_the_last_is_full(tokens, capacity, starts) -> None:
    assert window_starts(tokens, capacity) == starts


@pytest.mark.parametrize("max_length", [3, 4, 11, 18])
def test_windows_cover_the_text_and_own_each_token_where_it_is_farthest_from_an_edge(
    max_length: int,
) -> None:
    capacity = max_length - 2
    for tokens in range(capacity + 1, 5 * capacity + 3):
        ids = _ids(tokens)
        pieces = cut(7, ids, max_length, "window")
        distance = np.full((len(pieces), tokens), -1)
        owner = np.full(tokens, -1)
        for k, piece in enumerate(pieces):
            window = ids[1 + piece.start : 1 + piece.start + capacity]
            assert piece.text == 7
            assert piece.ids.tolist() == [CLS, *window.tolist(), SEP]
            assert len(piece.ids) == max_length
            inside = np.arange(capacity)
            here = slice(piece.start, piece.start + capacity)
            distance[k, here] = np.minimum(inside, capacity - 1 - inside)
            assert (owner[slice(*piece.owned)] == -1).all()
            owner[slice(*piece.owned)] = k
        assert owner.tolist() == distance.argmax(axis=0).tolist()


def test_cut_keeps_what_fits_whole() -> None:
    for policy in ("truncate", "error", "window"):
        (piece,) = cut(0, _ids(16), 18, policy)
        assert piece.ids.tolist() == _ids(16).tolist()
        assert (piece.start, piece.owned) == (0, (0, 16))


def test_truncation_keeps_the_first_tokens_and_the_final_sep() -> None:
    (piece,) = cut(2, _ids(40), 18, "truncate")
    assert piece.ids.tolist() == [CLS, *range(1000, 1016), SEP]
    assert (piece.text, piece.start, piece.owned) == (2, 0, (0, 16))


def test_padded_lengths_are_few_and_near() -> None:
    longest = 32768
    rounded = [padded_length(n, longest) for n in range(2, longest + 1)]
    assert rounded == sorted(rounded)
    assert len(set(rounded)) <= 16 * 9
    for n, length in enumerate(rounded, start=2):
        assert n <= length <= longest
        assert length - n < max(8, n / 16)
    for n, length in ((2, 8), (9, 16), (128, 128), (129, 136), (257, 272), (1025, 1088)):
        assert padded_length(n, longest) == length
    assert padded_length(95, 100) == 96
    assert padded_length(97, 100) == 100


@pytest.mark.parametrize("full_length", [False, True])
@pytest.mark.parametrize("budget", [1, 100, 700, 5000])
def test_batches_hold_each_piece_once_within_the_budget(budget: int, full_length: bool) -> None:
    tokens = np.random.default_rng(0).integers(2, 513, size=60).tolist()
    planned = plan_batches(tokens, budget, longest=512, full_length=full_length)
    assert sorted(i for _, members in planned for i in members) == list(range(60))
    lengths = [length for length, _ in planned]
    assert lengths == sorted(lengths, reverse=True)
    for length, members in planned:
        assert len(members) == 1 or length * len(members) <= budget
        assert length >= max(tokens[i] for i in members)
        assert length == 512 or not full_length
    # A batch is not ended while the next piece of its length would fit.
    for (length, members), (following, _) in pairwise(planned):
        assert following < length or (len(members) + 1) * length > budget


@pytest.mark.parametrize("budget", [1, 300, 10**6])
def test_no_other_choice_of_lengths_costs_less(budget: int) -> None:
    generator = np.random.default_rng(1)

    def cost(lengths: list[int]) -> float:
        total = 0.0
        for length, count in Counter(lengths).items():
            launches = -(-count // max(1, budget // length))
            total += length * count + batches.FILTER_COST * length + batches.BATCH_COST * launches
        return total

    for _ in range(40):
        tokens = sorted(generator.choice([16, 40, 48, 72, 240, 256], 6).tolist(), reverse=True)
        planned = plan_batches(tokens, budget, longest=256, full_length=False)
        got = [length for length, members in planned for _ in members]
        # Any set of shared lengths, each piece padded to the least of them that holds it.
        least = min(
            cost([min(x for x in chosen if x >= n) for n in tokens])
            for size in range(1, 7)
            for chosen in combinations(sorted(set(tokens)), size)
            if max(chosen) == max(tokens)
        )
        assert cost(got) == pytest.approx(least)


def test_lengths_far_apart_get_batches_of_their_own() -> None:
    tokens = [1000, 20, 1000, 30]
    assert plan_batches(tokens, 10**6, 2048, False) == [(1024, [0, 2]), (32, [3, 1])]
    assert plan_batches(tokens, 10**6, 2048, True) == [(2048, [0, 2, 3, 1])]
    assert plan_batches([], 10**6, 2048, False) == []


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = pad([Piece(0, _ids(2), 0, (0, 2)), Piece(1, _ids(0), 0, (0, 0))], 5, pad_id=9)
    assert ids.tolist() == [[CLS, 1000, 1001, SEP, 9], [CLS, SEP, 9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


@pytest.mark.parametrize("characters", [1, 40, 10**6])
def test_slices_do_not_show(characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SLICE_CHARACTERS", characters)
    tokenizer = load_tokenizer()
    texts = ["", *(text_of(n, seed=n) for n in (1, 9, 30, 2)), "  ", "Über 日本"]
    found = list(tokenize(texts, tokenizer, offsets=True))
    assert len(found) == len(texts)
    for text, (ids, offsets) in zip(texts, found, strict=True):
        whole = tokenizer(text, return_offsets_mapping=True)
        assert ids.tolist() == whole["input_ids"]
        assert offsets.tolist() == [list(pair) for pair in whole["offset_mapping"][1:-1]]
        assert offsets.shape == (len(ids) - 2, 2)


def test_half_a_surrogate_pair_is_named() -> None:
    with pytest.raises(ValueError, match=r"texts\[2\]: character 3 is half of a surrogate pair"):
        list(tokenize(["a", "b", "abc\ud800", "\ud800"], load_tokenizer()))


OFFSETS = np.array([[0, 4], [5, 7], [7, 9], [12, 13]])  # a gap of white space from 9 to 12


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0, 14), (0, 4)),
        ((0, 4), (0, 1)),
        ((0, 5), (0, 1)),
        ((3, 6), (0, 2)),
        ((4, 6), (1, 2)),
        ((6, 7), (1, 2)),
        ((7, 13), (2, 4)),
        ((9, 13), (3, 4)),
    ],
)
def test_spans_take_the_tokens_that_they_overlap(span, expected) -> None:
    assert token_ranges([span], OFFSETS, characters=14, kept=4).tolist() == [list(expected)]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 4), (0, 15)], r"span 1: got \(0, 15\), expected 0 <= start < end <= 14"),
        ([(-1, 4)], r"span 0: got \(-1, 4\), expected 0 <= start"),
        ([(4, 2)], r"span 0: got \(4, 2\), expected 0 <= start < end"),
        ([(4, 4)], r"span 0: got \(4, 4\), expected 0 <= start < end"),
        ([(0, 4), (9, 12)], r"span 1: got \(9, 12\), without a token"),
        ([(5, 9)], r"span 0: got \(5, 9\), but truncation keeps 2 tokens, up to character 7"),
        ([(12, 13)], r"span 0: got \(12, 13\), but truncation keeps 2 tokens"),
        ([0, 4], r"got int64 of shape \(2,\), expected pairs"),
        ([(0.0, 4.0)], r"got float64 of shape \(1, 2\), expected pairs \(start, end\) of integers"),
    ],
)
def test_wrong_spans_are_named(spans, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_ranges(spans, OFFSETS, characters=14, kept=2)


def test_states_are_added_over_the_tokens_that_a_piece_owns() -> None:
    piece = Piece(0, _ids(6), start=10, owned=(11, 15))
    states = torch.arange(8.0)[:, None].expand(8, 3)  # state of token t: t - start + 1
    sums = torch.full((4, 3), 100.0)
    ranges = np.array([[0, 30], [13, 15], [0, 11], [14, 16]])
    add_states(sums, states, piece, ranges)
    assert sums.tolist() == [[100.0 + x] * 3 for x in (2 + 3 + 4 + 5, 4 + 5, 0, 5)]
