"""Maximum-likelihood pretraining: data, batches, losses, what learns, and how several processes share the work."""
