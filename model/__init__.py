"""What is computed: the Transformer backbone and its heads, as pure functions of parameter trees."""
