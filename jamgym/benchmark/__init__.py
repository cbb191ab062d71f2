"""Evaluation: runs policies over fixed episodes and reports with intervals."""
