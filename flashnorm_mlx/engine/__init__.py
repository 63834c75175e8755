"""How a model's passes run: decode steps by kernels, prompts by compiled blocks, whatever the family."""
