"""The README.md of a saved model: what it computes, from how long a text, and how it is used."""

from m2_bert.config import M2BertConfig

# Encoding takes about 90 * D bytes per token in float32 (measured): 2.3 GB at D = 768.
_BATCH_TOKENS = 1 << 15

_PADDING = {
    "max_length": """\
Padding is part of the input: every text is padded with [PAD] to {length} tokens, as the weights
were trained. Fewer [PAD] tokens give another embedding, and a short text costs as much as a long
one. The files of this folder set it; a tokenizer called by hand must do the same.""",
    "invariant": """\
Padding is masked: a text has the same embedding alone and in a batch, whatever it is padded to.
Pass the attention mask to the model whenever texts are padded.""",
}

_CARD = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
- m2_bert
- long-context
---

# M2-BERT, {length} tokens

An M2-BERT text encoder (Fu et al. 2023, arXiv 2310.12109; Saad-Falcon et al. 2024, arXiv
2402.07440): {parameters:,} parameters, {layers} layers, width {width}.

| | |
|---|---|
| base | {base} |
| longest text | {length} tokens, with [CLS] and [SEP] |
| embedding | {width} numbers: {embedding}; compared by cosine |
| padding policy | `{padding}` |
| prompts | none: queries and documents are encoded alike |
| tokenizer | uncased BERT WordPiece, in this folder |

{policy}

## Use

```
pip install monarch-kernels[st]
```

With sentence-transformers:

```python
import m2_bert  # makes the architecture known
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/of/this/folder")
embeddings = model.encode(["a text", "another text"], batch_size={batch})
```

Texts of more than {length} tokens are cut without a word by sentence-transformers, and its default
of 32 texts at a time needs much memory for long ones. `m2_bert.Embedder` reports what is cut, and
makes batches by tokens:

```python
from m2_bert import Embedder

embeddings = Embedder("path/of/this/folder").encode(["a text", "another text"])
```

With transformers:

```python
from m2_bert import M2BertForEmbedding
from transformers import AutoTokenizer

model = M2BertForEmbedding.from_pretrained("path/of/this/folder").eval()
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
batch = tokenizer(["a text"], padding={call_padding}, truncation=True, return_tensors="pt")
embeddings = model(**batch).sentence_embedding
```
"""


def model_card(config: M2BertConfig, parameters: int, base: str | None = None) -> str:
    """Return the model card, in Markdown with the metadata block of the Hugging Face Hub."""
    length = config.max_position_embeddings
    invariant = config.padding == "invariant"
    states = "the mean of the tokens' states" if config.pool_all else "the state of [CLS]"
    embedding = "the state of [CLS]" if config.use_cls_token else f"tanh(W h + b), h {states}"
    if config.use_normalized_embeddings:
        embedding += ", of unit length"
    return _CARD.format(
        length=length,
        parameters=parameters,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        base=f"`{base}`" if base else "not recorded",
        embedding=embedding,
        padding=config.padding,
        policy=_PADDING[config.padding].format(length=length),
        batch=max(1, min(32, _BATCH_TOKENS // length)),
        call_padding="True" if invariant else '"max_length"',
    )
