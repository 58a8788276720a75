"""Actor, learner and a human who corrects: records, spool, transport and replay (docs/online.md)."""
