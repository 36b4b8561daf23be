"""Checkpoints on disk: reading a source shard by shard, and one file per format that is written."""
