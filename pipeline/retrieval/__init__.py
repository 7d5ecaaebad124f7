"""Retrieval: which documents of a corpus are nearest to a text, exactly, however many shards hold them."""
