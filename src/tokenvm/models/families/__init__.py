"""Model families as data: config.json to a spec, tensor names to roles."""
