"""The network: Gswin image encoder, the two BERT halves, and where their weights come from."""
