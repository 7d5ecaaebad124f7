"""Prompts: templates rendered to chat messages, response schemas, requests, and replies read back."""
