"""Methods that leave fewer tokens to later blocks."""
