"""`chunkrl collect`: episodes of experts and policies in simulators, as a LeRobot data set."""
