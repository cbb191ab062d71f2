"""Corpora, one per file; imported only when asked for."""
