"""A causal language model as a trainer sees it: packed tokens to hidden states, hidden states to logits.

Works on any transformers causal LM whose attention goes through transformers' attention interface. The unembedding is
kept apart from the body, so that logits are made at loss positions only, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.full import FullParameters
from lowregret.adapters.routing import Routing
from lowregret.batches import PackedBatch
from lowregret.kernels.products import accumulate_in_fp32, linear
from lowregret.models.attention import NAME, Attending, Packing
from lowregret.models.fast_body import FastBody
from lowregret.models.packed import PackedSites
from lowregret.models.shared_prefix import SharedPrefixes

LOGITS_BYTES = 64 << 20
"""fp32 bytes of one chunk of logits; larger chunks were no faster (benchmarks/pieces.py)."""
LOGITS_BYTES_CUDA = 512 << 20
"""The same on a GPU: with a vocabulary of 128 thousand, 64 MiB are 128 rows, too few for a product at full speed."""


class CausalLM:
    """A transformers model, with at most one thing that trains on it."""

    def __init__(
        self, model: nn.Module, *, trainable: AdapterBank | FullParameters | None = None, fast: bool = True
    ) -> None:
        """
        Args:
            fast: take the fast path where it applies (`fast_body`); False: transformers' own modules.
        """
        accumulate_in_fp32()
        self.model = model
        self.trainable = trainable
        config: Any = model.config
        text_config = config.get_text_config()
        self.body = cast(nn.Module, getattr(model, str(model.base_model_prefix)))
        self._fast: FastBody | None = None
        if fast and FastBody.fits(self.body):
            self._fast = FastBody(self.body, trainable.gradients if isinstance(trainable, FullParameters) else {})
        self.vocab_size = int(text_config.vocab_size)
        self._softcap = cast("float | None", getattr(text_config, "final_logit_softcapping", None))
        self._logits_divisor = float(getattr(text_config, "logits_scaling", 1.0) or 1.0)
        self._logits_factor = float(getattr(text_config, "logit_scale", 1.0) or 1.0)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return next(self.model.parameters()).dtype

    @property
    def head(self) -> nn.Module:
        """The unembedding: an `nn.Linear` or an adapted one."""
        return cast(Any, self.model).get_output_embeddings()

    def hidden(self, batch: PackedBatch, *, module_by_module: bool = False) -> Float[Tensor, "T D"]:
        """Last hidden states of every packed token; run it inside `routed(batch)`.

        Args:
            module_by_module: through transformers' own modules, so that their hooks are called.
        """
        attending: Attending = Packing(lengths=batch.segment_lengths)
        if batch.branches:
            attending = SharedPrefixes(lengths=batch.segment_lengths, branches=batch.branches)
        return self.hidden_of(batch.tokens, batch.positions, attending, module_by_module=module_by_module)

    def hidden_of(
        self,
        tokens_T: Int[Tensor, " T"],
        positions_T: Int[Tensor, " T"],
        attending: Attending,
        *,
        module_by_module: bool = False,
    ) -> Float[Tensor, "T D"]:
        """Last hidden states of a row of tokens, which attend as `attending` says; run it inside `routed(...)`."""
        assert cast(Any, self.model).config._attn_implementation == NAME, "another model shares this model's config"
        embedded = self._embedded(tokens_T)
        if self._fast is not None and not module_by_module:
            return self._fast.hidden(embedded[0], positions_T, attending)
        placeholder = torch.empty(1, 1, 1, 1, dtype=self.dtype, device=tokens_T.device)
        output = self.body(
            inputs_embeds=embedded,
            position_ids=positions_T[None],
            attention_mask=placeholder,
            packing=attending,
            use_cache=False,
        )
        return output.last_hidden_state[0]

    def _embedded(self, tokens_T: Tensor) -> Tensor:
        """Where the graph starts: adapters take no part in it as leaves. [1, T, D]."""
        embedding: nn.Module = cast(Any, self.model).get_input_embeddings()
        if not torch.is_grad_enabled():
            return embedding(tokens_T[None])
        training = self.trainable.gradients if isinstance(self.trainable, FullParameters) else {}
        gradient = training.get(cast(Any, embedding).weight)
        if gradient is None or type(embedding) is not nn.Embedding:
            embedded = embedding(tokens_T[None])
            return embedded if embedded.requires_grad else embedded.requires_grad_()
        embedded = embedding(tokens_T[None]).detach().requires_grad_()
        # Autograd would sum a token's rows in the model's format, where the later ones of a frequent token are lost.
        trained = tokens_T != embedding.padding_idx if embedding.padding_idx is not None else slice(None)

        def add(grad_1TD: Tensor) -> None:
            gradient.index_add_(0, tokens_T[trained], grad_1TD[0][trained].to(gradient.dtype))

        embedded.register_hook(add)
        return embedded

    def logits(self, hidden_PD: Float[Tensor, "P D"]) -> Float[Tensor, "P V"]:
        """Logits of some hidden states, in the model's dtype."""
        logits = self._unembedded(hidden_PD)
        if self._logits_divisor != 1.0:
            logits = logits / self._logits_divisor
        if self._logits_factor != 1.0:
            logits = logits * self._logits_factor
        if self._softcap is not None:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits

    def _unembedded(self, hidden_PD: Tensor) -> Tensor:
        head = self.head
        packed = self._fast.packed if self._fast is not None else None
        if packed is not None and (logits := packed.product(cast(Any, head), hidden_PD)) is not None:
            return logits
        plain = type(head) is nn.Linear and head.bias is None
        return linear(hidden_PD, cast(nn.Linear, head).weight) if plain else head(hidden_PD)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Inside, products of few rows read packed weights (`models.packed`) where these serve; weights and adapters
        must not change meanwhile, and nothing is differentiated."""
        sites = [*self._fast.sites, cast(Any, self.head)] if self._fast is not None else []
        if self._fast is None or not PackedSites.fits(sites):
            yield
            return
        self._fast.decode_with(PackedSites(sites))
        try:
            yield
        finally:
            self._fast.decode_with(None)

    @property
    def repeats(self) -> bool:
        """Whether two forwards of equal shapes are the same launches, so that one can be recorded: known of the fast
        path, not of transformers' modules."""
        return self._fast is not None and not self._fast.looks_at_positions

    @property
    def keeps_logits(self) -> bool:
        """Whether the backward of `logits` reads them again, so that nothing may be put in their place."""
        return self._softcap is not None

    @property
    def chunk_rows(self) -> int:
        """Loss positions whose logits are made at once."""
        size = LOGITS_BYTES_CUDA if self.device.type == "cuda" else LOGITS_BYTES
        return max(32, size // (4 * self.vocab_size) // 32 * 32)

    @contextmanager
    def routed(self, routing: Routing) -> Iterator[None]:
        """Bind rows to slots for the forward and backward inside; a model without a bank has nothing to route."""
        if isinstance(self.trainable, AdapterBank):
            with self.trainable.route(routing):
                yield
        else:
            yield

    def use_activation_checkpointing(self, on: bool) -> None:
        """Keep only each layer's input and recompute the rest in the backward."""
        if self._fast is not None:
            self._fast.recompute = on
        if on:
            model = cast(Any, self.model)
            model.activation_checkpointing_enable({"use_reentrant": False})
            for module in self.model.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.training = True  # transformers recomputes in train mode only; children stay in eval mode
