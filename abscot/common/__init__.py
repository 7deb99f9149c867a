"""What every room may use: it knows no recipe and no method."""
