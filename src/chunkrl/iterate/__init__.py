"""`chunkrl iterate`: rounds of roll-outs, values on all data so far, and the policy again from the pretrained one."""
