"""One layer of M2-BERT-80M on the CPU, composed of torch's operators and native, float32 and bf16.

    python -m benchmarks.layer

One document; contenders are timed in turns, the filters' spectra are cached on all sides. Each
native result must agree with the composed one before its time is shown.
"""

import copy
import statistics
import time

import torch
from m2_bert import M2BertModel, named_config
from torch import Tensor, nn

LENGTHS = {2048: "m2-bert-80m-2k", 8192: "m2-bert-80m-8k", 32768: "m2-bert-80m-32k"}
ROUNDS = 5
COMPOSED, NATIVE, BFLOAT16 = "composed", "native", "native bf16"
COSINE = 0.999  # least, of any token's state in bf16 against the composed float32


def contenders(name: str) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = M2BertModel(named_config(name, num_hidden_layers=1)).eval()
    return {
        COMPOSED: copy.deepcopy(model).set_backend("reference"),
        NATIVE: model,
        BFLOAT16: copy.deepcopy(model).to(torch.bfloat16),
    }


def timed(model: nn.Module, ids: Tensor) -> tuple[float, Tensor]:
    start = time.perf_counter()
    with torch.inference_mode():
        states = model(ids).last_hidden_state
    return time.perf_counter() - start, states.float()


def measure(length: int) -> dict[str, float]:
    """Median milliseconds of each contender."""
    models = contenders(LENGTHS[length])
    ids = torch.randint(1, 30000, (1, length), generator=torch.Generator().manual_seed(0))
    states = {name: timed(model, ids)[1] for name, model in models.items()}  # warm-up
    for name in (NATIVE, BFLOAT16):
        least = torch.cosine_similarity(states[name], states[COMPOSED], dim=-1).min().item()
        if not least >= COSINE:  # NaN is no agreement either
            raise RuntimeError(f"{name}, {length} tokens: cosine {least}, expected {COSINE}")
    times = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            times[name].append(timed(model, ids)[0])
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    print(f"{torch.get_num_threads()} threads; milliseconds a layer, one document")
    for length in LENGTHS:
        found = measure(length)
        shown = ", ".join(
            f"{name} {ms:.1f} ({found[COMPOSED] / ms:.2f}x)" for name, ms in found.items()
        )
        print(f"{length:>6} tokens: {shown}", flush=True)


if __name__ == "__main__":
    main()
