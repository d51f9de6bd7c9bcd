"""The streaming merge beside peft's own, for every kind of adapter, and what it refuses."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tunestation.errors import TunestationError
from tunestation.export.adapter import Adapter
from tunestation.export.merging import bytes_of, plan, write
from tunestation.export.report import describe, sentence
from tunestation.models.shards import Shards

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "LoRA": {"target_modules": ALL},
    "rsLoRA": {"target_modules": ALL, "use_rslora": True},
    "DoRA": {"target_modules": ALL, "use_dora": True},
    "ranks and alphas by pattern": {"target_modules": ALL, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 32}},
    "a head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding and norm saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "model.norm"]},
    "an adapted head": {"target_modules": ["q_proj", "lm_head"]},
    "an adapted embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "DoRA of embedding and head": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7, 5]},
    "embedding and head adapted together": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
}


def make_base(folder, tied=False, dtype=torch.float32):
    """A random Llama of two layers whose files hold `dtype`."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, **shape, initializer_range=0.2, tie_word_embeddings=tied, attention_bias=True)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def make_adapter(base, folder, **options):
    """An adapter whose every tensor is random: as it is after training, not before it."""
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merge(base, adapter, out, dtype=torch.float32, shard_size="2GB"):
    """The merged folder."""
    config = json.loads((base / "config.json").read_text())
    made = plan(Shards(base), Adapter(adapter), config["tie_word_embeddings"], dtype)
    out.mkdir(exist_ok=True)
    write(made, out, shard_size)
    (out / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": made.tied}))
    return made


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(64).reshape(2, 32), use_cache=False).logits.float()


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "tied"), [*((kind, True) for kind in KINDS), *((kind, False) for kind in list(KINDS)[:-1])])
def test_the_merged_model_answers_as_peft_does_with_base_and_adapter(tmp_path, kind, tied):
    base = make_base(tmp_path / "base", tied)
    adapter = make_adapter(base, tmp_path / "adapter", **KINDS[kind])
    wanted = logits(PeftModel.from_pretrained(load(base), adapter).eval())
    merge(base, adapter, tmp_path / "merged")
    found = logits(load(tmp_path / "merged"))
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()
    assert (logits(load(base)) - wanted).abs().max() > 0.05 * wanted.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "DoRA"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_weights_are_those_that_peft_merges_in_float32_rounded_once(tmp_path, kind, dtype):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", **KINDS[kind])
    merge(base, adapter, tmp_path / "merged", dtype)
    wanted = PeftModel.from_pretrained(load(base), adapter).merge_and_unload().state_dict()
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        exact = wanted[name]
        assert weight.dtype == dtype
        # half the distance to the next value of the dtype, and what two ways to add up leave in float32
        assert ((weight.float() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps / 2 + 1e-6).all(), name


@pytest.mark.parametrize("kind", ["a head saved whole", "an adapted embedding", "trained tokens"])
@pytest.mark.filterwarnings("ignore")
def test_what_was_trained_apart_is_written_apart(tmp_path, kind):
    base = make_base(tmp_path / "base", tied=True)
    made = merge(base, make_adapter(base, tmp_path / "adapter", **KINDS[kind]), tmp_path / "merged")
    assert made.tied == (kind == "trained tokens")
    assert ("lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")) != made.tied


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(base, adapter) of plain LoRA."""
    folder = tmp_path_factory.mktemp("pair")
    base = make_base(folder / "base")
    return base, make_adapter(base, folder / "adapter", **KINDS["LoRA"])


def edited(adapter, folder, edit):
    """A copy of `adapter` with its tensors changed in place by `edit`."""
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
WRONG = {
    "a shape that does not fit": (
        lambda tensors: tensors.update({f"{FIRST}.lora_B.weight": torch.zeros(40, 4)}),
        r"layers.0.self_attn.q_proj.weight: the adapter was made for \[40, 32\], but the base has \[32, 32\]",
    ),
    "ranks that differ": (
        lambda tensors: tensors.update({f"{FIRST}.lora_B.weight": torch.zeros(32, 3)}),
        "layers.0.self_attn.q_proj: a lora_B of rank 4 is missing",
    ),
    "a module that the base lacks": (
        lambda tensors: tensors.update({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)}),
        "layers.9.mlp.up_proj is adapted, but the base has no such module",
    ),
    "half of a pair": (lambda tensors: tensors.pop(f"{FIRST}.lora_B.weight"), "layers.0.self_attn.q_proj: lora_B is missing"),
    "a module that was left out": (
        lambda tensors: [tensors.pop(f"{FIRST}.lora_{part}.weight") for part in "AB"],
        "1 modules that the adapter should change are missing, first model.layers.0.self_attn.q_proj: the merge would be partial",
    ),
    "values that are not finite": (
        lambda tensors: tensors[f"{FIRST}.lora_B.weight"].fill_(float("inf")),
        "weights that are not finite, first model.layers.0.self_attn.q_proj.weight",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_adapter_that_does_not_fit_is_refused_in_words(pair, tmp_path, wrong):
    edit, message = WRONG[wrong]
    with pytest.raises(TunestationError, match=message):
        merge(pair[0], edited(pair[1], tmp_path / "adapter", edit), tmp_path / "merged")


def test_all_misfits_are_told_at_once(pair, tmp_path):
    def edit(tensors):
        for name in ("a shape that does not fit", "a module that the base lacks"):
            WRONG[name][0](tensors)

    with pytest.raises(TunestationError) as told:
        merge(pair[0], edited(pair[1], tmp_path / "adapter", edit), tmp_path / "merged")
    assert len(told.value.problems) == 2


def test_options_that_no_plain_weight_can_express_are_refused(pair, tmp_path):
    shutil.copytree(pair[1], tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_bias": True}))
    with pytest.raises(TunestationError, match="uses lora_bias, which cannot be merged"):
        Adapter(tmp_path / "adapter")


def test_a_report_names_what_was_asked_for_in_vain_and_what_was_trained_whole(tmp_path):
    base = make_base(tmp_path / "base")
    options = {"target_modules": ["q_proj", "wqkv"], "modules_to_save": ["lm_head"], "use_rslora": True}
    found = describe(Adapter(make_adapter(base, tmp_path / "adapter", **options)))
    assert (found["asked_for_in_vain"], found["trained_whole"], found["modules"]) == (["wqkv"], ["lm_head.weight"], {"q_proj": 2})
    assert sentence(found) == "rsLoRA of rank 4, alpha 8, float32: q_proj x 2; head trained"


def test_a_full_disk_is_told_before_anything_is_written(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(TunestationError, match=r"needs 79\.2 kB more, but only 1.0 kB are free"):
        merge(*pair, tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []


def test_after_a_kill_only_what_is_missing_is_made(pair, tmp_path):
    merge(*pair, tmp_path / "merged", shard_size="0.02MB")
    shards = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    bytes_before = {path: path.read_bytes() for path in shards}
    assert len(shards) > 2
    shards[1].unlink()
    kept = shards[0].stat().st_mtime_ns
    merge(*pair, tmp_path / "merged", shard_size="0.02MB")
    assert {path: path.read_bytes() for path in shards} == bytes_before
    assert shards[0].stat().st_mtime_ns == kept


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("0.1MB", 10**5)])
def test_sizes_of_shards_are_powers_of_1000(text, size):
    assert bytes_of(text) == size
