"""How several processes train one model: one file an engine."""
