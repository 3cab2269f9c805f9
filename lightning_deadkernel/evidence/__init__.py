"""What is gathered while a window is open, on the device."""
