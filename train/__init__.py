"""Training and what is made of it: driver, plots, the evaluation of one net or several, the table of all runs."""
