"""The report of a training: what a checkpoint and its photos show."""
