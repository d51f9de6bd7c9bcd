"""A base whose weights do not fill its architecture is refused by name: nothing trains over random numbers."""

import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitsandbytes import Bnb4bitQuantize

from tunestation.errors import InputError
from tunestation.training.model import load_base

SHAPE = {"vocab_size": 480, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
NF4 = {"type": "nf4", "double_quant": True}
UP, EMBED = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("quantise", [None, NF4])
@pytest.mark.parametrize("tied", [True, False])
def test_missing_weights_and_those_of_another_shape_are_all_named(tmp_path, quantise, tied):
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert ("lm_head.weight" in tensors) is not tied and load_base(tmp_path, quantise)
    del tensors[UP]
    save_file(tensors | {EMBED: torch.zeros(470, 64)}, path, metadata={"format": "pt"})
    with pytest.raises(InputError) as refused:
        load_base(tmp_path, quantise)
    told = [problem.what for problem in refused.value.problems]
    assert told == [f"lacks weights: {UP}.", f"has weights of another shape than config.json says: {EMBED} [470, 64] instead of [480, 64]."]


def test_a_4_bit_base_is_quantised_weight_by_weight_on_arrival(tmp_path, monkeypatch):
    LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_hidden_layers": 3})).save_pretrained(tmp_path)
    seen, together, convert = [], [], Bnb4bitQuantize.convert

    def counted(self, input_dict, *args, **options):
        seen.extend(weakref.ref(value) for values in input_dict.values() for value in values)
        together.append(sum(value() is not None for value in seen))
        return convert(self, input_dict, *args, **options)

    monkeypatch.setattr(Bnb4bitQuantize, "convert", counted)
    load_base(tmp_path, NF4)
    assert (len(together), max(together)) == (3 * 7, 1)
