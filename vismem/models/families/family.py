"""What every family of video language models gives a memory, and what a new one has to add."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vismem.errors import UsageError
from vismem.memory.kv.shape import KVShape
from vismem.models.preprocess import PixelScale, check_frames, normalise, resize
from vismem.models.rope import Rope, grid_positions

__all__ = ["Family", "FrameTokens", "Prompt"]

QUESTION = "What is the question?"  # stands where a question goes while a template is read


@dataclass(frozen=True, slots=True)
class FrameTokens:
    """Frames as their language model takes them.

    Args:
        embeds: ``(F, M, hidden)``.
        coords: ``(M, 3)`` int16 on the CPU: time, row and column inside the frame; the running
            index three times for a model whose positions are single numbers.
        deepstack: Features that the first layers of the language model add to these tokens, each
            ``(F, M, hidden)``; None where a family has none.
    """

    embeds: Tensor
    coords: Tensor
    deepstack: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The words around a video: ``before``, the frames, ``after``, the question, ``answer``."""

    before: str
    after: str
    answer: str


class Family(ABC):
    """One loaded video language model behind the interface that a memory hosts.

    It holds no state of a stream, so threads may share it. Nothing inside transformers is replaced:
    a family calls the model's own vision part, its language model without the head, its rotary
    module and its head. To add a family, inherit, fill in what is abstract, and name the class in
    ``FAMILIES``.

    Args:
        model: The loaded ``…ForConditionalGeneration``; it is put into evaluation mode.
        tokenizer: Of the model; without one, prompts and words are not to be had.
        scale: How pixels are scaled; as the family was published by default.
        identity: Tells this model from others; kept with what is stored of its keys.

    Attributes:
        model_type: What ``config.model_type`` of this family's models says.
        mrope: Whether positions are (time, row, column).
        shape: Layers and heads of the language model.
        text_model: The language model without its head.
        hidden: Width of a token's embedding.
        rope: The language model's rotation.
        prompt: The words around a video.

    Raises:
        UsageError: If the language model cannot be hosted: its attention slides by itself, or its
            rotation depends on the length of the text.
    """

    model_type: ClassVar[str]
    mrope: ClassVar[bool] = False
    published: ClassVar[Prompt]  # where the tokenizer has no chat template
    video: ClassVar[str] = ""  # what a chat template puts where the frames go
    turn_end: ClassVar[str]
    default_scale: ClassVar[PixelScale] = PixelScale()

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        scale: PixelScale | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.scale = scale or self.default_scale
        self.identity = dict(identity or {})
        self.text_model = self._text_model()
        config = self.text_model.config
        if strange := set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
            raise UsageError(
                f"the language model has layers of {', '.join(sorted(strange))}; a memory needs "
                "full attention in all of them: load the model with use_sliding_window=False"
            )
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.shape = KVShape(config.num_hidden_layers, heads, config.num_key_value_heads, width)
        self.hidden = int(config.hidden_size)
        self.rope = Rope(self.text_model.rotary_emb, width, mrope=self.mrope)

    @property
    def device(self) -> torch.device:
        """Where embeddings of text come from."""
        return self.text_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the language model, hence of its keys and values."""
        return self.text_model.get_input_embeddings().weight.dtype

    # ------------------------------------------------------------------ what a family has to say

    @abstractmethod
    def _text_model(self) -> Any:
        """The language model without its head."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens that a frame of this size becomes."""

    @property
    def most_tokens(self) -> int:
        """The most tokens that a frame of any size becomes."""
        rows, columns = self.grid(1, 1)  # of most families the same for every size
        return rows * columns

    def pixels(self, frames: Tensor | np.ndarray) -> Any:
        """Frames ``(F, H, W, 3)`` uint8 as the vision part takes them, on the model's device.

        Of most families ``(F, 3, S, S)``, squares whatever the shape of a frame.

        Raises:
            ValueError: If frames have another form.
        """
        side = self.model.config.vision_config.image_size
        planes = resize(check_frames(frames).to(self.device), side, side)
        return normalise(planes, self.scale).to(self.dtype)

    @abstractmethod
    def embed_frames(self, frames: Tensor | np.ndarray) -> FrameTokens:
        """Encode frames, each by itself: what the stock model feeds its language model for them.

        Args:
            frames: ``(F, H, W, 3)`` uint8 RGB.

        Raises:
            ValueError: If frames have another form.
        """

    def frame_words(self, time: float | None) -> tuple[str, str]:
        """Words directly before and after a frame; ``time`` in seconds, None to leave it out."""
        return ("" if time is None else f"<t={time:.1f}s>"), ""

    # ------------------------------------------------------------------ the language model

    def embed_text(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Embeddings of token ids, ``(S, hidden)``."""
        ids = torch.as_tensor(ids, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            return self.text_model.get_input_embeddings()(ids)

    @torch.no_grad()
    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor,
        kvmem: Any = None,
        cache: Any = None,
        visual: Tensor | None = None,
        deepstack: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Run the language model without its head.

        Args:
            embeds: ``(1, S, hidden)``.
            positions: ``(S,)``, or ``(3, S)`` for M-RoPE. With zeros, queries and keys reach cache
                and attention as they are, unrotated.
            kvmem: Handed through to the attention function of every layer, untouched; with it no
                mask is made, so the function has to keep causality itself.
            cache: A transformers ``Cache``; none is made where none is given.
            visual: ``(S,)`` bool, the tokens that ``deepstack`` is of; all by default.
            deepstack: Of the visual tokens in order, each ``(V, hidden)``.

        Returns:
            Hidden states behind the last layer's norm, ``(1, S, hidden)``.

        Raises:
            ValueError: If a family without such layers gets ``deepstack``.
        """
        more: dict[str, Any] = {}
        if kvmem is not None:
            # A mask that is ready keeps transformers from making one; the memory has its own.
            more = {"kvmem": kvmem, "attention_mask": embeds.new_empty(1, 1, 1, 1)}
        more |= self._deepstack(embeds, visual, deepstack)
        return self.text_model(
            inputs_embeds=embeds,
            position_ids=self.rope.batched(positions.to(embeds.device)),
            past_key_values=cache,
            use_cache=cache is not None,
            **more,
        ).last_hidden_state

    def _deepstack(
        self, embeds: Tensor, visual: Tensor | None, deepstack: Sequence[Tensor] | None
    ) -> dict[str, Any]:
        """Arguments of the language model for features of the vision part's inner layers."""
        if deepstack is not None:
            raise ValueError(f"{self.model_type} models take no deepstack features")
        return {}

    def query_bias(self, layer: int) -> Tensor:
        """What a layer adds to every query before it is rotated, ``(H, D)`` float32."""
        bias = getattr(self.text_model.layers[layer].self_attn.q_proj, "bias", None)
        size = self.shape.heads, self.shape.head_dim
        return torch.zeros(size) if bias is None else bias.detach().float().reshape(size)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary, ``(..., vocabulary)``, for chosen hidden states only."""
        return self.model.get_output_embeddings()(hidden)

    # ------------------------------------------------------------------ positions

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions ``(S,)`` or ``(3, S)``: two ``(S, D)`` of the model."""
        return self.rope.angles(positions, self.dtype)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate ``x (..., S, D)`` to ``positions``, ``(S,)`` or ``(3, S)``.

        Where several layers share positions, take `angles` once and `rope.apply` for each.
        """
        return self.rope.apply(x, *self.rope.angles(positions, x.dtype))

    def context_positions(
        self, coords: Tensor, frames: Tensor, *, start: int = 0, step: int = 1
    ) -> tuple[Tensor, int]:
        """Positions of frames that follow each other in a context, whatever was dropped of them.

        Args:
            coords: ``(S, 3)``, of each token relative to the first of its frame, words included.
            frames: ``(S,)`` which frame a token is of; tokens of one frame lie together.
            start: First free position, behind the sinks.
            step: Positions between two frames of a run; M-RoPE only, see `grid_positions`.

        Returns:
            Positions ``(S,)`` or ``(3, S)`` int64, and the next free position: where a question
            begins, counting up in all rows.
        """
        if self.mrope:
            return grid_positions(coords, frames, start=start, step=step)
        end = start + len(coords)
        return torch.arange(start, end, device=coords.device), end

    def text_positions(self, count: int, start: int = 0) -> Tensor:
        """Positions of text, ``(S,)`` or ``(3, S)`` int64."""
        positions = torch.arange(start, start + count)
        return positions.expand(3, -1) if self.mrope else positions

    # ------------------------------------------------------------------ words

    @cached_property
    def prompt(self) -> Prompt:
        """The words around a video, by the tokenizer's chat template where it has one.

        Raises:
            UsageError: If the template has no place for a video.
        """
        if not (self.video and getattr(self.tokenizer, "chat_template", None)):
            return self.published
        content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, _, rest = text.partition(self.video)
        after, asked, answer = rest.partition(QUESTION)
        if not asked:
            raise UsageError(
                f"the chat template of this {self.model_type} model has no {self.video} before the "
                "question; give the tokenizer the template of the published model"
            )
        return Prompt(before, after, answer)

    @property
    def init_ids(self) -> list[int]:
        """The words that a stream begins with; their keys are the memory's sinks."""
        return self.text_ids(self.prompt.before)

    def question_ids(self, question: str) -> list[int]:
        """A question as the model expects it behind the frames, up to where its answer begins."""
        return self.text_ids(f"{self.prompt.after}{question}{self.prompt.answer}")

    def frame_ids(self, time: float | None) -> tuple[list[int], list[int]]:
        """Token ids directly before and after a frame; ``time`` in seconds, None for no time."""
        before, after = self.frame_words(time)
        return self.text_ids(before), self.text_ids(after)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends: Any = getattr(self.model.generation_config, "eos_token_id", None)
        ids = set(ends if isinstance(ends, Iterable) else [] if ends is None else [ends])
        if self.tokenizer is not None:
            ids |= {self.tokenizer.eos_token_id, self.tokenizer.get_vocab().get(self.turn_end)}
        return frozenset(int(number) for number in ids if number is not None)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text as it is: nothing is put before or behind it.

        Raises:
            UsageError: If there is no tokenizer.
        """
        return list(self._words(text, add_special_tokens=False)["input_ids"]) if text else []

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of an answer's tokens, without special ones.

        Raises:
            UsageError: If there is no tokenizer.
        """
        return self._words.decode(ids, skip_special_tokens=True).strip()

    @property
    def _words(self) -> Any:
        if self.tokenizer is None:
            raise UsageError("this model was given without its tokenizer; pass one to read text")
        return self.tokenizer
