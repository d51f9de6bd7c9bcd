"""XTuner's checkpoints, made here with fake modules of the names that the real ones pickle, become adapters that PEFT loads."""

import json
import shutil
import sys
import types
from contextlib import suppress

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_export_merging import FIRST, KINDS, load, logits, make_adapter, make_base
from zero_shards import write_zero

from tunestation.errors import InputError
from tunestation.export import pickles, xtuner

CONFIG = "model = dict(type='SupervisedFinetune', lora=dict(lora_alpha=8, lora_dropout=0.1, r=4, type='peft.LoraConfig'))\n"


def import_adapter(path, *rest):
    """As the task does, without looking what it is."""
    return xtuner.import_adapter(xtuner.read(path), path, *rest)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(base, adapter) as peft writes them."""
    folder = tmp_path_factory.mktemp("xtuner")
    base = make_base(folder / "base")
    return base, make_adapter(base, folder / "adapter", **KINDS["LoRA"])


@pytest.fixture
def history(monkeypatch):
    """MMEngine's HistoryBuffer, as far as it is pickled: arrays, numbers, and its own methods by name."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def mean(self): ...

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    buffer = HistoryBuffer()
    buffer._log_history, buffer._count_history = np.array([1.5, 1.25]), np.array([1, 1])
    buffer.last, buffer.mean_of_class, buffer.bound = np.float64(1.25), HistoryBuffer.mean, buffer.mean
    return buffer


def stored(adapter):
    """The tensors under the names that XTuner gives them."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    return {f"llm.{name.replace('.weight', '.default.weight')}": value for name, value in tensors.items()}


def write_pth(path, state_dict, config=CONFIG, **more):
    """iter_N.pth as MMEngine's runner writes it."""
    meta = {"cfg": config, "iter": 10, "seed": 42, "experiment_name": "x", "mmengine_version": "0.10.4", "dataset_meta": None}
    torch.save({"meta": meta, "state_dict": state_dict, "param_schedulers": [{"_last_lr": [0.1]}], **more}, path)
    return path


def test_a_file_of_mmengine_becomes_the_adapter_that_it_holds(pair, tmp_path, history):
    base, adapter = pair
    hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"iter": 10}}
    path = write_pth(tmp_path / "iter_10.pth", stored(adapter), message_hub=hub, optimizer={"state": {}, "param_groups": []})
    report = import_adapter(path, base, "owner/base", tmp_path / "imported", None)
    assert (report["ranks"], report["alpha"], sum(report["modules"].values())) == ([4], 8, 14)
    assert (report["head"], report["norms"], report["embedding"]) == (False, False, False)
    wanted = logits(PeftModel.from_pretrained(load(base), adapter).eval())
    found = logits(PeftModel.from_pretrained(load(base), tmp_path / "imported").eval())
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()  # it is kept in bfloat16
    assert json.loads((tmp_path / "imported" / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/base"


@pytest.mark.parametrize(("stage", "world"), [(1, 1), (2, 3), (3, 1), (3, 4)])
def test_a_deepspeed_folder_becomes_the_same_adapter(pair, tmp_path, history, stage, world):
    base, adapter = pair
    folder = tmp_path / "iter_10.pth"
    write_zero(folder, stored(adapter), stage, world, meta={"cfg": CONFIG}, message_hub={"log_scalars": {"loss": history}})
    import_adapter(folder, base, "base", tmp_path / "imported", None)
    wanted = load_file(adapter / "adapter_model.safetensors")
    found = load_file(tmp_path / "imported" / "adapter_model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].bfloat16()) for name in wanted)


def test_internlm2s_packed_adapter_is_split_and_its_adapted_head_reported(tmp_path):
    (tmp_path / "base").mkdir()
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 64}
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "internlm2", "intermediate_size": 48, **shape}))
    torch.manual_seed(0)
    packed, head = "llm.base_model.model.model.layers.0.attention.wqkv", "llm.base_model.model.output"
    tensors = {f"{packed}.lora_A.weight": torch.randn(4, 32), f"{packed}.lora_B.weight": torch.randn(64, 4)}
    tensors |= {f"{head}.lora_A.weight": torch.randn(4, 32), f"{head}.lora_B.weight": torch.randn(64, 4)}
    tensors = {name: weight.bfloat16().float() for name, weight in tensors.items()}
    report = import_adapter(write_pth(tmp_path / "epoch_1.pth", tensors), tmp_path / "base", "b", tmp_path / "out", None)
    assert report["modules"] == {"k_proj": 1, "lm_head": 1, "q_proj": 1, "v_proj": 1}
    assert report["head"]
    found = {name: weight.float() for name, weight in load_file(tmp_path / "out" / "adapter_model.safetensors").items()}
    update = (tensors[f"{packed}.lora_B.weight"] @ tensors[f"{packed}.lora_A.weight"]).view(2, 4, 8, 32)  # kv heads, q q k v, rows
    attention = "base_model.model.model.layers.0.self_attn"
    for name, rows in (("q_proj", update[:, :2]), ("k_proj", update[:, 2]), ("v_proj", update[:, 3])):
        split = found[f"{attention}.{name}.lora_B.weight"] @ found[f"{attention}.{name}.lora_A.weight"]
        assert torch.allclose(split, rows.reshape(-1, 32), atol=1e-6)


class Harm:
    """Would copy a file if it were unpickled."""

    def __reduce__(self):
        return shutil.copyfile, ("iter_1.pth", "harm")


def test_a_pickle_that_names_anything_else_is_refused_by_name_and_not_run(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_pth(tmp_path / "iter_1.pth", stored(pair[1]), hooks=[Harm()])
    with pytest.raises(InputError, match=r"iter_1.pth: is a pickle that names shutil.copyfile. It was not read"):
        import_adapter(path, pair[0], "base", tmp_path / "out", None)
    assert not (tmp_path / "harm").exists()


def test_stand_ins_keep_nothing_of_what_they_stand_for(history, tmp_path):
    torch.save({"buffer": history}, tmp_path / "x.pth")
    found = pickles.load(tmp_path / "x.pth")["buffer"]
    assert type(found) is pickles.Inert and vars(found) == {}


WRONG = {
    "a vision model": ({"visual_encoder.lora_A.weight": torch.ones(2)}, CONFIG, "holds more than a language model: visual_encoder"),
    "no numbers": ({"llm.x.lora_A.weight": torch.tensor([float("nan")])}, CONFIG, "1 of 1 weights are not finite, first x.lora_A.weight"),
    "no weights": (None, CONFIG, "is no checkpoint of XTuner: it has no state_dict"),
    "no alpha": ({}, "lora = None", "does not say which lora_alpha it had.*--alpha 16"),
    "half of every pair": ({f"llm.{FIRST}.lora_B.weight": torch.ones(32, 4)}, CONFIG, "holds no lora_A"),
    "numbers as names": ({1: torch.ones(2)}, CONFIG, "is no checkpoint of XTuner: it has no state_dict"),
    "rank 0": (
        {f"llm.{FIRST}.lora_A.weight": torch.ones(0, 32), f"llm.{FIRST}.lora_B.weight": torch.ones(32, 0)},
        CONFIG,
        "q_proj: a pair of matrices of rank 1 or more is missing. Give the model that it was trained on",
    ),
    "two alphas": ({}, CONFIG + "lora_alpha = 32", "sets lora_alpha to 8 and 32"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_adapter_is_refused_in_words(pair, tmp_path, wrong):
    tensors, config, message = WRONG[wrong]
    path = write_pth(tmp_path / "iter_1.pth", stored(pair[1]) if tensors == {} else tensors, config)
    with pytest.raises(InputError, match=message):
        import_adapter(path, pair[0], "base", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_cut_or_never_written_by_torch_is_refused(pair, tmp_path):
    path = write_pth(tmp_path / "iter_1.pth", stored(pair[1]))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"is not a whole file of torch\.save"):
        import_adapter(path, pair[0], "base", tmp_path / "out", None)


def test_a_damaged_byte_is_a_problem_in_words_if_it_is_one(pair, tmp_path):
    path = write_pth(tmp_path / "iter_1.pth", stored(pair[1]))
    whole = path.read_bytes()
    for place in range(0, 4000, 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(InputError):
            xtuner.read(path)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_none_is_refused(pair, tmp_path, alpha):
    path = write_pth(tmp_path / "iter_1.pth", stored(pair[1]))
    with pytest.raises(InputError, match=r"--alpha: is .*, but alpha is above 0"):
        import_adapter(path, pair[0], "base", tmp_path / "out", alpha)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["rsLoRA", "DoRA", "an adapted embedding"])
def test_other_kinds_of_lora_answer_as_before(pair, tmp_path, kind):
    adapter = make_adapter(pair[0], tmp_path / "adapter", **KINDS[kind])
    config = CONFIG.replace("r=4", "r=4, use_rslora=True") if kind == "rsLoRA" else CONFIG
    import_adapter(write_pth(tmp_path / "iter_1.pth", stored(adapter), config), pair[0], "base", tmp_path / "out", None)
    wanted = logits(PeftModel.from_pretrained(load(pair[0]), adapter).eval())
    found = logits(PeftModel.from_pretrained(load(pair[0]), tmp_path / "out").eval())
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize("states", [{}, [1], {"optimizer_state_dict": {}}])
@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_states_of_another_program_are_refused(pair, tmp_path, name, states):
    write_zero(tmp_path / "iter_1.pth", stored(pair[1]), 2, 2)
    torch.save(states, tmp_path / "iter_1.pth" / name)
    with pytest.raises(InputError, match="holds other states than DeepSpeed writes"):
        xtuner.read(tmp_path / "iter_1.pth")


def test_an_adapter_of_another_model_is_refused(pair, tmp_path):
    other = json.loads((pair[0] / "config.json").read_text()) | {"num_hidden_layers": 1, "hidden_size": 64}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(other))
    path = write_pth(tmp_path / "iter_1.pth", stored(pair[1]))
    with pytest.raises(InputError, match=r"iter_1.pth: model.layers.1.mlp.down_proj is adapted, but the base has no such module") as told:
        import_adapter(path, tmp_path / "other", "other", tmp_path / "out", None)
    assert "was made for [32, 48], but the base has [64, 48]. Give the model that it was trained on." in str(told.value)


def test_a_missing_process_of_deepspeed_is_noticed(pair, tmp_path):
    write_zero(tmp_path / "iter_1.pth", stored(pair[1]), 2, 3)
    (tmp_path / "iter_1.pth" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(InputError, match="optimizer states of 2 processes, but 3 trained"):
        import_adapter(tmp_path / "iter_1.pth", pair[0], "base", tmp_path / "out", 8)
    with pytest.raises(InputError, match="holds no checkpoint of DeepSpeed"):
        import_adapter(tmp_path, pair[0], "base", tmp_path / "out", 8)


def test_the_task_says_what_it_brought_and_refuses_to_write_over_it(station, tmp_path):
    base = station.model
    adapter = make_adapter(base, tmp_path / "adapter", **KINDS["LoRA"])
    path = write_pth(tmp_path / "iter_3.pth", stored(adapter))
    said = station.invoke("import-xtuner", str(path), "--model", "tiny", "--name", "coach")
    assert said.splitlines()[0].startswith("LoRA of rank 4, alpha 8, bfloat16: down_proj x 2, ")
    assert said.splitlines()[-1] == f"The adapter: {station.root}/home/models/adapters/coach"
    assert "is there already" in station.invoke("import-xtuner", str(path), "--model", "tiny", "--name", "coach", code=2)
    assert "there is no config.json in 'huge'" in station.invoke("import-xtuner", str(path), "--model", "huge", code=2)
    assert "there is no such file or folder" in station.invoke("import-xtuner", str(tmp_path / "no"), "--model", "tiny", code=2)
