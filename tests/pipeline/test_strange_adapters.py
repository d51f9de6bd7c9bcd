"""Adapters of other programs, cut, or edited by hand: each is refused in words, before a merge or a training begins with it."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_export_merging import ALL, FIRST, KINDS, edited, load, logits, make_adapter, make_base, merge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tunestation.errors import InputError, TunestationError
from tunestation.export.adapter import Adapter
from tunestation.export.proof import Difference, Proof, judge
from tunestation.export.streamed import stored, streamed
from tunestation.models.folder import early_problems
from tunestation.models.native.registry import UNMERGED
from tunestation.models.shards import Shards
from tunestation.stages.merge import _complete
from tunestation.training.given import refuse_misfit


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("strange") / "base")


@pytest.fixture(scope="module")
def adapters(base):
    """Name -> an adapter of the base."""
    kinds = {name: KINDS[name] for name in ("LoRA", "DoRA", "trained tokens", "a head saved whole")}
    return {name: make_adapter(base, base.parent / name, **options) for name, options in kinds.items()}


CONFIGS = {
    "no target_modules": ("LoRA", {"target_modules": None}, "adapter_config.json names no target_modules"),
    "another method": ("LoRA", {"peft_type": "IA3"}, "adapter_config.json describes IA3, which is no LoRA adapter"),
    "changes for some tokens alone": ("LoRA", {"alora_invocation_tokens": [1]}, "uses alora_invocation_tokens, which cannot be merged"),
    "a base changed by PiSSA": ("LoRA", {"init_lora_weights": "pissa_niter_16"}, "uses init_lora_weights 'pissa', which cannot"),
    "a base changed by OLoRA": ("LoRA", {"init_lora_weights": "olora"}, "uses init_lora_weights 'olora', which cannot"),
    "a bracket that does not close": ("LoRA", {"target_modules": ".*(q_proj"}, r"target_modules '.*\(q_proj' is no regular expression"),
    "a rank for nothing": ("LoRA", {"rank_pattern": {"*.q_proj": 4}}, r"rank_pattern '\*.q_proj' is no regular expression \(nothing to"),
    "magnitudes without DoRA": ("DoRA", {"use_dora": False}, "down_proj: use_dora in adapter_config.json is missing"),
    "an id beyond the vocabulary": ("trained tokens", {"trainable_token_indices": [3, 7, 64]}, "do not name a token of 64 for each"),
    "an id below 0": ("trained tokens", {"trainable_token_indices": [3, 7, -5]}, "do not name a token of 64 for each"),
    "fewer ids than rows": ("trained tokens", {"trainable_token_indices": [3, 7]}, "do not name a token of 64 for each"),
    "no ids": ("trained tokens", {"trainable_token_indices": None}, "do not name a token of 64 for each"),
    "ids of another module": ("trained tokens", {"trainable_token_indices": {"wte": [3, 7, 5]}}, "do not name a token of 64 for each"),
}


@pytest.mark.parametrize("wrong", CONFIGS)
def test_a_configuration_that_is_not_of_its_tensors_or_cannot_be_merged_is_refused(base, adapters, tmp_path, wrong):
    kind, changed, message = CONFIGS[wrong]
    shutil.copytree(adapters[kind], tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(TunestationError, match=message):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(InputError, match=message):
        refuse_misfit(tmp_path / "adapter", base)


SHORT = r"q_proj: a lora_magnitude_vector of 32 numbers is missing"
PAIR = r"q_proj: a pair of matrices of rank 1 or more is missing"
TENSORS = {
    "rank 0": ("LoRA", {f"{FIRST}.lora_A.weight": torch.zeros(0, 32), f"{FIRST}.lora_B.weight": torch.zeros(32, 0)}, PAIR),
    "a vector as lora_B": ("LoRA", {f"{FIRST}.lora_B.weight": torch.zeros(32)}, PAIR),
    "a kernel as lora_A": ("LoRA", {f"{FIRST}.lora_A.weight": torch.zeros(4, 32, 1)}, PAIR),
    "a number as lora_A": ("LoRA", {f"{FIRST}.lora_A.weight": torch.tensor(1.0)}, PAIR),
    "a short magnitude": ("DoRA", {f"{FIRST}.lora_magnitude_vector": torch.ones(3)}, SHORT),
    "a row as the head": (
        "a head saved whole",
        {"base_model.model.lm_head.weight": torch.zeros(32)},
        r"lm_head.weight: the adapter was made for \[32\], but the base has \[64, 32\]",
    ),
}


@pytest.mark.parametrize("wrong", TENSORS)
def test_tensors_of_no_use_are_refused(base, adapters, tmp_path, wrong):
    kind, changed, message = TENSORS[wrong]
    folder = edited(adapters[kind], tmp_path / "adapter", lambda tensors: tensors.update(changed))
    with pytest.raises(TunestationError, match=message):
        merge(base, folder, tmp_path / "merged")


@pytest.mark.parametrize(("kept", "message"), [(0, "its header is cut"), (3000, "its header is cut"), (-10, "the copy is incomplete")])
def test_a_cut_file_is_refused(base, adapters, tmp_path, kept, message):
    shutil.copytree(adapters["LoRA"], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=message):
        refuse_misfit(tmp_path / "adapter", base)


@pytest.mark.parametrize("text", ["{nope", "[]"])
def test_a_configuration_that_is_none_is_refused(adapters, tmp_path, text):
    shutil.copytree(adapters["LoRA"], tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(text)
    with pytest.raises(TunestationError, match=r"adapter_config.json cannot be read: .* Name the folder of a LoRA adapter"):
        Adapter(tmp_path / "adapter")


def test_what_cannot_be_merged_is_not_blamed_on_the_base(base, adapters, tmp_path):
    shutil.copytree(adapters["LoRA"], tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_bias": True}))
    with pytest.raises(InputError, match=r"Serve it as base \+ adapter with peft\.$"):
        refuse_misfit(tmp_path / "adapter", base)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_learned_beside_dora_are_merged(base, tmp_path, bias):
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=ALL, use_dora=True, bias=bias)
    assert any(name.endswith(".bias") for name in load_file(adapter / "adapter_model.safetensors"))
    wanted = logits(PeftModel.from_pretrained(load(base), adapter).eval())
    merge(base, adapter, tmp_path / "merged")
    assert (logits(load(tmp_path / "merged")) - wanted).abs().max() < 2e-5 * wanted.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"modules_to_save": ["wte"]}, {"modules_to_save": ["lm_head"]}])
def test_starcoders_embedding_and_head_come_apart_when_one_of_them_learned(tmp_path, options):
    torch.manual_seed(0)
    config = GPTBigCodeConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=64, initializer_range=0.2)
    GPTBigCodeForCausalLM(config).save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn"], **options)
    wanted = logits(PeftModel.from_pretrained(load(tmp_path / "base"), adapter).eval())
    assert not merge(tmp_path / "base", adapter, tmp_path / "merged").tied
    found = logits(load(tmp_path / "merged"))
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


def test_a_fully_trained_mixture_of_experts_lacks_nothing(tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    MixtralForCausalLM(MixtralConfig(vocab_size=64, num_local_experts=2, **shape)).save_pretrained(tmp_path)
    _complete(tmp_path, Shards(tmp_path), tied=False)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TunestationError, match=r"1 weights are missing, first lm_head\.weight"):
        _complete(tmp_path, Shards(tmp_path), tied=False)


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}
"""For every architecture; each leaves out what is not its own."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(UNMERGED.keys() - {"gpt2"}))
def test_an_architecture_that_is_refused_at_once_is_one_that_the_proof_cannot_run(tmp_path, kind):
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=64, **SMALL)).save_pretrained(tmp_path)
    assert [problem.what.partition(", ")[0] for problem in early_problems(tmp_path, "m")] == [f"has model_type '{kind}'"]
    with pytest.raises(TunestationError, match=rf"weights of this {kind} are not found under their names, first .*choose a model of"):
        streamed(tmp_path, stored(Shards(tmp_path)), torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")
def test_gpt_2_is_refused_at_once_since_its_adapters_cannot_be_merged(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)).save_pretrained(tmp_path / "base")
    assert early_problems(tmp_path / "base", "m")
    with pytest.raises(TunestationError, match="uses fan_in_fan_out, which cannot be merged"):
        Adapter(make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn"]))


def test_a_merged_model_that_answers_with_no_numbers_fails_its_proof():
    nan = float("nan")
    with pytest.raises(TunestationError, match="is not what was trained: KL nan"):
        judge(Proof(Difference(nan, nan, nan, 0.0), Difference(nan, nan, nan, 0.0), None), 0.01, "float32")
