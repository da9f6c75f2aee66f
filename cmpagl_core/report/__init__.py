"""Results as self-contained HTML pages: runs side by side, and ablation tables."""
