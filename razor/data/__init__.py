"""Text of any origin -> documents -> packed rows -> the micro-batches of a whole run."""
