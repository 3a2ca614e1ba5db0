"""The 15 data sets of the paper, in the layout of the CoOp family: one entry each, and the readers they share."""
