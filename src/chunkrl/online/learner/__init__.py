"""`chunkrl learner`: episodes of actors become data, training goes on, and weights go out."""
