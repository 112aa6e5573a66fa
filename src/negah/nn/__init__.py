"""Networks that everything above shares."""
