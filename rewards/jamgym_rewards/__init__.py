"""Reward models for jamgym, one per file."""
