"""An adapter made for a family's own layout adds the same to the converted model."""

import pytest
import torch
from original_families import Original, internlm2
from original_packed import baichuan, chatglm, qwen
from test_native import SHORT, write

import tunestation.models.alibi  # noqa: F401  makes the Auto classes know Baichuan-13B
from tunestation.errors import InputError
from tunestation.models.native.convert import convert
from tunestation.models.native.lora import carry_over
from tunestation.models.native.registry import family_of

RANK = 3


def adapter(original: Original) -> dict[str, torch.Tensor]:
    """lora_A and lora_B for every module of the original that its users adapt, as peft names them."""
    g, found = torch.Generator().manual_seed(9), {}
    for name, weight in original.tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module.rpartition(".")[2] in original.adapted:
            found[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=g) * 0.2
            found[f"base_model.model.{module}.lora_B.weight"] = torch.randn(weight.shape[0], RANK, generator=g) * 0.2
    return found


def adapted(tensors: dict[str, torch.Tensor], lora: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """W + B A, for each module that has both."""
    changed = dict(tensors)
    for name in lora:
        if ".lora_A." in name:
            weight = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            assert weight in tensors
            changed[weight] = tensors[weight] + lora[name.replace("lora_A", "lora_B")] @ lora[name]
    return changed


@pytest.mark.parametrize(
    "original", [internlm2(), internlm2(biased=True), baichuan(), baichuan(alibi=True), chatglm(), qwen()], ids=lambda o: o.name
)
@torch.no_grad()
def test_a_carried_adapter_gives_the_logits_of_the_original_one(tmp_path, original):
    from transformers import AutoModelForCausalLM

    convert(write(original, tmp_path / "source"), tmp_path / "result", {}, "tiny")
    carried = carry_over(adapter(original), family_of(original.config), original.config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "result", dtype=torch.float32)
    model.load_state_dict(adapted(model.state_dict(), carried.tensors))
    wanted = original.logits(original.config, adapted(original.tensors, adapter(original)), SHORT)
    assert (model(torch.tensor([SHORT])).logits[0].double() - wanted).abs().max() <= 5e-5
    assert set(carried.target_modules) == {name.split(".lora_")[0].rpartition(".")[2] for name in carried.tensors}


def test_query_key_and_value_share_one_lora_a():
    original = internlm2()
    lora = {name: tensor for name, tensor in adapter(original).items() if "layers.0.attention.wqkv" in name}
    carried = carry_over(lora, family_of(original.config), original.config)
    assert carried.target_modules == ("k_proj", "q_proj", "v_proj")
    first = [tensor for name, tensor in carried.tensors.items() if "lora_A" in name]
    assert len(first) == 3 and all(torch.equal(tensor, first[0]) for tensor in first)
    rows = sum(len(tensor) for name, tensor in carried.tensors.items() if "lora_B" in name)
    assert rows == len(lora["base_model.model.model.layers.0.attention.wqkv.lora_B.weight"])


@pytest.mark.parametrize("name", ["base_model.model.model.layers.0.attention.query.lora_A.weight", "model.layers.0.attention.wqkv.weight"])
def test_tensors_of_no_known_module_are_refused_by_name(name):
    original = internlm2()
    with pytest.raises(InputError, match=f"first {name}"):
        carry_over({name: torch.zeros(2, 2)}, family_of(original.config), original.config)


def test_an_adapter_of_a_head_that_was_folded_is_refused():
    original = baichuan(second=True)
    with pytest.raises(InputError, match=r"first base_model\.model\.lm_head\.lora_A\.weight"):
        carry_over({"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 32)}, family_of(original.config), original.config)
