"""`chunkrl label --browser` and `chunkrl inspect --browser`: episodes on a page, and labels by hand."""
