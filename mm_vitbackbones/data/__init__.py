"""Two small data sets that stand in for COCO and ADE20K where those are not available. Neither is a benchmark."""
