"""LlamaIndex's HuggingFaceEmbedding loads a saved folder by its path."""

from importlib.util import find_spec

import numpy as np
import pytest
from m2_bert.folder import load, save_folder

from tests.m2_bert.makers import small_model, text_of

# Not importorskip: a package that is there and does not import is a failure.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("llama_index") is None, reason="make test-integrations has it"),
]

TEXTS = [text_of(words, seed=words) for words in (3, 20, 70)]


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as they are"])
def test_embeddings_are_those_of_the_model(tmp_path, padding, normalize):
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    folder = save_folder(small_model(padding=padding), tmp_path / "model")
    embedding = HuggingFaceEmbedding(model_name=str(folder), device="cpu", normalize=normalize)
    want = load(folder, device="cpu").encode(TEXTS, normalize_embeddings=normalize)
    assert embedding.max_length == 64
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), want, atol=1e-5)
    np.testing.assert_allclose(embedding.get_query_embedding(TEXTS[0]), want[0], atol=1e-5)
