"""What an adapter holds, in a few facts for people."""

from __future__ import annotations

from collections import Counter

from tunestation.export.adapter import Adapter
from tunestation.models.names import HEAD, embedding_of


def describe(adapter: Adapter) -> dict:
    """Rank, alpha, dtype, modules by name and what was asked for in vain, and whether norms, head or embedding were trained."""
    metas = {name: adapter.tensors.meta(name) for name in adapter.tensors.names}
    low_rank = {target: change for target, change in adapter.changes.items() if {"A", "embedding_A"} & change.parts.keys()}
    ranks = {metas[change.parts.get("A") or change.parts["embedding_A"]].shape[0] for change in low_rank.values()}
    return {
        "ranks": sorted(ranks),
        "alpha": adapter.config.lora_alpha,
        "kind": "DoRA" if adapter.config.use_dora else "rsLoRA" if adapter.config.use_rslora else "LoRA",
        "dtypes": sorted({str(meta.dtype).removeprefix("torch.") for meta in metas.values()}),
        "modules": dict(sorted(Counter(target.split(".")[-2] for target in low_rank).items())),
        "trained_whole": sorted(target for target in adapter.changes if target not in low_rank),
        "asked_for_in_vain": _in_vain(adapter, low_rank),
        "norms": any("norm" in target for target in adapter.changes),
        "head": HEAD in adapter.changes,
        "embedding": embedding_of(adapter.changes) in adapter.changes,
    }


def _in_vain(adapter: Adapter, low_rank: dict) -> list[str]:
    asked = adapter.config.target_modules
    modules = [f".{target.removesuffix('.weight')}" for target in low_rank]
    return sorted(name for name in asked if not any(module.endswith(f".{name}") for module in modules)) if isinstance(asked, set) else []


def sentence(found: dict) -> str:
    """The report in one line."""
    modules = ", ".join(f"{name} x {count}" for name, count in found["modules"].items())
    extra = [part for part in ("norms", "head", "embedding") if found[part]]
    also = f"; {', '.join(extra)} trained" if extra else "; no norm, head or embedding trained"
    rank = "/".join(map(str, found["ranks"]))
    return f"{found['kind']} of rank {rank}, alpha {found['alpha']:g}, {'/'.join(found['dtypes'])}: {modules}{also}"
