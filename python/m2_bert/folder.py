"""A model as a folder that transformers and sentence-transformers load alike.

    config.json, model.safetensors          AutoModel, M2BertForEmbedding
    tokenizer.json, tokenizer_config.json   AutoTokenizer: the uncased vocabulary
    modules.json, *sentence*.json           SentenceTransformer: its own module classes alone
    1_Pooling/ or 1_Normalize/, 2_...       where the configuration asks for them
    README.md                               the model card

All read the pooler from model.safetensors: the Transformer module is told to hand out the encoder's
pooler_output. A Pooling and a Dense module, the usual way, would hold a second copy of it, and
training in sentence-transformers would leave the first one, which transformers loads, behind.
The price: `output_value="token_embeddings"` is not to be had (Embedder.encode_spans pools tokens;
a new module, Transformer(path), hands them out), nor a conversion to MultiVectorEncoder.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from m2_bert.checkpoint import is_random, load_model
from m2_bert.config import M2BertConfig
from m2_bert.containers import CheckpointError, printable
from m2_bert.hub import locate
from m2_bert.model import M2BertForEmbedding, M2BertModel
from m2_bert.model_card import model_card
from m2_bert.placement import available_device
from m2_bert.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
_NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"

# What this module and sentence-transformers write; a folder with anything else in it is not
# replaced without being asked to.
_NAMES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling",
    "1_Normalize",
    "2_Normalize",
}


def save_folder(
    model: M2BertForEmbedding,
    path: str | os.PathLike,
    *,
    overwrite: bool = False,
    base: str | None = None,
) -> Path:
    """Write the model, its tokenizer and its model card; return the folder's absolute path.

    The folder appears complete or not at all. Needs no sentence-transformers.

    Args:
        path: a new or empty folder, or one that this function or sentence-transformers wrote.
        overwrite: replace any other folder too, with all that is in it.
        base: where the weights came from, for the model card.

    Raises:
        TypeError: the model is no M2BertForEmbedding.
        ValueError: its word embedding is smaller than the vocabulary.
        FileExistsError: `path` is a file, or a folder with other content.
        OSError: nothing can be written there.
    """
    if not isinstance(model, M2BertForEmbedding):
        raise TypeError(f"model: got {type(model).__name__}, expected M2BertForEmbedding")
    tokenizer = load_tokenizer(model.config.max_position_embeddings)
    _check_vocabulary(model.config, len(tokenizer))
    path = Path(path).resolve()
    _check_replaceable(path, overwrite)
    with _scratch_beside(path) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        with _quiet():
            model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        for name, content in _sentence_transformers_files(model.config).items():
            new.joinpath(name).parent.mkdir(exist_ok=True)
            new.joinpath(name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        card = model_card(model.config, model.num_parameters(), base)
        new.joinpath("README.md").write_text(card, encoding="utf-8")
        _move_into_place(new, path, Path(scratch, "old"))
    return path


def load(
    name_or_path: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> "SentenceTransformer":
    """Load any M2-BERT checkpoint as a SentenceTransformer, of stock modules.

    `encode`, `encode_query` and `encode_document` are the same function: M2-BERT has no prompts.
    sentence-transformers cuts longer texts without a word (`Embedder` reports them) and takes 32
    texts at a time unless told otherwise: for long texts pass `batch_size` (the model card names
    one). Setting `max_seq_length` has no effect on a model whose padding is "max_length".

    Args:
        name_or_path: what `checkpoint.load_model` reads: a folder, a file, a Hub id or
            "random:small". A folder or Hub id in the layout of sentence-transformers keeps all its
            modules, prompts and lengths; weights are checked as there, and the tokenizer is always
            the uncased one of this package.
        device: None lets sentence-transformers choose.
        dtype: None means float32.

    Raises:
        ImportError: sentence-transformers is not installed.
        CheckpointError: what was found is not an M2-BERT checkpoint, or damaged.
        FileNotFoundError: nothing was found.
        ValueError: the device is not there.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"m2_bert.load needs sentence-transformers >= 6 ({error}): "
            "pip install monarch-kernels[st]"
        ) from error
    name = os.fspath(name_or_path)
    options: dict[str, Any] = {
        "device": None if device is None else str(available_device(device)),
        "model_kwargs": {"dtype": dtype or torch.float32},
    }
    folder, base = None, name
    if not is_random(name):
        folder, source = locate(name, revision)
        if source == str(folder):
            name, base = source, folder.name  # a card may be published: no paths in it
        else:
            revision = folder.name  # one commit of the repository throughout
    # The weights are checked here even where sentence-transformers reads the folder again: it
    # would draw what is missing at random.
    model = load_model(name, revision=revision, dtype=dtype)
    if folder is not None and _is_sentence_transformers(folder):
        return _load_modules(name, model, revision=revision, **options)
    # Transformer, the module, is made from files alone.
    with tempfile.TemporaryDirectory(prefix="m2-bert-") as scratch, _quiet():
        folder = save_folder(model, Path(scratch, "model"), base=base)
        loaded = SentenceTransformer(str(folder), **options)
    loaded.transformers_model.config._name_or_path = name
    return loaded


def _load_modules(name: str, model: M2BertForEmbedding, **options: Any) -> "SentenceTransformer":
    """The modules and prompts of a folder or repository, with checked weights and tokenizer."""
    from sentence_transformers import SentenceTransformer

    _check_vocabulary(model.config, len(load_tokenizer()))
    try:
        with _quiet():
            loaded = SentenceTransformer(name, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of several libraries, and of several lines
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise CheckpointError(
            f"{name}: sentence-transformers cannot load it ({reason}): load_model reads its "
            "weights, and save_folder writes a new folder"
        ) from error
    encoder = loaded[0]
    if not isinstance(getattr(encoder, "model", None), M2BertModel):
        kind = type(encoder).__name__
        raise CheckpointError(f"{name}: the first module is {kind}, expected an M2-BERT encoder")
    encoder.model.load_state_dict(model.bert.state_dict())
    # Lengths and padding are the folder's; the vocabulary beside some M2-BERT weights is cased.
    encoder.processor = load_tokenizer(encoder.max_seq_length)
    return loaded


def _is_sentence_transformers(folder: Path) -> bool:
    """Whether it is an M2-BERT model in that layout; other folders' modules are not kept."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = isinstance(config, dict) and config.get("model_type") == M2BertConfig.model_type
    return ours and (folder / "modules.json").is_file()


def _sentence_transformers_files(config: M2BertConfig) -> dict[str, Any]:
    """Relative path -> content of each JSON file that SentenceTransformer reads."""
    # Without types the model broadcasts one row instead of looking up (B, L, D).
    text: dict[str, Any] = {"return_token_type_ids": False}
    if config.padding == "max_length":
        length = config.max_position_embeddings
        text |= {"padding": "max_length", "max_length": length, "truncation": True}
    state = "last_hidden_state" if config.use_cls_token else "pooler_output"
    # With the states of all tokens, or with no more than the pooler's input takes.
    method = "forward" if config.use_cls_token else "embed"
    output = "token_embeddings" if config.use_cls_token else "sentence_embedding"
    modules = [("", _TRANSFORMER)]
    files: dict[str, Any] = {
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": method, "method_output_name": state}},
            "module_output_name": output,
            "processing_kwargs": {"text": text},
        },
    }
    if config.use_cls_token:
        modules.append(("1_Pooling", _POOLING))
        files["1_Pooling/config.json"] = {
            "embedding_dimension": config.hidden_size,
            "pooling_mode": "cls",
            "include_prompt": True,
        }
    if config.use_normalized_embeddings:
        folder = f"{len(modules)}_Normalize"
        modules.append((folder, _NORMALIZE))
        files[f"{folder}/config.json"] = {
            "module_input_name": "sentence_embedding",
            "module_output_name": "sentence_embedding",
        }
    files["modules.json"] = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(modules)
    ]
    return files


def _check_vocabulary(config: M2BertConfig, expected: int) -> None:
    if config.vocab_size < expected:
        raise ValueError(
            f"vocab_size: got {config.vocab_size}, expected at least {expected}, "
            "the size of the uncased BERT vocabulary"
        )


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(
            f"{printable(str(path))} is a file; expected a folder, or nothing, at that path"
        )
    if overwrite or not path.exists():
        return
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _NAMES)
    if foreign:
        raise FileExistsError(
            f"{printable(str(path))} contains {foreign[0]!r}, which is not part of a saved model: "
            "choose another folder; `overwrite` (--overwrite) deletes everything in this one"
        )


@contextlib.contextmanager
def _scratch_beside(path: Path) -> Iterator[str]:
    """A temporary folder on the same disk as `path`; errors name `path` itself."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        problem = f"no folder can be made in {path.parent} ({error.strerror}), choose another place"
        raise OSError(error.errno, problem, str(path)) from error
    with scratch as name:
        yield name


def _move_into_place(new: Path, path: Path, old: Path) -> None:
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers prints about files of weights: a progress bar and a report."""
    enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()
