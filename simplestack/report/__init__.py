"""The report of a training, from its checkpoint and its photos."""
