"""The shells: they perform what the core asks, and tell it what happened."""
