"""The network: Gswin image encoder, BERT's two halves, and the import of pretrained weights."""
