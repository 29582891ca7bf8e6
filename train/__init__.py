"""Training and what is made of it: the driver, its plots, the evaluation of a trained net."""
