"""Two small data sets that stand in for COCO and ADE20K where those are not at hand. Neither is a benchmark."""
