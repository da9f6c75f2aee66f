"""Annotations and pictures: from what people download to typed splits and batches."""
