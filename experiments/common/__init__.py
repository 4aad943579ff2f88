"""What the experiments share: command line, settings, training of many runs, measures, tables."""
