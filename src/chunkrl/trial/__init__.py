"""`chunkrl trial`: policies against each other, blind and randomised, until it is decided which is better."""
