"""Methods that leave small activations out, so that decoding reads fewer weights."""
