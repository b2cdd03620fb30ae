"""From a checkpoint to a Bento."""
