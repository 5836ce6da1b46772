"""The tasks of LoCoV1 and LoCoV0 as data (Saad-Falcon et al. 2024, arXiv 2402.07440, Table 10)."""

from __future__ import annotations

from dataclasses import dataclass, replace

UNKNOWN = "unknown"

DOCUMENTS_DATASET = "hazyresearch/LoCoV1-Documents"
QUERIES_DATASET = "hazyresearch/LoCoV1-Queries"
DATASET_LICENCE = "Apache-2.0"
# The heads of main in stored pages of the Hub: the documents' tree/main names 3700f7d, whose full
# hash is in the address of a page of commits. They come after the de-duplication of qmsum.
REVISIONS = {
    DOCUMENTS_DATASET: "3700f7dbed22968bfc15003eb69b85bfa9998d77",
    QUERIES_DATASET: "8b55e17ef3ee008e38f9e0829612a11afb30cd67",
}

PAPER_URL = "https://arxiv.org/abs/2402.07440"
PAPER_BIBTEX = """@misc{saadfalcon2024benchmarking,
  author = {Saad-Falcon, Jon and Fu, Daniel Y. and Arora, Simran and Guha, Neel and
    R{\\'e}, Christopher},
  title = {Benchmarking and Building Long-Context Retrieval Models with LoCo and M2-BERT},
  year = {2024},
  eprint = {2402.07440},
  archiveprefix = {arXiv},
}"""


@dataclass(frozen=True)
class Counts:
    """Number of queries and documents of one side of a task."""

    queries: int
    documents: int


@dataclass(frozen=True)
class LocoTask:
    """What is published about one task; "unknown" or None where nothing is.

    Args:
        key: value of the column `dataset` in the Hub's files, and stem of their names.
        title: the task's name in tables.
        source: the collection the texts come from.
        source_url: its page.
        source_config: config of the source's dataset on the Hub; None where it is not one.
        domain: domain of the texts, as the paper names it.
        test, train: counts by the paper.
        hub_test: counts of the files on the Hub; None for a task that is not there.
        query_characters, document_characters: mean lengths by the paper.
        licence: licence of the source. The Hub's files themselves are under DATASET_LICENCE.
        citation: where the source is described.
        relevant: what is known about the number of relevant documents per query.
        construction: how queries and documents are made from the source.
    """

    key: str
    title: str
    source: str
    source_url: str
    source_config: str | None
    domain: str
    test: Counts
    train: Counts
    hub_test: Counts | None
    query_characters: int
    document_characters: int
    licence: str
    citation: str
    relevant: str
    construction: str

    def differences(self, split: str, counts: Counts) -> list[str]:
        """Sentences that say where `counts` are not the published ones; empty if they agree."""
        expected = {"paper": self.test if split == "test" else self.train}
        if split == "test" and self.hub_test:
            expected["Hub"] = self.hub_test
        return [
            f"{found} {part}, but {published} by the {where}"
            for part in ("queries", "documents")
            for where, published_counts in expected.items()
            if (found := getattr(counts, part)) != (published := getattr(published_counts, part))
        ]


_SCROLLS = {
    "source": "SCROLLS",
    "source_url": "https://huggingface.co/datasets/tau/scrolls",
    "licence": UNKNOWN,
    "relevant": "one: the text that the query summarises",
    "construction": "document = input, query = output (a summary); one row, one pair",
}
_QASPER = {
    "source": "QASPER",
    "source_url": "https://huggingface.co/datasets/allenai/qasper",
    "source_config": "qasper",
    "domain": "science",
    "test": Counts(416, 416),
    "train": Counts(888, 888),
    "hub_test": Counts(416, 416),
    "document_characters": 22315,
    "licence": "CC-BY-4.0",
    "citation": "Dasigi et al. 2021, arXiv 2105.03011",
    "relevant": "one: the paper of that title or abstract",
}
_LONGBENCH = {
    "source": "LongBench",
    "source_url": "https://huggingface.co/datasets/THUDM/LongBench",
    "domain": "general",
    "licence": UNKNOWN,
    "relevant": "one: the context that the question was asked about",
    "construction": "document = context, query = input; a random fifth of the rows is the test",
}
_COURTLISTENER = {
    "source": "CourtListener",
    "source_url": "https://www.courtlistener.com",
    "source_config": None,
    "domain": "law",
    "test": Counts(2000, 2000),
    "train": Counts(10000, 10000),
    "hub_test": Counts(2000, 2000),
    "query_characters": 146,
    "licence": UNKNOWN,
    "citation": UNKNOWN,
    "construction": UNKNOWN,
}

# In the order of the paper's tables. The Hub's counts per task follow from its totals (7.73k
# queries, 14.8k documents), which are the paper's but for the 35 meetings of qmsum.
LOCO_V1: tuple[LocoTask, ...] = (
    LocoTask(
        key="summ_screen_fd",
        title="SummScreenFD",
        source_config="summ_screen_fd",
        domain="screenwriting",
        test=Counts(338, 338),
        train=Counts(3673, 3673),
        hub_test=Counts(338, 338),
        query_characters=590,
        document_characters=30792,
        citation="Chen et al. 2022, arXiv 2104.07091; Shaham et al. 2022, arXiv 2201.03533",
        **_SCROLLS,
    ),
    LocoTask(
        key="gov_report",
        title="GovReport",
        source_config="gov_report",
        domain="government",
        test=Counts(972, 972),
        train=Counts(17457, 17457),
        hub_test=Counts(972, 972),
        query_characters=3871,
        document_characters=55280,
        citation="Huang et al. 2021, arXiv 2104.02112; Shaham et al. 2022, arXiv 2201.03533",
        **_SCROLLS,
    ),
    LocoTask(
        key="qmsum",
        title="QMSum",
        source_config="qmsum",
        domain="corporate meetings",
        test=Counts(272, 272),
        train=Counts(1257, 1257),
        hub_test=Counts(272, 35),
        query_characters=430,
        document_characters=58129,
        citation="Zhong et al. 2021, arXiv 2104.05938; Shaham et al. 2022, arXiv 2201.03533",
        **{
            **_SCROLLS,
            "relevant": "one: the meeting; several queries share a meeting",
            "construction": "document = meeting, query = output (an answer); whether upstream "
            "took the question off the meeting's transcript is unknown",
        },
    ),
    LocoTask(
        key="qasper_title",
        title="QASPER title",
        query_characters=71,
        construction="document = sections of the paper, query = its title",
        **_QASPER,
    ),
    LocoTask(
        key="qasper_abstract",
        title="QASPER abstract",
        query_characters=931,
        construction="document = sections of the paper, query = its abstract",
        **_QASPER,
    ),
    LocoTask(
        key="multifieldqa",
        title="MultiFieldQA",
        source_config="multifieldqa_en_e",
        test=Counts(30, 30),
        train=Counts(120, 120),
        hub_test=Counts(30, 30),
        query_characters=62,
        document_characters=29465,
        citation="Bai et al. 2023, arXiv 2308.14508",
        **_LONGBENCH,
    ),
    LocoTask(
        key="2wikimqa",
        title="2WikiMQA",
        source_config="2wikimqa_e",
        test=Counts(60, 60),
        train=Counts(240, 240),
        hub_test=Counts(60, 60),
        query_characters=69,
        document_characters=37867,
        citation="Ho et al. 2020, arXiv 2011.01060; Bai et al. 2023, arXiv 2308.14508",
        **_LONGBENCH,
    ),
    LocoTask(
        key="passage_retrieval",
        title="Passage Retrieval",
        source_config="passage_retrieval_en_e",
        test=Counts(60, 60),
        train=Counts(240, 240),
        hub_test=Counts(60, 60),
        query_characters=840,
        document_characters=35814,
        citation="Bai et al. 2023, arXiv 2308.14508",
        **_LONGBENCH,
    ),
    LocoTask(
        key="courtlistener_HTML",
        title="CourtListener HTML",
        document_characters=57028,
        relevant=UNKNOWN,
        **_COURTLISTENER,
    ),
    LocoTask(
        key="courtlistener_Plain_Text",
        title="CourtListener plain text",
        document_characters=48190,
        relevant="one (measured); 4.8 % of the queries are verbatim parts of the answer",
        **_COURTLISTENER,
    ),
    LocoTask(
        key="legal_case_reports",
        title="Legal Case Reports",
        source="Australian Legal Case Reports",
        source_url="https://doi.org/10.24432/C5ZS41",
        source_config=None,
        domain="law",
        test=Counts(770, 770),
        train=Counts(3094, 3094),
        hub_test=Counts(770, 770),
        query_characters=14986,
        document_characters=47536,
        licence=UNKNOWN,
        citation="UCI Machine Learning Repository, doi 10.24432/C5ZS41",
        relevant="one (measured)",
        construction=UNKNOWN,
    ),
    LocoTask(
        key="stackoverflow",
        title="StackOverflow",
        source="StackOverflow",
        source_url="https://stackoverflow.com",
        source_config=None,
        domain="programming",
        test=Counts(400, 7741),
        train=Counts(1599, 18005),
        hub_test=Counts(400, 7741),
        query_characters=758,
        document_characters=4544,
        licence=UNKNOWN,
        citation=UNKNOWN,
        relevant=UNKNOWN,
        construction=UNKNOWN,
    ),
)

# LoCoV0 is the first five, but its qmsum has one document per row: a meeting returns under
# several ids, of which only one counts as the answer. It is not among the Hub's files of LoCoV1.
LOCO_V0: tuple[LocoTask, ...] = tuple(
    replace(
        task,
        key="qmsum_v0",
        title="QMSum (V0)",
        hub_test=None,
        relevant="one, of several identical copies of the meeting",
        construction=_SCROLLS["construction"],
    )
    if task.key == "qmsum"
    else task
    for task in LOCO_V1[:5]
)

TASKS: dict[str, LocoTask] = {task.key: task for task in (*LOCO_V1, *LOCO_V0)}


def find_task(key: str) -> LocoTask:
    """The entry of a task.

    Raises:
        ValueError: there is no task of that key; the message lists those that there are.
    """
    if key not in TASKS:
        raise ValueError(f"unknown task {key!r}; expected one of {', '.join(TASKS)}")
    return TASKS[key]
