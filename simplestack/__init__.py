"""The Simple Stack: `serving` is what is deployed, `training` and `packing` lead there."""
