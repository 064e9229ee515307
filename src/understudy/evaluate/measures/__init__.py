"""What protocols compute with: classifiers, rankings, geometry, detectors; features or a network in, figures out."""
