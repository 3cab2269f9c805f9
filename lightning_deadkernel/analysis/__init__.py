"""What reads weights or finished reports: no training."""
