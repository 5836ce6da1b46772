"""Models whose weights the tests save in every way."""

import pytest
from m2_bert import M2BertForEmbedding, M2BertForMaskedLM

from tests.m2_bert.checkpoint.makers import made_model


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Idle threads of small matrices wait for one another on a shared machine."""


@pytest.fixture
def model() -> M2BertForEmbedding:
    return made_model()


@pytest.fixture
def masked() -> M2BertForMaskedLM:
    return made_model(M2BertForMaskedLM)
