"""Where models come from: the default encoder, folders, the Hub and its cache."""
