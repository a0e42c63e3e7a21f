"""Each promise about devices with its fault injected for real, and the table of what survived."""
