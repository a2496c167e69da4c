"""Shards in, batches out: what exists, in which order it is read, and how it gets here."""
