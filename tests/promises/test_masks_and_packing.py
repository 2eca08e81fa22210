"""Only completion tokens carry weight; no label and no attention crosses a document; packed = unpacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.routing import Routing
from lowregret.batches import TokenizedExample
from lowregret.data.conversations import Conversation, Message, Role
from lowregret.data.packing import microbatches
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.causal_lm import CausalLM
from lowregret.specs import AdapterSpec
from lowregret.training.step import batch_nll
from tiny import VOCABULARY, bank_on, examples, packed, randomise_b, tiny_llama
from tiny_folder import tiny_model_folder

SLOT = "r4"


@pytest.fixture(scope="module")
def trained() -> tuple[CausalLM, AdapterBank]:
    """A model whose adapter does something, in fp64, so that equal means equal."""
    lm, bank = bank_on(tiny_llama(), {SLOT: AdapterSpec(rank=4)}, dtype=torch.float64)
    randomise_b(bank, SLOT)
    return lm, bank


def nll_of(lm: CausalLM, documents: list[TokenizedExample]) -> torch.Tensor:
    return batch_nll(lm, packed({SLOT: documents}))


def with_tokens(example: TokenizedExample, rows: np.ndarray) -> TokenizedExample:
    """The example with other tokens at these rows."""
    tokens = example.tokens.copy()
    tokens[rows] = (tokens[rows] + 7) % VOCABULARY
    return TokenizedExample(tokens=tokens, completion=example.completion)


def test_packed_equals_unpacked(trained: tuple[CausalLM, AdapterBank]) -> None:
    documents = examples(9)
    alone = torch.cat([nll_of(trained[0], [document]) for document in documents])
    together = nll_of(trained[0], documents)
    assert together.numel() == sum(document.num_completion_tokens for document in documents)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    batches = microbatches({SLOT: documents}, 30)
    assert len(batches) > 1
    split = torch.cat([batch_nll(trained[0], batch) for batch in batches])
    torch.testing.assert_close(split, alone, rtol=0, atol=1e-12)


def test_a_document_sees_no_other(trained: tuple[CausalLM, AdapterBank]) -> None:
    documents = examples(3, shortest=6)
    before = nll_of(trained[0], documents).split([d.num_completion_tokens for d in documents])
    changed = with_tokens(documents[1], np.arange(len(documents[1].tokens)))
    after = nll_of(trained[0], [documents[0], changed, documents[2]]).split([p.numel() for p in before])
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(after[2], before[2], rtol=0, atol=1e-12)
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_only_completion_tokens_carry_weight(trained: tuple[CausalLM, AdapterBank]) -> None:
    example = examples(1, shortest=12)[0]
    lm = trained[0]
    batch = packed({SLOT: [example]})
    predicted = np.flatnonzero(batch.weights.numpy()) + 1
    assert predicted.tolist() == [row for row in np.flatnonzero(example.completion) if row > 0]
    with torch.no_grad(), lm.routed(Routing.from_lengths(batch.slot_lengths)):
        logits_TV = lm.logits(lm.hidden(batch))
    tokens = torch.from_numpy(example.tokens.astype(np.int64))
    by_hand = functional.cross_entropy(logits_TV[:-1], tokens[1:], reduction="none")[predicted - 1]
    torch.testing.assert_close(nll_of(lm, [example]).to(by_hand.dtype), by_hand, rtol=0, atol=1e-9)


def test_the_mask_of_a_chat_reaches_the_loss(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(tiny_model_folder(tmp_path / "model"))
    turns: list[tuple[Role, str]] = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")]
    conversation = Conversation(messages=tuple(Message(role=role, content=text) for role, text in turns))
    made = tokenizer.encode_conversation(conversation)
    batch = packed({SLOT: [TokenizedExample(tokens=made.tokens, completion=made.completion)] * 2})
    end = tokenizer.eos_token_id
    b, c, e = (tokenizer.encode(letter)[0] for letter in "bce")
    assert batch.targets[batch.weights != 0].tolist() == [b, c, end, e, end] * 2
