"""`chunkrl label`: labels of a data set from what people know of it, or from a replay in its simulator."""
