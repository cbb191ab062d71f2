"""Sequence PPO on stable-baselines3."""
