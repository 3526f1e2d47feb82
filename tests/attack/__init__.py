"""Small requests that are dear to answer, against the handler alone and against TorchServe."""
