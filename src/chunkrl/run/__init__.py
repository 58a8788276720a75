"""`chunkrl train`: its settings, their checks, what is built from them, the run and its folder."""
