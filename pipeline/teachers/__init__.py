"""Teachers: one interface, a ledger that remembers every completion, and a pool of actors that asks."""
