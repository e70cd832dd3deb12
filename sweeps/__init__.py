"""Jobs: one script an action."""
