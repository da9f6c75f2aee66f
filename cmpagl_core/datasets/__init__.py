"""Annotations and images: from downloaded files to typed splits and batches."""
