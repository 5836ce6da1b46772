"""LangChain's HuggingFaceEmbeddings loads a saved folder by its path."""

from importlib.util import find_spec

import numpy as np
import pytest
from m2_bert.folder import load, save_folder

from tests.m2_bert.makers import small_model, text_of

# Not importorskip: a package that is there and does not import is a failure.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        find_spec("langchain_huggingface") is None, reason="make test-integrations has it"
    ),
]

TEXTS = [text_of(words, seed=words) for words in (3, 20, 70)]


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_embeddings_are_those_of_the_model(tmp_path, padding):
    from langchain_huggingface import HuggingFaceEmbeddings

    folder = save_folder(small_model(padding=padding), tmp_path / "model")
    embeddings = HuggingFaceEmbeddings(
        model_name=str(folder), model_kwargs={"device": "cpu"}, encode_kwargs={"batch_size": 2}
    )
    want = load(folder, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), want, atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), want[0], atol=1e-5)
