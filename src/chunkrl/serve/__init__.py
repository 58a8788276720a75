"""`chunkrl serve`: a policy for robots that speak openpi's protocol."""
