"""The needle test of the LoCo paper (Table 15): one relevant passage at a position among others."""

from __future__ import annotations

import random
from collections.abc import Sequence

from m2_bert.loco.task import RetrievalTask

SEPARATOR = "\n\n"


def needle_task(
    task: RetrievalTask,
    *,
    position: int,
    distractors: int = 39,
    seed: int = 0,
    max_queries: int | None = None,
    passage_characters: int | None = None,
    pool: Sequence[str] | None = None,
) -> RetrievalTask:
    """A task whose documents are haystacks: each answer of `task` buried among other passages.

    A haystack is one relevant document (the needle) and `distractors` passages around it, joined by
    blank lines; it keeps the needle's id, and so the queries and their gains stay. A system ranks
    all haystacks for each query. Only the needle's place depends on `position`: the same queries,
    passages and order come back for every position, so that the scores compare.

    Distractors are drawn without repetition from the documents that answer none of the queries
    asked, or from `pool`. In a corpus where every document answers something, half of the queries
    are asked, and the documents of the other half are drawn from.

    Args:
        task: queries, documents and answers to make it from.
        position: passages in front of the needle, 0 to `distractors`.
        distractors: passages around the needle; 39 in the paper.
        seed: of the choice of queries and distractors.
        max_queries: ask this many queries, drawn at random; None means all, or half as above.
        passage_characters: cut every passage, the needle too, to so many characters.
        pool: passages to draw from instead (the paper: random passages of Wikipedia).

    Raises:
        ValueError: a number is out of range, or there are fewer passages to draw from than
            distractors.
    """
    if not 0 <= position <= distractors:
        raise ValueError(f"position {position}: expected 0 to {distractors} (distractors)")
    _check_limit("max_queries", max_queries)
    _check_limit("passage_characters", passage_characters)
    asked = _choose_queries(task, distractors, seed, max_queries, pool)
    drawn_from = list(pool) if pool is not None else _unrelated(task, asked)
    if len(drawn_from) < distractors:
        raise ValueError(
            f"task {task.name}: {len(asked)} queries leave {len(drawn_from)} passages that answer "
            f"none of them, but {distractors} distractors are wanted; ask fewer (max_queries) or "
            "pass a pool"
        )
    haystacks = {}
    for needle in dict.fromkeys(pid for qid in asked for pid in task.qrels[qid]):
        # Seeded by the needle, not the position; a string seeds alike on every machine.
        passages = random.Random(f"{seed}:{needle}").sample(drawn_from, distractors)
        passages.insert(position, task.documents[needle])
        haystacks[needle] = SEPARATOR.join(text[:passage_characters] for text in passages)
    return RetrievalTask(
        name=f"{task.name}-needle-{position}",
        documents=haystacks,
        queries={qid: task.queries[qid] for qid in asked},
        qrels={qid: task.qrels[qid] for qid in asked},
        metadata={
            "made_from": task.name,
            "position": position,
            "distractors": distractors,
            "seed": seed,
            "passage_characters": passage_characters,
            "counts": {"queries": len(asked), "documents": len(haystacks)},
        },
    )


def _check_limit(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} {value}: expected at least 1, or None")


def _choose_queries(
    task: RetrievalTask,
    distractors: int,
    seed: int,
    max_queries: int | None,
    pool: Sequence[str] | None,
) -> list[str]:
    queries = list(task.queries)
    if max_queries is None and pool is None and len(_unrelated(task, queries)) < distractors:
        max_queries = max(1, len(queries) // 2)
    if max_queries is None or max_queries >= len(queries):
        return queries
    chosen = set(random.Random(seed).sample(queries, max_queries))
    return [qid for qid in queries if qid in chosen]


def _unrelated(task: RetrievalTask, asked: Sequence[str]) -> list[str]:
    answers = {pid for qid in asked for pid in task.qrels[qid]}
    return [text for pid, text in task.documents.items() if pid not in answers]
