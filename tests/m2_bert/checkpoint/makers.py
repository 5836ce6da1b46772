"""A small model's tensors under every published naming."""

import torch
from m2_bert import M2BertConfig, M2BertForEmbedding

LENGTH = 24
WORDS = "bert.embeddings.word_embeddings.weight"
FIRST = "bert.encoder.layer.0."
FILTER = f"{FIRST}attention.filter_fn."
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": LENGTH,
    "hyena_filter_order": 8,
    "initializer_range": 0.3,  # at 0.02 a model this narrow hardly mixes
}
State = dict[str, torch.Tensor]


def made_model(kind=M2BertForEmbedding, **overrides):
    torch.manual_seed(0)
    return kind(M2BertConfig(**{**SIZES, **overrides})).eval()


@torch.inference_mode()
def output_of(model, length: int = LENGTH) -> torch.Tensor:
    ids = torch.randint(1, 40, (2, length), generator=torch.Generator().manual_seed(1))
    output = model.set_backend("reference")(ids)
    return output.sentence_embedding if "sentence_embedding" in output else output.logits


def assert_same(found, source) -> None:
    assert not found.training
    torch.testing.assert_close(output_of(found), output_of(source), rtol=0, atol=0)
    assert output_of(source).std() > 1e-3, "outputs that hardly vary compare nothing"


def distinct(state: State) -> State:
    """Tensors as safetensors wants them: the first name of each shared one."""
    seen: dict[int, str] = {}
    return {n: x for n, x in state.items() if seen.setdefault(x.data_ptr(), n) == n}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": x for name, x in state.items()}


def with_flashfft(state: State) -> State:
    """With the buffers that FlashFFTConv leaves, in every place it leaves them."""
    places = ["bert.encoder"]
    places += [f"bert.encoder.layer.{i}.attention.filter_fn{n}" for i in (0, 1) for n in ("", "2")]
    names = ("f_sqrt_N_fft", "twiddle_factors_fft_16_16")
    return state | {
        f"{place}.flashfft.{name}": torch.full((16, 16, 2), 7.0, dtype=torch.bfloat16)
        for place in places
        for name in names
    }


def without(state: State, *endings: str) -> State:
    return {name: x for name, x in state.items() if not name.endswith(endings)}
