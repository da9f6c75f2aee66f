"""Self-contained HTML pages of results: runs side by side, and ablation tables."""
