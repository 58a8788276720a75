"""`chunkrl improve`: one command from a data set to a better policy, each step an existing command."""
