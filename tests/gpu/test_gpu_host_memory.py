"""What waits in host memory on a real GPU: the same loss and gradients as with everything there, and less memory."""

import gc
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))

from test_fast_step import SHAPE, adapted, documents, learned
from test_gpu_fast_step import batch_on_gpu, errors

from tunestation.training import memory
from tunestation.training.fast.model import Fast

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
LAYERS = 7


def steps(base, waits):
    """Three micro-batches, and the most memory that the last one took."""
    gc.collect()  # a model and its fast step refer to each other: the one before would be counted as well
    model = adapted(base, dropout=0.2).cuda().train()
    Fast.over(model).keep(memory.Choice(LAYERS, 0, 0, 0, 4 * SHAPE["vocab_size"] * 16, waits))
    torch.manual_seed(5)
    found = []
    for lengths in ((7, 19, 30, 30), (40,), (900, 1100)):
        torch.cuda.reset_peak_memory_stats()
        loss, gradients = learned(model, batch_on_gpu(documents(lengths)))
        found.append((loss, {name: gradient.cpu() for name, gradient in gradients.items()}))  # else the next model's peak holds them
    return found, torch.cuda.max_memory_allocated()


@pytest.mark.parametrize(
    "waits", [memory.Host(True), memory.Host(inputs=True), memory.Host(weights=4), memory.Host(True, True, LAYERS)], ids=str
)
@pytest.mark.parametrize("base", ["bfloat16", "nf4"])
def test_what_waits_in_host_memory_changes_no_bit_of_the_loss_and_hardly_a_gradient(base, waits, monkeypatch):
    monkeypatch.setitem(SHAPE, "num_hidden_layers", LAYERS)
    monkeypatch.setitem(SHAPE, "max_position_embeddings", 2048)
    before, most = steps(base, memory.Host())
    after, less = steps(base, waits)
    for one, other in zip(before, after, strict=True):
        assert one[0] == other[0]
        assert max(errors(one, other).values()) < 2e-2
    assert less < most
