"""Policies and data sets to the Hub and back: `chunkrl push`, `chunkrl pull`."""
