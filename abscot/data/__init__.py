"""Raw rows -> shards of token ids."""
