"""Where a model or data comes from."""

from typing import Annotated, Literal

from pydantic import Field

from tunestation.recipe.base import Name, Part, Positive, RelativePath

Hub = Literal["huggingface", "modelscope"]
RepoId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class HubModel(Part):
    """A model repository of a hub, fetched at one commit."""

    kind: Literal["hub"]
    repo: RepoId
    """Owner and name, as in `internlm/internlm2-chat-7b`."""
    revision: str = "main"
    """Branch, tag or commit. `invoke pin` writes the commit it stands for into the lock."""
    hub: Hub = "huggingface"
    """Which hub holds it."""


class FolderModel(Part):
    """A model folder below the model volume (TUNE_MODELS) or beside the recipe."""

    kind: Literal["folder"]
    path: RelativePath
    """The folder with config.json, safetensors weights and a tokenizer."""


class StarterModel(Part):
    """The small chat model that ships with Tunestation."""

    kind: Literal["starter"]


class NewTokenizer(Part):
    """A byte-level BPE tokenizer trained on the recipe's own data in `prepare`."""

    vocab_size: Annotated[int, Field(ge=300, le=200_000)] = 4096
    """Entries in all, special tokens included."""


class NewModel(Part):
    """A model of the Llama architecture with fresh random weights; needs `train.method: full`."""

    kind: Literal["new"]
    hidden_size: Positive
    """Width of the residual stream."""
    intermediate_size: Positive
    """Width of the SwiGLU feed-forward."""
    num_hidden_layers: Positive
    """Decoder blocks."""
    num_attention_heads: Positive
    """Query heads; divides `hidden_size`."""
    num_key_value_heads: Positive
    """Key and value heads; divides `num_attention_heads`."""
    max_position_embeddings: Positive = 1024
    """Longest context in tokens."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary position frequencies."""
    tie_word_embeddings: bool = True
    """Share the embedding with the output head."""
    tokenizer: NewTokenizer = NewTokenizer()
    """How its tokenizer is trained."""


ModelSource = Annotated[HubModel | FolderModel | StarterModel | NewModel, Field(discriminator="kind")]


class FileSource(Part):
    """Files beside the recipe or below the dataset volume (TUNE_DATASETS), looked for in this order."""

    kind: Literal["files"]
    paths: Annotated[tuple[RelativePath, ...], Field(min_length=1)]
    """.json, .jsonl, .csv, .tsv, .xlsx, .parquet, .arrow or .txt files, each also behind .gz or .zst."""


class HubSource(Part):
    """Files of a dataset repository of a hub, fetched at one commit."""

    kind: Literal["hub"]
    repo: RepoId
    """Owner and name, as in `tatsu-lab/alpaca`."""
    revision: str = "main"
    """Branch, tag or commit. `invoke pin` writes the commit it stands for into the lock."""
    hub: Hub = "huggingface"
    """Which hub holds it."""
    files: Annotated[tuple[RelativePath, ...], Field(min_length=1)]
    """Names or patterns (`data/*.jsonl`) of the repository's files to read, in this order."""


class UrlSource(Part):
    """One file from the web, accepted only with the digest that the recipe or its lock names."""

    kind: Literal["url"]
    url: Annotated[str, Field(pattern=r"^https?://")]
    """Its address."""
    sha256: Sha256 | None = None
    """SHA-256 of its bytes, in hexadecimal; when unset, `invoke pin` or the first run writes what it finds into the lock."""


class GeneratorSource(Part):
    """Rows that a built-in generator writes: the same name, seed and count give the same rows everywhere."""

    kind: Literal["generator"]
    name: Name
    """One of the built-in generators, as `starter-world`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Chooses the rows."""
    count: Annotated[int, Field(ge=0)] = 0
    """How many rows; 0 is all of a fixed list."""


DataSource = Annotated[FileSource | HubSource | UrlSource | GeneratorSource, Field(discriminator="kind")]
