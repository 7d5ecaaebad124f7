"""Raystill: large language models distilled into small ones through synthetic data, on Ray."""

__version__ = "0.1.0"
