"""What waits in host memory on a real GPU: the same loss and gradients as with everything there, and less memory."""

import gc
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))

from test_fast_step import SHAPE, adapted, documents, learned
from test_gpu_fast_step import batch_on_gpu, errors
from test_waiting_from_the_start import NF4, four_bit
from transformers import LlamaConfig, LlamaForCausalLM
from unwaited import nothing_waits

from tunestation.training import memory
from tunestation.training import model as models
from tunestation.training.fast import host
from tunestation.training.fast.host import HostEmbedding
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


def test_loading_a_model_that_waits_takes_no_more_than_what_stays_and_one_matrix(tmp_path):
    shape = {"vocab_size": 64_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(**shape, dtype=torch.bfloat16)).bfloat16().save_pretrained(tmp_path)
    wanted = {
        name: [part.tensor.cpu() for part in host.tensors(weight)] for name, weight in four_bit(models.load_base(tmp_path, NF4)).items()
    }
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = models.load_base(tmp_path, NF4, host=memory.Host(True, True, 12))
    loading = torch.cuda.max_memory_allocated() - before
    matrix, spare = 1024 * 2816, 2 * 2**20
    assert loading < (2 + 0.5 + 0.1) * matrix + spare  # all layers wait: 16-bit, 4-bit, scales
    found = {name: [part.tensor for part in host.tensors(weight)] for name, weight in four_bit(model).items()}
    assert all(not one.is_cuda and torch.equal(one, other) for name in wanted for one, other in zip(found[name], wanted[name], strict=True))
    lora = {"rank": 8, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
    Fast.over(models.add_adapters(model, lora, "base"), memory.Host(True, True, 12), models.device())
    model.to(models.device())  # as DeepSpeed does
    layer = sum(tensor.nbytes for name, parts in wanted.items() if ".layers.0." in name for tensor in parts)
    head, adapters = 2 * 64_000 * 1024, 4 * models.trainable(model)
    assert torch.cuda.max_memory_allocated() - before < head + adapters + 2 * layer + spare
    assert model.model.embed_tokens.weight.is_pinned()


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_rows_of_an_embedding_come_without_waiting_for_the_gpu(family):
    """Gemma's are scaled."""
    embedding = adapted("bfloat16", family).get_base_model().model.embed_tokens
    waiting, ids = HostEmbedding(embedding, torch.device("cuda")), torch.randint(30, (1, 50))
    with nothing_waits():
        found = waiting.gather(ids, torch.device("cuda"))
    assert torch.equal(found.cpu(), embedding(ids))
