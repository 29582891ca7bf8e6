"""Training and what is made of it: the driver, its plots, the evaluation of one net or several, the table of all runs."""
