"""Sentences to vectors: what a policy is shown of the words for a task.

The encoder is frozen, so a sentence is embedded once and remembered. Two kinds:

* a text encoder of the package ``transformers`` (CLIP's text half, T5's encoder, BERT and its
  kin), by hub name or folder: the mean of its last hidden states over the sentence's tokens;
* ``hashed``, which needs no weights and knows no meanings: each word w and each pair of
  neighbours is a fixed direction of signs, bit by bit from its SHAKE-256 digest (a random
  projection of one-hot words, Achlioptas 2003), and a sentence is their sum:

      v = (sum over words of r(w) + sum over pairs of r(w w')) / sqrt(number of both)

Under ``hashed`` sentences are alike as far as they share words: another order is understood to
some degree, a synonym that was never trained on not at all.
"""

from __future__ import annotations

import functools
import hashlib
import re
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ebt_policy.errors import UserError
from ebt_policy.hub import reading
from ebt_policy.shapes import Float

HASHED = "hashed"
MAX_WORDS, MAX_CHARACTERS = 64, 1000
_FEATURES = 256  # of a hashed sentence
_REMEMBERED = 4096


def words(sentence: str) -> list[str]:
    """The words of a sentence in lower case, without punctuation.

    Raises:
        UserError: there are none, or more than :data:`MAX_WORDS` or :data:`MAX_CHARACTERS`.
    """
    if len(sentence) > MAX_CHARACTERS:
        raise UserError(
            f"the sentence {sentence[:40]!r}… has {len(sentence)} characters; at most "
            f"{MAX_CHARACTERS} are read"
        )
    found = re.findall(r"\w+", sentence.lower())
    if not found:
        raise UserError(f"the sentence {sentence[:40]!r} has no words; say what is to be done")
    if len(found) > MAX_WORDS:
        raise UserError(
            f"the sentence {sentence[:40]!r}… has {len(found)} words; at most {MAX_WORDS} are read"
        )
    return found


@functools.lru_cache(_REMEMBERED)
def embed(sentence: str, encoder: str) -> Float[np.ndarray, d]:
    """The vector of a sentence: not to be written to, for the next caller gets the same.

    Args:
        sentence: any text of 1 to 64 words; a pretrained encoder reads as many tokens of it as
            it was made for (CLIP 77).
        encoder: ``hashed``, or a hub name or folder.

    Raises:
        UserError: the sentence is empty or too long, or there is no such encoder.
    """
    vector = _hashed(words(sentence)) if encoder == HASHED else _pretrained(sentence, encoder)
    vector.setflags(write=False)
    return vector


def embed_all(sentences: np.ndarray, encoder: str) -> Float[np.ndarray, "*n d"]:
    """The vectors of an array of sentences of any shape.

    Raises:
        UserError: as :func:`embed`; or they are no text.
    """
    if sentences.dtype.kind != "U":
        raise UserError(f"{str(sentences)[:40]!r} is no sentence; expected text")
    vectors = np.stack([embed(str(sentence), encoder) for sentence in sentences.flat])
    return vectors.reshape(*sentences.shape, -1)


def _hashed(found: list[str]) -> Float[np.ndarray, d]:
    parts = [*found, *(" ".join(pair) for pair in pairwise(found))]
    digests = b"".join(hashlib.shake_256(part.encode()).digest(_FEATURES // 8) for part in parts)
    signs = 2.0 * np.unpackbits(np.frombuffer(digests, np.uint8)).reshape(len(parts), -1) - 1
    total: np.ndarray = (signs.sum(0) / np.sqrt(len(parts))).astype(np.float32)
    return total


def _pretrained(sentence: str, encoder: str) -> Float[np.ndarray, d]:
    words(sentence)
    tokenizer, model = _load(encoder)
    tokens = tokenizer(sentence, truncation=True, return_tensors="pt")
    shown = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        mean = model(**shown).last_hidden_state[0].mean(0)
    vector: np.ndarray = (mean / mean.square().mean().sqrt()).numpy()
    return vector


@functools.lru_cache(1)
def _load(encoder: str) -> tuple[Any, Any]:
    """Tokenizer and text encoder."""
    from transformers import AutoModel, AutoTokenizer

    with reading(f"encoder={encoder}", f"neither {HASHED} nor a text encoder of transformers"):
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model: Any = AutoModel.from_pretrained(encoder)
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        model = getattr(model, "text_model", model)
        # Some tokenizers do not say how long a text may be.
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    return tokenizer, model.float().eval().requires_grad_(False)
