"""One YAML and one directory: from a file to the resources it names."""
