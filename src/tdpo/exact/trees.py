"""Responses as the leaves of a tree of symbols, and policies as tables of next-symbol log-probabilities.

A response is a sequence of `depth` symbols. A node is a prefix; nodes are numbered level by level, so that the child
of node n under symbol a is n·symbols + a + 1. A policy is `node_logp` [..., nodes, symbols], and every entry is finite.
There are K = symbols^depth responses, in lexicographic order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """All responses of `depth` symbols, each one of `symbols`; with depth 1 a choice among `symbols` responses."""

    symbols: int
    depth: int = 1

    def __reduce__(self) -> tuple[type[Tree], tuple[int, int]]:
        """Pickle the two numbers and not the cached tables, which torch would send to a process as open files."""
        return Tree, (self.symbols, self.depth)

    @property
    def name(self) -> str:
        """Symbols to the power of tokens: 3^3."""
        return f"{self.symbols}^{self.depth}"

    @property
    def responses(self) -> int:
        """K, the number of responses."""
        return self.symbols**self.depth

    @property
    def nodes(self) -> int:
        """The number of prefixes, including the empty one."""
        return sum(self.symbols**level for level in range(self.depth))

    @cached_property
    def path_symbols(self) -> Tensor:
        """The symbols of every response, [K, depth]."""
        places = self.symbols ** torch.arange(self.depth - 1, -1, -1)
        return torch.arange(self.responses)[:, None] // places % self.symbols

    @cached_property
    def path_nodes(self) -> Tensor:
        """The nodes in which the symbols of every response are chosen, [K, depth]."""
        nodes = [torch.zeros(self.responses, dtype=torch.long)]
        for level in range(self.depth - 1):
            nodes.append(nodes[-1] * self.symbols + self.path_symbols[:, level] + 1)
        return torch.stack(nodes, dim=1)

    @cached_property
    def _takes(self) -> Tensor:
        """1 where a response takes a symbol in a node, [nodes·symbols, K]; a product is faster than indexing."""
        entries = self.path_nodes * self.symbols + self.path_symbols
        return torch.zeros(self.responses, self.nodes * self.symbols, dtype=torch.float64).scatter_(1, entries, 1.0).T

    @cached_property
    def _passes(self) -> Tensor:
        """1 where a response passes through a node, [nodes, K]."""
        return torch.zeros(self.responses, self.nodes, dtype=torch.float64).scatter_(1, self.path_nodes, 1.0).T

    def response_logp(self, node_logp: Tensor) -> Tensor:
        """log π(y) of every response y, [..., K]: the sum of its symbols' log-probabilities."""
        return node_logp.flatten(-2) @ self._takes

    def along_path(self, per_node: Tensor) -> Tensor:
        """The sum of `per_node` [..., nodes] over the nodes of every response, [..., K], such as its KL."""
        return per_node @ self._passes

    def taken(self, per_response: Tensor) -> Tensor:
        """The sum of `per_response` [..., K] over the responses that take a symbol in a node, [..., nodes, symbols]."""
        return (per_response @ self._takes.T).unflatten(-1, (self.nodes, self.symbols))

    def level(self, level: int) -> slice:
        """The rows of a table that belong to the nodes of one level; level 0 is the root alone."""
        first = sum(self.symbols**above for above in range(level))
        return slice(first, first + self.symbols**level)

    def from_responses(self, probabilities: Tensor) -> Tensor:
        """The node_logp [nodes, symbols] of the policy with these probabilities [K] of its responses, all positive."""
        mass = self.taken(probabilities)
        return (mass / mass.sum(-1, keepdim=True)).log()
