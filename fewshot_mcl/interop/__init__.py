"""Thin adapters to other libraries, each imported only when one of its functions is called."""
