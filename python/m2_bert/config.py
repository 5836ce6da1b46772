"""Sizes and switches of M2-BERT, under the field names that published checkpoints use."""

from typing import Any

from transformers import PreTrainedConfig

# Widths and lengths of the published models: Fu et al. 2023 (arXiv 2310.12109) for length 128,
# Saad-Falcon et al. 2024 (arXiv 2402.07440) for the long 80M family.
CONFIGS: dict[str, dict[str, int]] = {
    "m2-bert-80m-128": {"hidden_size": 768, "max_position_embeddings": 128},
    "m2-bert-80m-2k": {"hidden_size": 768, "max_position_embeddings": 2048},
    "m2-bert-80m-8k": {"hidden_size": 768, "max_position_embeddings": 8192},
    "m2-bert-80m-32k": {"hidden_size": 768, "max_position_embeddings": 32768},
    "m2-bert-110m": {"hidden_size": 960, "max_position_embeddings": 128},
    "m2-bert-260m": {"hidden_size": 1536, "max_position_embeddings": 128},
    "m2-bert-341m": {"hidden_size": 1792, "max_position_embeddings": 128},
}


class M2BertConfig(PreTrainedConfig):
    """Configuration of an M2-BERT encoder.

    The defaults are those of the published 80M models at length 128. (The defaults of the original
    config class differ: filter order 64, no Monarch MLP, no positional encodings.)

    Args:
        vocab_size: rows of the word embedding: 30522 WordPiece entries, rounded up to 8s.
        hidden_size: model width D.
        intermediate_size: MLP width I; None means 4 * hidden_size.
        max_position_embeddings: longest input L, in tokens.
        long_conv_l_max: length of the filters; None means max_position_embeddings.
        monarch_mlp_nblocks: number P of diagonal blocks in the MLP matrices.
        hyena_filter_order: width O of the sine network that generates the filters.
        hyena_emb_dim: positional features per tap (odd): time, then sine/cosine pairs.
        hyena_w: initial frequency of the sine activations. hyena_w_mod: a fixed factor on it.
        bidirectional: two-sided filters; otherwise causal.
        residual_long_conv: a second long convolution of the mixer's input, added to its output.
        hyena_training_additions: LayerNorm in front of the mixer; True only in the first released
            80M model of length 128 (danfu09/m2-bert-80M).
        use_glu_mlp: gated MLP; otherwise one GELU layer. use_monarch_mlp: block-diagonal matrices.
        pool_all: pool the mean over the attention mask instead of the first token.
        use_cls_token, use_normalized_embeddings: read by M2BertForEmbedding.
        padding: "max_length": padding is part of the input, as in every released model, and a text
            has its embedding only when padded to max_position_embeddings. "invariant": the mixers
            are masked, and neither padding nor the other texts of a batch change an embedding; for
            models trained so.
        num_attention_heads: inert; M2-BERT has no attention, but tools read the field.

    Raises:
        ValueError: naming the field, what it holds and what it may hold.
    """

    model_type = "m2_bert"

    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    type_vocab_size: int = 2
    max_position_embeddings: int = 128
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True

    use_positional_encodings: bool = True
    monarch_mixer_sequence_mixing: bool = True
    bidirectional: bool = True
    residual_long_conv: bool = True
    hyena_training_additions: bool = False
    long_conv_l_max: int | None = None
    hyena_filter_order: int = 128
    hyena_emb_dim: int = 5
    hyena_w: float = 10.0
    hyena_w_mod: float = 1.0

    use_glu_mlp: bool = True
    use_monarch_mlp: bool = True
    monarch_mlp_nblocks: int = 4

    pool_all: bool = False
    use_cls_token: bool = False
    use_normalized_embeddings: bool = False
    sequence_token_planting: bool = False
    attention_pooling: bool = False

    padding: str = "max_length"

    def __init__(self, **kwargs: Any) -> None:
        # Written out because transformers 5.3 does not make configurations dataclasses.
        defaults = {field: getattr(M2BertConfig, field) for field in M2BertConfig.__annotations__}
        own = {field: kwargs.pop(field, default) for field, default in defaults.items()}
        super().__init__(**kwargs)
        for field, value in own.items():
            setattr(self, field, value)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.long_conv_l_max is None:
            self.long_conv_l_max = self.max_position_embeddings
        self._check()

    def _check(self) -> None:
        for field in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "intermediate_size",
            "type_vocab_size",
            "hyena_filter_order",
            "monarch_mlp_nblocks",
        ):
            value = getattr(self, field)
            _require(type(value) is int and value > 0, field, value, "a positive integer")

        length = self.max_position_embeddings
        # Filter time runs from 0 to 1 over the taps, so a single tap has no scale.
        _require(
            type(length) is int and length >= 2,
            "max_position_embeddings",
            length,
            "an integer >= 2",
        )
        _require(
            type(self.long_conv_l_max) is int and self.long_conv_l_max >= length,
            "long_conv_l_max",
            self.long_conv_l_max,
            f"an integer >= max_position_embeddings={length}",
        )
        odd = type(self.hyena_emb_dim) is int and self.hyena_emb_dim >= 3 and self.hyena_emb_dim % 2
        _require(odd, "hyena_emb_dim", self.hyena_emb_dim, "an odd integer >= 3")
        dropout = self.hidden_dropout_prob
        _require(0.0 <= dropout < 1.0, "hidden_dropout_prob", dropout, "a number in [0, 1)")
        pad = self.pad_token_id
        _require(
            pad is None or 0 <= pad < self.vocab_size,
            "pad_token_id",
            pad,
            f"None or an integer in [0, vocab_size={self.vocab_size})",
        )
        _require(self.hidden_act == "gelu", "hidden_act", self.hidden_act, "'gelu'")

        policies = ("max_length", "invariant")
        _require(
            self.padding in policies, "padding", self.padding, " or ".join(map(repr, policies))
        )

        # Without the mixer a checkpoint is an attention BERT; the two pooling experiments of the
        # original code were never released. Ignoring any of them would load a different model.
        mixing = self.monarch_mixer_sequence_mixing
        _require(mixing is True, "monarch_mixer_sequence_mixing", mixing, "True")
        for field in ("sequence_token_planting", "attention_pooling"):
            value = getattr(self, field)
            _require(not value, field, value, "False (not supported)")


def named_config(name: str, **overrides: Any) -> M2BertConfig:
    """Return the configuration of a published model, with any field overridden.

    Raises:
        ValueError: if `name` is not a key of `CONFIGS`.
    """
    if name not in CONFIGS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(CONFIGS)}")
    return M2BertConfig(**{**CONFIGS[name], **overrides})


def _require(holds: Any, field: str, got: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field}: got {got!r}, expected {expected}")
