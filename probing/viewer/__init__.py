"""The trace viewer: one HTML file, nothing from the network (`probing.viewer.viewer`)."""
