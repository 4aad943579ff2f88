"""The studies behind the scripts: settings, methods, runs and reports, a folder or file each."""
