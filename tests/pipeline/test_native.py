"""Every converted family computes what its published equations say, and becomes a folder that loads without anybody's code."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from original_families import Original, internlm, internlm2
from original_packed import baichuan, chatglm, qwen
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from small_vocabularies import SYMBOLS, train_sentencepiece, write_vocabulary
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunestation.models.alibi  # noqa: F401  makes the Auto classes know Baichuan-13B
from tunestation.data.encoding import encode
from tunestation.data.formats import Message
from tunestation.data.templates import TEMPLATES
from tunestation.data.tokenizers import load_tokenizer, set_template
from tunestation.errors import InputError
from tunestation.models.folder import check_model_folder
from tunestation.models.limits import limit_of
from tunestation.models.native.convert import RECORD, convert, export_back
from tunestation.models.shards import Shards
from tunestation.pipeline.files import read_json, write_json

ORIGINALS = {
    "internlm2": internlm2(),
    "internlm2-biased": internlm2(biased=True),
    "internlm2-dynamic": internlm2(scaling={"type": "dynamic", "factor": 2.0}),
    "internlm": internlm(),
    "internlm-unbiased": internlm(biased=False, rotary="origin"),
    "baichuan-7b": baichuan(),
    "baichuan2-7b": baichuan(second=True),
    "baichuan-13b": baichuan(alibi=True),
    "baichuan-13b-6-heads": baichuan(alibi=True, heads=6),
    "baichuan2-13b": baichuan(second=True, alibi=True),
    "chatglm": chatglm(),
    "qwen": qwen(),
}
SHORT, LONG = [5, 311, 17, 44, 9], [7, 8, 200, 31, 12, 99, 250, 3]


def write(original: Original, folder: Path) -> Path:
    """The whole folder as published: weights, configuration, vocabulary."""
    original.write(folder)
    write_vocabulary(original.name, folder)
    return folder


@dataclasses.dataclass
class Converted:
    original: Original
    source: Path
    folder: Path

    def load(self) -> torch.nn.Module:
        model, told = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"]
        return model.eval()

    def wanted(self, ids: list[int]) -> torch.Tensor:
        return self.original.logits(self.original.config, self.original.tensors, ids)


@pytest.fixture(scope="module", params=ORIGINALS)
def converted(request, tmp_path_factory) -> Converted:
    root = tmp_path_factory.mktemp(request.param)
    original = ORIGINALS[request.param]
    convert(write(original, root / "source"), root / "result", {"weights": "0" * 64}, "tiny")
    return Converted(original, root / "source", root / "result")


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found.double() - wanted).abs().max() <= 1e-5


@torch.no_grad()
def test_logits_are_those_of_the_published_equations(converted):
    model = converted.load()
    for ids in (SHORT, LONG, [4] * 64):
        close(model(torch.tensor([ids])).logits[0], converted.wanted(ids))


@torch.no_grad()
def test_padding_on_the_left_changes_no_answer(converted):
    gap = len(LONG) - len(SHORT)
    mask = torch.tensor([[0] * gap + [1] * len(SHORT), [1] * len(LONG)])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    logits = converted.load()(torch.tensor([[0] * gap + SHORT, LONG]), attention_mask=mask, position_ids=positions).logits
    close(logits[0, gap:], converted.wanted(SHORT))
    close(logits[1], converted.wanted(LONG))


@torch.no_grad()
def test_documents_of_a_pack_do_not_see_each_other(converted):
    positions = torch.tensor([[*range(len(LONG)), *range(len(SHORT))]])
    logits = converted.load()(torch.tensor([LONG + SHORT]), position_ids=positions, use_cache=False).logits[0]
    close(logits[: len(LONG)], converted.wanted(LONG))
    close(logits[len(LONG) :], converted.wanted(SHORT))


@torch.no_grad()
def test_a_cached_answer_is_that_of_the_whole_text(converted):
    model = converted.load()
    made = model.generate(
        torch.tensor([SHORT]), max_new_tokens=12, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True
    )
    ids = made.sequences[0].tolist()
    wanted = converted.wanted(ids[:-1])[len(SHORT) - 1 :]
    close(torch.cat(made.logits), wanted)
    assert ids[len(SHORT) :] == wanted.argmax(-1).tolist()


def test_the_way_back_is_bit_equal_but_for_a_folded_head(converted, tmp_path):
    export_back(converted.folder, read_json(converted.folder / RECORD), tmp_path / "back")
    back, source = Shards(tmp_path / "back"), Shards(converted.source)
    learned = [name for name in source.names if "inv_freq" not in name]
    assert sorted(back.names) == sorted(learned)
    folded = ["lm_head.weight"] if converted.original.name.startswith("baichuan2") else []
    assert [name for name in learned if not torch.equal(back.read(name), source.read(name))] == folded
    assert read_json(tmp_path / "back/config.json") == read_json(converted.source / "config.json")


def test_the_folder_asks_for_no_code_and_keeps_the_original_configuration(converted):
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in read_json(converted.folder / name)
    assert not list(converted.folder.rglob("*.py"))
    record = read_json(converted.folder / RECORD)
    assert record["family"] == converted.original.name and record["config"]["hidden_size"] and record["source"] == {"weights": "0" * 64}
    tokenizer = AutoTokenizer.from_pretrained(converted.folder)
    assert tokenizer.decode(tokenizer.encode("你好 world", add_special_tokens=False)) == "你好 world"
    assert len(tokenizer) <= converted.original.config.get("vocab_size", 600)


@torch.no_grad()
def test_past_the_context_dynamic_rope_is_the_original_one(tmp_path):
    original = internlm2(scaling={"type": "dynamic", "factor": 2.0}, positions=16)
    convert(write(original, tmp_path / "source"), tmp_path / "result", {}, "tiny")
    found = Converted(original, tmp_path / "source", tmp_path / "result")
    close(found.load()(torch.tensor([LONG * 4])).logits[0], found.wanted(LONG * 4))


def test_weights_keep_their_dtype_and_the_configuration_says_it(tmp_path):
    original = internlm2()
    original.write(tmp_path / "source", torch.bfloat16)
    train_sentencepiece(tmp_path / "source", SYMBOLS["internlm2"])
    convert(tmp_path / "source", tmp_path / "result", {}, "tiny")
    tensors = load_file(tmp_path / "result/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert read_json(tmp_path / "result/config.json")["torch_dtype"] == "bfloat16"


def test_tensors_that_do_not_fit_are_all_named_and_nothing_is_written(tmp_path):
    original = internlm2()
    tensors = dict(original.tensors)
    tensors["model.layers.0.attention.extra.weight"] = torch.zeros(2)
    del tensors["model.layers.1.attention.wo.weight"]
    tensors["output.weight"] = torch.zeros(10, 32)
    write(dataclasses.replace(original, tensors=tensors), tmp_path / "source")
    with pytest.raises(InputError) as told:
        convert(tmp_path / "source", tmp_path / "result", {}, "tiny")
    text = str(told.value)
    assert "tensors that the family does not have: model.layers.0.attention.extra.weight" in text
    assert "missing: model.layers.1.self_attn.o_proj.weight" in text
    assert "lm_head.weight [10, 32] instead of [600, 32]" in text
    assert not list((tmp_path / "result").glob("*.safetensors"))


VARIANTS = {
    "rope_ratio is 50": (chatglm(), {"rope_ratio": 50}),
    "quantization_bit is set": (chatglm(), {"quantization_bit": 4}),
    "add_bias_linear is True": (chatglm(), {"add_bias_linear": True}),
    "rotary_pct is 0.25": (qwen(), {"rotary_pct": 0.25}),
    "it sees pictures": (qwen(), {"visual": {}}),
    "it is quantised": (qwen(), {"quantization_config": {}}),
}


@pytest.mark.parametrize("reason", VARIANTS)
def test_a_variant_with_other_equations_is_refused_with_the_reason(tmp_path, reason):
    original, other = VARIANTS[reason]
    write_json(tmp_path / "config.json", original.config | other)
    with pytest.raises(InputError, match=reason):
        convert(tmp_path, tmp_path / "result", {}, "tiny")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "its config.json has no 'hidden_size'"),
        ({"num_attention_heads": 0}, "a value in its config.json is none that the family has"),
        ({"rope_scaling": 3}, "a value in its config.json is none that the family has"),
    ],
)
def test_a_configuration_with_a_field_missing_or_wrong_is_refused_before_anything_is_written(tmp_path, change, words):
    config = {key: value for key, value in (internlm2().config | change).items() if value is not None}
    write_json(tmp_path / "config.json", config)
    assert words in check_model_folder(tmp_path, "tiny")[0].what and limit_of(tmp_path) is None
    with pytest.raises(InputError, match=words):
        convert(tmp_path, tmp_path / "result", {}, "tiny")
    assert not (tmp_path / "result").exists()


def test_packed_rows_that_the_configuration_does_not_say_are_told_by_name_and_shape(tmp_path):
    original = internlm2()
    source = write(original, tmp_path / "source")
    write_json(source / "config.json", original.config | {"num_key_value_heads": original.config["num_attention_heads"]})
    with pytest.raises(InputError) as caught:
        convert(source, tmp_path / "result", {}, "tiny")
    problem, *others = caught.value.problems
    assert not others and "has tensors of another shape than the configuration says: model.layers.0.attention.wqkv.weight" in problem.what
    assert not list((tmp_path / "result").glob("*.safetensors"))


def test_a_conversation_with_chatglm3_begins_as_its_authors_begin_it(tmp_path):
    source = write(chatglm(), tmp_path / "source")
    write_json(source / "tokenizer_config.json", {"added_tokens_decoder": {"64795": {"content": "<|user|>"}}})
    convert(source, tmp_path / "result", {}, "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "result")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids)[:3] == ["[gMASK]", "<sop>", "<|user|>"]
    assert tokenizer.convert_ids_to_tokens(ids)[-3] == "<|assistant|>"
    stops = tokenizer.convert_tokens_to_ids(["</s>", "<|user|>", "<|observation|>"])
    assert read_json(tmp_path / "result/generation_config.json")["eos_token_id"] == stops


def test_chatglm3s_own_template_begins_with_the_same_two_tokens(tmp_path):
    source = write(chatglm(), tmp_path / "source")
    write_json(source / "tokenizer_config.json", {"chat_template": "[gMASK]sop{% for m in messages %}{{ m.content }}{% endfor %}"})
    convert(source, tmp_path / "result", {}, "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "result")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "people"}], return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["[gMASK]", "<sop>"]
    assert "<eop>" not in tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(("name", "first"), [("chatglm2", "[Round 1]\n\n问：Hi\n\n答："), ("chatglm3", "<|user|>\nHi<|assistant|>\n")])
def test_chatglms_named_templates_begin_each_turn_as_xtuner_does(tmp_path, name, first):
    source = write(chatglm(), tmp_path / "source")
    convert(source, tmp_path / "result", {}, "tiny")
    tokenizer = load_tokenizer(tmp_path / "result", "tiny")
    set_template(tokenizer, name, None)
    file = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    roles = {"<|user|>": file.vocab_size() + 6, "<|assistant|>": file.vocab_size() + 7}  # after the five of ADDED, <|system|> first
    begin, separator = [file.vocab_size() + 1, file.vocab_size() + 3], "\n\n" if name == "chatglm2" else "\n"

    def ids(text: str) -> list[int]:
        parts = [part for part in re.split(r"(<\|\w+\|>)", text) if part]
        return [one for part in parts for one in ([roles[part]] if part in roles else file.encode(part))]

    second = first.replace("Round 1", "Round 2").replace("Hi", "2 + 3?")
    turns = [(first, "Hello."), (second, "5")]
    wanted = [one for asked, said in turns for one in [*begin, *ids(asked), *ids(said), file.eos_id(), *ids(separator)]]
    messages = [Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "2 + 3?"), Message("assistant", "5")]
    assert encode(tokenizer, messages).input_ids == wanted
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "[gMASK]<sop>" + first


CHATS = {
    "internlm_chat": (internlm(), {"eos_token_id": [2, 103028]}),
    "baichuan_chat": (baichuan(), {"user_token_id": 195, "assistant_token_id": 196}),
    "qwen_chat": (qwen(), {"chat_format": "chatml"}),
    None: (qwen(), {"chat_format": "raw"}),
}


@pytest.mark.parametrize("template", CHATS)
def test_chat_models_carry_their_template_and_base_models_none(tmp_path, template):
    original, generation = CHATS[template]
    source = write(original, tmp_path / "source")
    write_json(source / "generation_config.json", generation)
    convert(source, tmp_path / "result", {}, "tiny")
    found = AutoTokenizer.from_pretrained(tmp_path / "result").chat_template
    assert found == (TEMPLATES[template].jinja if template else None)


def test_generation_stops_where_the_chat_model_stops(tmp_path):
    source = write(internlm2(), tmp_path / "source")
    decoder = {"92542": {"content": "<|im_end|>"}}
    (source / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": decoder, "auto_map": {"AutoTokenizer": ["x.y", None]}})
    )
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.8, "do_sample": True, "chat_format": "x"}))
    convert(source, tmp_path / "result", {}, "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "result")
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    generation = read_json(tmp_path / "result/generation_config.json")
    assert generation == {"bos_token_id": 1, "pad_token_id": 2, "eos_token_id": [2, stop], "temperature": 0.8, "do_sample": True}
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
