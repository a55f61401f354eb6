"""Tables of what adapters changed; needs pandas."""
