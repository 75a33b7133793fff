"""Responses drawn from a model: seeded, batched, and made into pairs."""
