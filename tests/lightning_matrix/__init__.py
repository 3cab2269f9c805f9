"""Every way people train with Lightning: each test trains for real, and compares with the same run unmonitored."""
