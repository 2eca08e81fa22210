"""Full fine-tuning behind the same interface as the bank: fp32 masters, and a working copy that computes.

In fp32 the working copy is the masters. In bf16 it is a rounding of them, by default stochastic: rounding to nearest
leaves a weight where it is until its update crosses half a unit in the last place, which swallows nearly all of the
first updates (science.md, "The swallowed update").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lowregret.adapters.inject import linear_kinds, select_sites
from lowregret.adapters.parameters import ParameterBlock
from lowregret.errors import SpecError
from lowregret.kernels import native
from lowregret.kernels.products import accumulate_into
from lowregret.specs import FullSpec, Rounding


def stochastic_bf16(value: Tensor, generator: torch.Generator) -> Tensor:
    """Round fp32 to bf16 up or down at random, with the probabilities that make the mean exact.

    The low 16 bits of the fp32 pattern are the position between two bf16 neighbours: adding a uniform 16-bit number and
    cutting them off rounds away from zero with just that probability. Non-finite values are rounded to nearest.

    Args:
        value: fp32, any shape.
        generator: gives the seed of the random bits, one word; on `value`'s device.
    """
    return _write_stochastic(value.contiguous(), generator, torch.empty_like(value, dtype=torch.bfloat16))


def _write_stochastic(value: Tensor, generator: torch.Generator, out: Tensor) -> Tensor:
    """`stochastic_bf16` to a place that is there already: a copy of all weights is a pass over memory saved."""
    seed = torch.empty(1, dtype=torch.int64, device=value.device)
    seed.random_(-(2**63), None, generator=generator)  # all 64 bits: without bounds the highest would be zero
    if native.updates(value) and out.is_contiguous():
        native.stochastic_bf16(value, int(seed), out)
        return out
    return out.copy_(stochastic_bf16_reference(value, seed))


def stochastic_bf16_reference(value: Tensor, seed: Tensor) -> Tensor:
    """The same bits by torch's operations: element 4 i + j takes the j-th 16 bits of word i of the seed's stream.

    Args:
        value: fp32, any shape, contiguous.
        seed: int64, one element, on `value`'s device.
    """
    bits = value.view(torch.int32)
    words = _words(seed, -(-bits.numel() // 4))
    noise = words.view(torch.int16)[: bits.numel()].view(bits.shape).to(torch.int32) & 0xFFFF
    rounded = ((bits + noise) & -65536).view(torch.float32).to(torch.bfloat16)
    return torch.where(torch.isfinite(value), rounded, value.to(torch.bfloat16))


def _words(seed: Tensor, number: int) -> Tensor:
    """The first words of a stream, int64: SplitMix64 (Steele, Lea and Flood, 2014), whose words are independent of each
    other's making."""
    z = seed + torch.arange(1, number + 1, device=seed.device) * -0x61C8864680B583EB
    z = (z ^ _shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, places: int) -> Tensor:
    """To the right, filled up with zeros."""
    return (z >> places) & ((1 << (64 - places)) - 1)


def rounded_to_bf16(value: Tensor, rounding: Rounding, generator: torch.Generator, out: Tensor | None = None) -> Tensor:
    """fp32 to bf16.

    Args:
        value: fp32, any shape, contiguous.
        rounding: how.
        generator: of the random bits, on `value`'s device; not used where it is rounded to nearest.
        out: bf16, where the result goes; None: to a tensor of its own.
    """
    out = torch.empty_like(value, dtype=torch.bfloat16) if out is None else out
    return _write_stochastic(value, generator, out) if rounding == "stochastic" else out.copy_(value)


def rounding_stream(seed: int, step: int, name: str, device: torch.device) -> torch.Generator:
    """Random bits that depend on nothing but these, so that a resumed run rounds as one that was left alone."""
    digest = hashlib.sha256(f"{seed}/{step}/{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class FullParameters:
    """The slot `full`: every weight (or the matched matrices) of a model of its own.

    The model passed in belongs to this object: its working weights change. The frozen base of a bank is another copy.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: FullSpec,
        *,
        head_name: str,
        slot: str = "full",
        masters: dict[str, Tensor] | None = None,
    ) -> None:
        """
        Args:
            model: computes in fp32 or bf16.
            masters: fp32 weights to start from; None: the model's own.

        Raises:
            SpecError: a target of a matched support matches nothing.
        """
        self.model = model
        self.spec = spec
        self.slot = slot
        self._retired = False
        trained = _support(model, spec, head_name)
        self._parameters = {name: p for name, p in model.named_parameters() if name in trained}
        self._masters: dict[str, Tensor] = {}
        self._grads: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._parameters)
        for name, parameter in self._parameters.items():
            start = parameter.detach() if masters is None else masters[name]
            if parameter.dtype == torch.bfloat16:
                self._masters[name] = start.to(torch.float32).clone().contiguous()
            else:
                parameter.data = start.to(parameter.dtype).clone().contiguous()
                self._masters[name] = parameter.data
            self._grads[name] = torch.zeros_like(self._masters[name])
            parameter.register_post_accumulate_grad_hook(_into(self._grads[name]))

    @property
    def slots(self) -> tuple[str, ...]:
        """The one slot, unless it was retired."""
        return () if self._retired else (self.slot,)

    @property
    def masters(self) -> dict[str, Tensor]:
        """fp32 weights by parameter name."""
        return self._masters

    @property
    def gradients(self) -> dict[Tensor, Tensor]:
        """fp32 accumulators by working parameter, for a backward that adds to them without autograd."""
        return {parameter: self._grads[name] for name, parameter in self._parameters.items()}

    @property
    def num_parameters(self) -> int:
        return sum(master.numel() for master in self._masters.values())

    def blocks(self, slot: str) -> tuple[ParameterBlock, ...]:
        """One block a parameter tensor, in model order."""
        del slot
        return tuple(
            ParameterBlock(name=name, role="full", value=master.view(-1), grad=self._grads[name].view(-1))
            for name, master in self._masters.items()
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for grad in self._grads.values():
            grad.zero_()

    def retire(self, slot: str) -> None:
        """Stop training."""
        del slot
        self._retired = True

    def publish(self, slot: str, step: int = 0) -> None:
        """Round the masters into the bf16 working copy; the random bits depend on (seed, step, parameter) alone."""
        del slot
        self.compute_with(self._masters, rounding=self.spec.rounding, step=step)

    def compute_with(self, weights: Mapping[str, Tensor], *, rounding: Rounding, step: int) -> None:
        """Round these fp32 weights into the bf16 working copy. `publish` brings the masters' own back.

        Args:
            weights: by parameter name, for measurement; those that train are taken, others are left alone.
            rounding: in place of the spec's.
            step: of the random bits.
        """
        for name, parameter in self._parameters.items():
            if parameter.dtype == torch.bfloat16:
                stream = rounding_stream(self.spec.rounding_seed, step, name, parameter.device)
                rounded_to_bf16(weights[name], rounding, stream, out=parameter.data)

    def num_moved(self, start: Mapping[str, Tensor]) -> int:
        """Trained weights whose working copy differs from the start's, rounded to nearest."""
        return sum(int((p != start[name].to(p.dtype)).sum()) for name, p in self._parameters.items())


def _into(grad: Tensor) -> Callable[[Tensor], None]:
    """Moves autograd's gradient of one micro-batch into the fp32 accumulator, and frees it.

    It holds the accumulator alone. Python's collector can't see through a hook: one that held its owner would keep the
    model and the masters in memory for good (1 GB a full fine-tuning of SmolLM2-135M, until a study ran out).
    """

    def accumulate(parameter: Tensor) -> None:
        assert parameter.grad is not None
        accumulate_into(grad, parameter.grad)
        parameter.grad = None

    return accumulate


def _support(model: nn.Module, spec: FullSpec, head_name: str) -> set[str]:
    names = {name for name, _ in model.named_parameters()}
    if spec.support == "all":
        return names
    sites = select_sites(linear_kinds(model, head_name), spec.targets, unembed=spec.unembed)
    matched = {f"{site}.weight" for site in sites}
    missing = matched - names
    if missing:
        raise SpecError(f"support 'matched': {sorted(missing)[0]} is tied to another weight; leave --unembed off")
    return matched
