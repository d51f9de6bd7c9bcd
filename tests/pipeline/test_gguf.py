"""The GGUF file that a merge writes, read by llama.cpp itself."""

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_tiny_model
from transformers import AutoTokenizer

from tunestation.export.gguf_file import write

PROMPTS = ["What is 1 and 1?", "你叫什么名字？", "How many legs does a spider have?", "Write one  sentence,\n\nas you like: 12345."]


@pytest.fixture(scope="module")
def llama():
    """llama.cpp's Python package; without it the tests that need it are named as skipped."""
    return pytest.importorskip("xllamacpp", reason="llama.cpp's Python package xllamacpp is not installed")


def serve(llama, path):
    """llama.cpp with the model of `path`."""
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity, params.port = str(path), 512, 1, False, -1, 0
    params.cpuparams.n_threads = 1
    return llama.Server(params)


def ids_of(tokenizer, text):
    talk = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)


def test_q8_0_keeps_every_weight_to_half_a_step_of_its_block_and_llama_cpp_reads_it(station, llama):
    folder = station.make("merge", "export.gguf=q8_0")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "tiny-q8_0.gguf").tensors}
    weights = load_file(folder / "model.safetensors")
    names = {"model.embed_tokens": "token_embd", "model.layers.1.mlp.down_proj": "blk.1.ffn_down", "lm_head": "output"}
    for own, theirs in names.items():
        tensor, weight = stored[f"{theirs}.weight"], weights[f"{own}.weight"].float()
        assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
        found = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).view(-1, 32)
        blocks = weight.view(-1, 32)
        assert ((found - blocks).abs() <= blocks.abs().amax(1, keepdim=True) * (0.5 / 127 + 1e-3)).all()
    answer = serve(llama, folder / "tiny-q8_0.gguf").handle_completions({"prompt": "1 and 1", "n_predict": 3, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 3


def test_llama_cpp_makes_the_same_number_of_tokens_of_every_chat(station, llama):
    folder = station.make("merge", "export.gguf=f16")
    tokenizer, server = AutoTokenizer.from_pretrained(folder), serve(llama, folder / "tiny-f16.gguf")
    for text in PROMPTS:
        answer = server.handle_chat_completions({"messages": [{"role": "user", "content": text}], "max_tokens": 1})
        assert answer["usage"]["prompt_tokens"] == len(ids_of(tokenizer, text)), text


def test_frequencies_beside_the_weights_of_old_files_are_left_out(tmp_path, llama):
    folder = make_tiny_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors") | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write(folder, tmp_path / "old.gguf", "f16", "old")
    answer = serve(llama, tmp_path / "old.gguf").handle_completions({"prompt": "1 and 1", "n_predict": 3, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 3
