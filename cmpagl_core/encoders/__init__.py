"""Images and texts to features, with a run or another model; feature files and caches of frozen backbones."""
