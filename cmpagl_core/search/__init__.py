"""Image search: the index, queries, hits and the page that shows them."""
