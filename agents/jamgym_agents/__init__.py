"""Agents for jamgym: decoders, pretraining, fine-tuning and baselines."""
