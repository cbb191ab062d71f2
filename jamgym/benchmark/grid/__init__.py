"""One evaluation over many settings: every policy in every cell of future visibility and chunk size."""
