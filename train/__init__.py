"""Training, its plots, and the evaluation of one trained net or of several together."""
