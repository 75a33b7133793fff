"""Responses as the leaves of a tree of symbols, and policies as tables of next-symbol log-probabilities.

A response is `depth` symbols out of `symbols`. A node is a prefix; nodes are numbered level by level, so that the child
of node n under symbol a is n·symbols + a + 1. A policy is `node_logp` [..., nodes, symbols], leading dimensions being
policies of their own. K = symbols^depth responses, in lexicographic order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """All responses of `depth` symbols; with depth 1 a choice among `symbols` responses."""

    symbols: int
    depth: int = 1

    @property
    def responses(self) -> int:
        return self.symbols**self.depth

    @property
    def nodes(self) -> int:
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

    def response_logp(self, node_logp: Tensor) -> Tensor:
        """log π(y) of every response y, [..., K]: the sum of its symbols' log-probabilities."""
        flat = self.path_nodes * self.symbols + self.path_symbols
        return node_logp.flatten(-2)[..., flat].sum(-1)

    def along_path(self, per_node: Tensor) -> Tensor:
        """The sum of `per_node` [..., nodes] over the nodes of every response, [..., K]: a KL of each response."""
        return per_node[..., self.path_nodes].sum(-1)

    def reach(self, node_logp: Tensor) -> Tensor:
        """The probability of coming through every node, [..., nodes]."""
        reach = [node_logp.new_ones((*node_logp.shape[:-2], 1))]
        for level in range(self.depth - 1):
            table = node_logp[..., self.level(level), :].exp()
            reach.append((reach[-1][..., None] * table).flatten(-2))
        return torch.cat(reach, dim=-1)

    def level(self, level: int) -> slice:
        """The rows of a table that belong to the nodes of one level; level 0 is the root alone."""
        first = sum(self.symbols**above for above in range(level))
        return slice(first, first + self.symbols**level)

    def from_responses(self, probabilities: Tensor) -> Tensor:
        """The node_logp [nodes, symbols] of the policy with these probabilities [K] of its responses, all positive."""
        tables, mass = [], probabilities
        for _ in range(self.depth):
            table = mass.reshape(-1, self.symbols)
            tables.append((table / table.sum(-1, keepdim=True)).log())
            mass = table.sum(-1)
        return torch.cat(tables[::-1])
