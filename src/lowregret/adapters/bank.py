"""The adapter bank: many LoRA adapters of any rank, alpha and targets on one frozen base, trained in one pass.

Guarantees, each held by a test in `tests/promises/`: K slots give the losses and weights of K separate runs; a slot
without tokens stays bitwise unchanged; a slot that diverges is retired and no other slot changes; with B = 0 a slot
gives exactly the base. Masters and gradients are fp32; the base is never written to.
The same thing as a loop over slots stands in `grouped.grouped_linear_reference`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowregret.adapters.grouped import Columns
from lowregret.adapters.inject import inject, linear_kinds, select_sites
from lowregret.adapters.layer import AdaptedLinear, RoutingCell
from lowregret.adapters.parameters import ParameterBlock
from lowregret.adapters.routing import Routing
from lowregret.errors import CapacityError, SpecError
from lowregret.specs import AdapterSpec, Arithmetic


@dataclass(frozen=True, kw_only=True)
class SlotWeights:
    """One adapter's masters: all A in one flat tensor, all B in another, and views of them by site.

    >>> import torch
    >>> a, b = torch.zeros(6), torch.zeros(4)
    >>> w = SlotWeights(spec=AdapterSpec(rank=2), a=a, b=b, grad_a=a.clone(), grad_b=b.clone(),
    ...     a_of={"q": a.view(2, 3)}, b_of={"q": b.view(2, 2)})
    >>> w.num_parameters
    10
    """

    spec: AdapterSpec
    a: Tensor
    b: Tensor
    grad_a: Tensor
    grad_b: Tensor
    a_of: Mapping[str, Tensor]
    """Views of `a`, [rank, d_in] by site."""
    b_of: Mapping[str, Tensor]
    """Views of `b`, [d_out, rank] by site."""

    @property
    def num_parameters(self) -> int:
        return self.a.numel() + self.b.numel()


class AdapterBank:
    """Slots on the linear layers of one model."""

    def __init__(self, model: nn.Module, *, head_name: str, master_dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
            model: the base; its matched `nn.Linear` layers are replaced by adapted ones as slots join.
            head_name: module name of the unembedding (`lm_head`).
            master_dtype: fp32; fp64 for exactness tests.
        """
        self.model = model
        self.kinds = linear_kinds(model, head_name)
        self.master_dtype = master_dtype
        self.cell = RoutingCell()
        self.sites: dict[str, AdaptedLinear] = {}
        self.weights: dict[str, SlotWeights] = {}
        self.retired: set[str] = set()
        model.requires_grad_(False)

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots that train, in order of joining."""
        return tuple(name for name in self.weights if name not in self.retired)

    def join(self, name: str, spec: AdapterSpec) -> None:
        """Add a slot: B zero, A uniform with half-width init_scale / sqrt(d_in), each matrix from its own stream.

        Raises:
            SpecError: the name is taken, or a target matches nothing.
            CapacityError: the rank is larger than a matrix that it adapts.
        """
        self.join_all({name: spec})

    def join_all(self, specs: Mapping[str, AdapterSpec]) -> None:
        """`join` of each, in order; the columns are laid out once for all of them.

        Raises:
            SpecError, CapacityError: see `join`; those before the one that is refused have joined.
        """
        try:
            for name, spec in specs.items():
                self._add(name, spec)
        finally:
            self._lay_out()

    def _add(self, name: str, spec: AdapterSpec) -> None:
        if name in self.weights:
            raise SpecError(f"slot {name!r} is in the bank already; give the new one another name")
        names = select_sites(self.kinds, spec.targets, unembed=spec.unembed)
        self.sites.update(inject(self.model, [n for n in names if n not in self.sites], self.cell))
        for site in names:
            smallest = min(self.sites[site].in_features, self.sites[site].out_features)
            if not 1 <= spec.rank <= smallest:
                raise CapacityError(f"rank {spec.rank} of slot {name!r} must lie in 1..{smallest} at {site}; lower it")
        self.weights[name] = self._new_weights(spec, names)

    def leave(self, name: str) -> SlotWeights:
        """Remove a slot and return its masters; the columns of the others keep their values."""
        weights = self.weights.pop(name)
        self.retired.discard(name)
        for site in weights.a_of:
            del self.sites[site].gradients[name]
        self._lay_out()
        return weights

    def retire(self, slot: str) -> None:
        """Stop training a slot. Its masters stay for inspection; in the forward it acts as the base."""
        self.retired.add(slot)
        for site in self.weights[slot].a_of:
            self.sites[site].clear(slot)

    def blocks(self, slot: str) -> tuple[ParameterBlock, ...]:
        """A and B of a slot as two flat blocks."""
        w = self.weights[slot]
        return (
            ParameterBlock(name="a", role="a", value=w.a, grad=w.grad_a),
            ParameterBlock(name="b", role="b", value=w.b, grad=w.grad_b),
        )

    def zero_grad(self) -> None:
        """Forget the gradients of all slots."""
        for weights in self.weights.values():
            weights.grad_a.zero_()
            weights.grad_b.zero_()

    def publish(self, slot: str, step: int = 0) -> None:
        """Copy a slot's masters into the layers.

        In bf16 the copy is rounded to nearest: relative to the adapter's own output the error is 2^-9 and does not
        grow, unlike an update that must be seen beside the base weight (docs/architecture.md, "Fidelity").
        """
        del step
        weights = self.weights[slot]
        acts = torch.stack([b_FR.any() for b_FR in weights.b_of.values()]).tolist()
        for (site, a_RD), act in zip(weights.a_of.items(), acts, strict=True):
            self.sites[site].write(slot, a_RD, weights.b_of[site], silent=not act)

    @contextmanager
    def route(self, routing: Routing) -> Iterator[None]:
        """Use this routing for the forward and backward inside."""
        previous, self.cell.routing = self.cell.routing, routing
        try:
            yield
        finally:
            self.cell.routing = previous

    @contextmanager
    def computing(self, arithmetic: Arithmetic) -> Iterator[None]:
        """Let every slot's part join the base's in this arithmetic inside: for measurement."""
        own = {site: layer.columns for site, layer in self.sites.items()}
        for layer in self.sites.values():
            layer.columns = {slot: replace(at, arithmetic=arithmetic) for slot, at in layer.columns.items()}
        try:
            yield
        finally:
            for site, layer in self.sites.items():
                layer.columns = own[site]

    def _new_weights(self, spec: AdapterSpec, names: tuple[str, ...]) -> SlotWeights:
        layers = {name: self.sites[name] for name in names}
        device = next(iter(layers.values())).weight.device
        num_a = sum(spec.rank * layer.in_features for layer in layers.values())
        num_b = sum(spec.rank * layer.out_features for layer in layers.values())
        a = torch.empty(num_a, dtype=self.master_dtype, device=device)
        b = torch.zeros(num_b, dtype=self.master_dtype, device=device)
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
        a_of = _views(a, {n: (spec.rank, layer.in_features) for n, layer in layers.items()})
        b_of = _views(b, {n: (layer.out_features, spec.rank) for n, layer in layers.items()})
        for name, a_RD in a_of.items():
            a_RD.copy_(initial_a(spec, name, layers[name].in_features))
        return SlotWeights(spec=spec, a=a, b=b, grad_a=grad_a, grad_b=grad_b, a_of=a_of, b_of=b_of)

    def _lay_out(self) -> None:
        """Give every slot its columns at every site, and refill them."""
        for site, layer in self.sites.items():
            columns: dict[str, Columns] = {}
            start = 0
            for slot, weights in self.weights.items():
                if site in weights.a_of:
                    rank = weights.spec.rank
                    columns[slot] = Columns(
                        start=start, rank=rank, scaling=weights.spec.scaling, arithmetic=weights.spec.arithmetic
                    )
                    start += rank
            layer.reserve(columns)
        for slot, weights in self.weights.items():
            grads_a = _views(weights.grad_a, {n: tuple(v.shape) for n, v in weights.a_of.items()})
            grads_b = _views(weights.grad_b, {n: tuple(v.shape) for n, v in weights.b_of.items()})
            for site in weights.a_of:
                self.sites[site].gradients[slot] = (grads_a[site], grads_b[site])
            if slot not in self.retired:
                self.publish(slot)


def initial_a(spec: AdapterSpec, site: str, d_in: int) -> Tensor:
    """A of one site, fp32 [rank, d_in]: uniform with half-width init_scale / sqrt(d_in) (paper; std 1/sqrt(3 d_in)).

    The stream is seeded by (init_seed, site), so it depends neither on the other sites nor on the other slots.
    """
    digest = hashlib.sha256(f"{spec.init_seed}/{site}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    half_width = spec.init_scale / math.sqrt(d_in)
    return torch.empty(spec.rank, d_in).uniform_(-half_width, half_width, generator=generator)


def _views(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    views: dict[str, Tensor] = {}
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = flat[offset : offset + size].view(shape)
        offset += size
    return views
