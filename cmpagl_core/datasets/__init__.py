"""Annotations and images: from what people download to typed splits and batches."""
