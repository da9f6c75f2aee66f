"""A local web page and its JSON API over one open Searcher (ours; extra `web`)."""
