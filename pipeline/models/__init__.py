"""Language models: where they run, how they are loaded, asked and worded to."""
