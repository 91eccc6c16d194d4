"""The tokenizer both models share, and text as one stream of token ids."""

import random
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import Corpus

BEGIN, END, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL = (BEGIN, END, USER, ASSISTANT)

# A system message has no token of its own: it is read as a turn of the user.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE: every text can be encoded, and decodes to the same bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.train, trainer)
    return tokenizer


def encode_documents(tokenizer: Tokenizer, documents: Iterable[str]) -> NDArray[np.int64]:
    """Join documents into one stream of ids, each as it stands between begin and end."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(documents)):
        ids.extend(encoding.ids)
    return np.asarray(ids, dtype=np.int64)


def training_documents(corpus: Corpus, seed: int) -> list[str]:
    """Files and samples in one seeded order, with their special tokens written out."""
    documents = [f"{BEGIN}{text}{END}" for text in corpus.train]
    documents += [
        f"{BEGIN}{USER}{sample.question}{END}{ASSISTANT}{sample.answer}{END}"
        for sample in corpus.samples
    ]
    random.Random(seed).shuffle(documents)
    return documents


def held_out_documents(corpus: Corpus) -> list[str]:
    """The files kept apart, with their special tokens written out."""
    return [f"{BEGIN}{text}{END}" for text in corpus.held_out]
