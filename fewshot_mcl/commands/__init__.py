"""The commands, a file for those that belong together: options in, lines out. What they need is imported once they run."""
