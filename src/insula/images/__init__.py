"""Images: registries, the content store, layers, and the roots made from them."""
