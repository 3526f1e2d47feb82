"""The images of `make images`, run by podman: the server alone, and the rendered pod."""
