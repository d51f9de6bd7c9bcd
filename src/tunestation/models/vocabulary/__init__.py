"""The vocabularies of older families as one `tokenizer.json`: SentencePiece models and tiktoken ranks, id for id."""
