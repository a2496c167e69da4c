"""A training run under random harm, which must end as the undisturbed run does."""
