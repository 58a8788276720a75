"""Between actor and learner: records, their bytes, the spool that keeps them, and the way back for weights."""
