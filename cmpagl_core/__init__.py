"""The toolkit without its command line: data sets, model, training, retrieval and evaluation."""

__version__ = "0.1.0"
