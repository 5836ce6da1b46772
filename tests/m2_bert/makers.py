"""Small models and texts that the tests of m2_bert share."""

import torch
from m2_bert import M2BertConfig, M2BertForEmbedding

# fmt: off
WORDS = [
    "river", "stone", "lantern", "engine", "harbor", "violin", "meadow", "copper", "winter",
    "signal", "garden", "marble", "falcon", "desert", "anchor", "silver", "basket", "thunder",
    "window", "bridge", "candle", "forest", "rocket",
]
# fmt: on


def small_config(**overrides) -> M2BertConfig:
    """A config of the whole vocabulary, narrow enough for milliseconds."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "hyena_filter_order": 16,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.3,  # at 0.02 a model this narrow hardly mixes
    }
    return M2BertConfig(**{**sizes, **overrides})


def small_model(seed: int = 0, **overrides) -> M2BertForEmbedding:
    """A random embedding model, in evaluation mode; the same for the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return M2BertForEmbedding(small_config(**overrides)).eval()


def text_of(words: int, seed: int = 0) -> str:
    """That many pseudo-random words, each one token of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (words,), generator=generator).tolist()
    return " ".join(WORDS[pick] for pick in picks)
