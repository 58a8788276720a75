"""`chunkrl demo`: training and evaluation from nothing in minutes, and the experiment that benchmarks repeat."""
