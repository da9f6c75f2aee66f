"""Images and texts to features, by a run or by another model; feature files and the caches of frozen extractors."""
