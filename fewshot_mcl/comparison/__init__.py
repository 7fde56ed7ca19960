"""Runs compared on the same episodes or images: who is better, by how much, and how sure that is."""
