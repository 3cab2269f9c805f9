"""What several tests need: networks, windows, reports and ways to train them."""
