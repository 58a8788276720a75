"""`chunkrl actor`: a policy's chunks on a robot or simulator, recorded; nothing waits for the network."""
