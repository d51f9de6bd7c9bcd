"""Counts the bytes of tensors that are alive on a CPU, as torch does on a GPU; and those that a DeepSpeed engine makes."""

import gc
import json
import os
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Alive(TorchDispatchMode):
    """`now` and `peak`: bytes of storages that operations inside have made and that are still there, and most of them at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        tree_map_only(torch.Tensor, lambda tensor: self._count(tensor, given), out)
        return out

    def _count(self, tensor, given):
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" or id(storage) in self.known or storage.data_ptr() in given:
            return
        self.known.add(id(storage))
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, id(storage), size)

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size

    def most(self, work, *args):
        """What work(*args) returns, and bytes at most while it runs."""
        self.peak = self.now
        return work(*args), self.peak


class Moved(TorchDispatchMode):
    """`bytes` that operations beside products and attention read and write."""

    PRODUCTS = ("mm", "addmm", "bmm")

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        given, made = ([tensor for tensor in tree_leaves(some) if torch.is_tensor(tensor)] for some in ((args, kwargs), out))
        places = {tensor.untyped_storage().data_ptr() for tensor in given}
        view = all(tensor.untyped_storage().data_ptr() in places for tensor in made) and not name.endswith("_")
        if not view and name not in self.PRODUCTS and "attention" not in name:
            self.bytes += sum(tensor.nbytes for tensor in given + made)
        return out


SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
VOCABULARY = 2000


def engine(rank: int, world: int, port: int, stage: int, accumulation: int, out: str) -> None:
    """Two steps of an engine as a recipe configures it, over a Llama all of whose weights learn; what they took goes to `out`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as compatible
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunestation.training import zero
    from tunestation.training.model import total

    compatible["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    config = zero.make(stage, "none", 1, accumulation, 1.0)
    alive = Alive()
    with alive:
        torch.set_default_dtype(torch.bfloat16)
        with deepspeed.zero.Init(config_dict_or_path=config | {"train_batch_size": accumulation * world}, enabled=stage == 3):
            model = LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=VOCABULARY))
        torch.set_default_dtype(torch.float32)
        count = total(model)
        zero.set_buckets(config, count)
        zero.set_gathering(config, count // SHAPE["num_hidden_layers"])
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 1000  # as norms are below it and products above in real models
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)  # as on a GPU
        run, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        found = steps(run, alive, accumulation)
    if rank == 0:
        Path(out).write_text(json.dumps({"weights": count} | found))


def settle() -> None:
    """Let go of what nobody needs: cycles, and tensors of finished collective operations, which threads of theirs hold a little longer."""
    gc.collect()
    for _ in range(2):
        torch.distributed.barrier()


def steps(run, alive: Alive, accumulation: int) -> dict:
    """Bytes: `resident` between steps, and at most in forward passes, backward passes and the step, of the second step."""
    for _ in range(2):
        found = {"resident": alive.now, "forward": 0, "backward": 0}
        for _ in range(accumulation):
            settle()
            ids = torch.randint(VOCABULARY, (1, 8))
            outputs, forward = alive.most(lambda ids: run(input_ids=ids, labels=ids), ids)
            loss = outputs.loss
            del outputs
            _, backward = alive.most(run.backward, loss)
            del loss
            _, found["step"] = alive.most(run.step)
            found |= {"forward": max(found["forward"], forward), "backward": max(found["backward"], backward)}
    return found
