"""The HTTP server: routes, middleware, OpenAPI, the playground."""
