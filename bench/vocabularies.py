"""Whether converted tokenizers give the ids of SentencePiece and tiktoken, on vocabularies as large as those of released models.

    python bench/vocabularies.py --text c4_demo.jsonl alpaca_zh_demo.json --size 32000 --out FILE

Vocabularies are learned from one half of the texts (`--text`, and the sources of Python's own library) with the settings that each
family's released file has, and compared on the other half, on pieces cut out of it anywhere, and on random letters.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unicodedata import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
LETTERS = "abc XYZ  \n\t0189.,{}你好世界的一是😀éß▁\u3000\u200bﬁＡ한글русский"
LONGEST = 4000
"""Characters of a text."""
PLAIN = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
CASES = {
    "internlm": PLAIN | {"user_defined_symbols": ["<eoh>", "<eoa>"]},
    "internlm, digits joined": PLAIN | {"split_digits": False},
    "baichuan": PLAIN | {"max_sentencepiece_length": 32, "allow_whitespace_only_pieces": True},
    "chatglm": PLAIN | {"add_dummy_prefix": True, "allow_whitespace_only_pieces": True},
    "chatglm, NFKC and squeezed spaces": {"normalization_rule_name": "nmt_nfkc"},
}


def main() -> None:
    """Compare all families and write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="files of JSON, JSON lines or plain text")
    parser.add_argument("--size", type=int, default=32_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    learned, held_out = corpus(asked.text)
    found = {"size": asked.size, "texts_learned_from": len(learned), "texts_compared": len(held_out), "rows": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate([*CASES, "qwen"]):
            begun = time.perf_counter()
            folder = Path(scratch) / str(number)
            folder.mkdir()
            ours, theirs = qwen(folder, learned, asked.size) if name == "qwen" else sentencepiece(folder, name, learned, asked.size)
            wrong = [text for text in held_out if ours(text) != theirs(text)]
            tokens = sum(len(ours(text)) for text in held_out)
            found["rows"].append({"family": name, "tokens": tokens, "texts_that_differ": len(wrong), "first": wrong[:3]})
            print(json.dumps(found["rows"][-1], ensure_ascii=False), f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def corpus(files: list[Path]) -> tuple[list[str], list[str]]:
    """Texts to learn from, and others to compare on."""
    dice = random.Random(7)
    texts = sorted({text[:LONGEST] for path in files for text in strings(path)})
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts += [part for path in library for part in path.read_text("utf-8", "replace").split("\n\n") if part.strip()]
    dice.shuffle(texts)
    half = len(texts) // 2
    learned, held_out = texts[:half], texts[half:]
    cut = [text[place : place + dice.randrange(1, 80)] for text in held_out if (place := dice.randrange(len(text) + 1)) < len(text)]
    letters = ["".join(dice.choices(LETTERS, k=dice.randrange(1, 60))) for _ in range(2000)]
    return learned, held_out + cut + letters


def strings(path: Path) -> Iterator[str]:
    """All texts in a file."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        yield from _strings(json.loads(content))
    elif path.suffix == ".jsonl":
        yield from (text for line in content.splitlines() for text in _strings(json.loads(line)))
    else:
        yield from content.split("\n\n")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def sentencepiece(folder: Path, name: str, learned: list[str], size: int) -> tuple[Callable, Callable]:
    """(ids by the converted tokenizer, ids by SentencePiece) for a family's settings."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    from tunestation.models.native import baichuan, chatglm, internlm
    from tunestation.models.native.vocabularies import build

    options = {"model_type": "bpe", "byte_fallback": True, "character_coverage": 0.9995, "split_digits": True, "minloglevel": 2}
    lines = [line for text in learned for line in text.split("\n") if line]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=size, **options | CASES[name]
    )
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    family = {"internlm": internlm.FAMILY, "baichuan": baichuan.FAMILIES[0], "chatglm": chatglm.FAMILY}[name.partition(",")[0]]
    made = build(family.vocabulary({"vocab_size": size}), folder)
    return lambda text: made.encode(text, add_special_tokens=False).ids, processor.encode


def qwen(folder: Path, learned: list[str], size: int) -> tuple[Callable, Callable]:
    """(ids by the converted tokenizer, ids by tiktoken) for byte-level ranks; Qwen's own code normalises to NFC first."""
    import tiktoken
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from tunestation.models.native import qwen as family
    from tunestation.models.native.vocabularies import build
    from tunestation.models.vocabulary.tiktoken import LETTERS as ALPHABET

    learner = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(family.PATTERN), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=ALPHABET, show_progress=False)
    learner.train_from_iterator(learned, trainer)
    byte = {letter: number for number, letter in enumerate(ALPHABET)}
    merged = [text for text, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1]) if len(text) > 1]
    tokens = [bytes([number]) for number in range(256)] + [bytes(byte[letter] for letter in text) for text in merged]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (folder / "qwen.tiktoken").write_text("".join(lines))
    encoding = tiktoken.Encoding("qwen", pat_str=family.PATTERN, mergeable_ranks=ranks, special_tokens={})
    made = build(family.FAMILY.vocabulary({}), folder)
    return lambda text: made.encode(text).ids, lambda text: encoding.encode_ordinary(normalize("NFC", text))


if __name__ == "__main__":
    main()
