"""Responses from a vLLM server, over its OpenAI-compatible API with token ids in and out (docs/vllm.md)."""
